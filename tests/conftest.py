"""Fixtures that more than one test module needs."""

import importlib.util
import os
from pathlib import Path

import jax
import pytest

from dwrl_jax.models.families import model_config
from dwrl_jax.models.families.presets import PRESETS, shrink
from tests.launching import StandIns
from tests.runs import base_model, fit
from tests.small import VOCAB, lively

# most of the tests' time is compiling, and much of that is the search for fast code of programs that run once
ON_GPU = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
FAST_COMPILING = (
    "--xla_gpu_autotune_level=0"
    if ON_GPU
    else "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST_COMPILING}".strip()


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Programs that several tests or their subprocesses compile alike are compiled once per session."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    settings = {"jax_compilation_cache_dir": folder, "jax_persistent_cache_min_compile_time_secs": 0.5}
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real pairs, tokenizers and a small model; tests that need it skip without it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DWRL_JAX_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}: set DWRL_JAX_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def tiny():
    """Config.json, config and parameters of a small Qwen3: the one with q/k norms and wide heads."""
    hf_config = shrink(PRESETS["qwen3-4b"], VOCAB)
    config = model_config(hf_config)
    return hf_config, config, lively(config)


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A base model of the built-in world, made once."""
    return base_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def four_steps(base, tmp_path_factory) -> tuple[Path, dict]:
    """Workdir and results of a whole run, made once: to be read, not to be written to."""
    folder = tmp_path_factory.mktemp("four")
    return folder, fit(folder, f"--config.model.path={base}")


@pytest.fixture(scope="session")
def browser():
    """A real browser, started once; tests of pages skip without it."""
    from tests import browser

    started = browser.start()
    yield started
    started.quit()


@pytest.fixture
def stand_in(tmp_path):
    """Recording stand-ins for programs that launch scripts call."""
    return StandIns(tmp_path)
