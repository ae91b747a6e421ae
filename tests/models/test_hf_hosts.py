"""Hugging Face checkpoints on many devices and in several processes, each reading and holding its part."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dwrl_jax.core import hosts
from dwrl_jax.data import world
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config, read_config
from dwrl_jax.models.families.presets import PRESETS, shrink
from dwrl_jax.training.assemble import keep_architecture
from dwrl_jax.workdir import model as export
from tests.small import lively

REPO = Path(__file__).parents[2]


def run(module, *arguments, processes=1, devices=1, timeout=120):
    """Standard errors of a module run in several processes of several CPU devices each, which all end well."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    env = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    if processes > 1:
        env |= {hosts.COORDINATOR: address, hosts.COUNT: str(processes)}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    options = {"cwd": REPO, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    numbers = [{hosts.NUMBER: str(number)} if processes > 1 else {} for number in range(processes)]
    started = [subprocess.Popen(command, env=env | number, **options) for number in numbers]
    try:
        errors = [process.communicate(timeout=timeout)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, error in zip(started, errors):
        assert process.returncode == 0, error[-3000:]
    return errors


def figures(error):
    return json.loads(error.split("FIGURES ")[1].splitlines()[0])


def assert_same_tensors(folder, expected):
    found, wanted = (
        {key: tensor for path in place.glob("*.safetensors") for key, tensor in load_file(path).items()}
        for place in (folder, expected)
    )
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        np.testing.assert_array_equal(found[key], tensor, err_msg=key)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of 8 MB in several files, its largest stacked parameter and its embedding of 2 MB each."""
    hf_config = shrink(PRESETS["qwen2.5-7b"], 2048, hidden_size=256, intermediate_size=1024)
    config = model_config(hf_config)
    params = lively(config)
    folder = tmp_path_factory.mktemp("hosts") / "model"
    hf.save_model(folder, params, config, hf_config, max_shard_bytes=3 * 2**20)
    return folder


@pytest.fixture(scope="module")
def pair(saved, alone):
    """What each of two processes with two devices measured; the parameters are split over all four devices."""
    return [figures(error) for error in run("tests.hf_process", saved, alone[1], processes=2, devices=2)]


@pytest.fixture(scope="module")
def alone(saved, tmp_path_factory):
    """What one process with eight devices measured, and the workdir of a run whose checkpoint lies on all eight."""
    workdir = tmp_path_factory.mktemp("run")
    keep_architecture(workdir / export.ARCHITECTURE, read_config(saved), saved, world.make_tokenizer())
    (workdir / "config.json").write_text('{"model": {"param_dtype": "float32"}}')
    (error,) = run("tests.hf_process", saved, workdir, devices=8)
    return figures(error), workdir


def test_exact_pieces_of_one_process(alone):
    """Eight devices: every byte is read once, and beyond the result there is never more than one piece."""
    found, _ = alone
    assert found["largest"] == 2**21 / 8
    assert found["excess"] < 2 * found["largest"]
    biases = found["held"] - found["total"]
    assert 0 < biases < 0.02 * found["total"]  # those lie whole on all devices
    assert found["read"] == found["total"]


def test_exact_replicas_are_read_once(alone):
    found = alone[0]["replicas"]
    assert found["held"] > 4 * found["total"]
    assert found["read"] == found["total"]


def test_exact_pieces_of_two_processes(pair):
    """Each process reads its half (biases both); the pieces are those of a whole load, checked where they lie."""
    for found in pair:
        assert 0.5 <= found["read"] / found["total"] < 0.51
        assert found["excess"] < 2 * found["largest"]


def test_exact_export_of_two_processes(saved, pair):
    out = saved.with_name("out")
    index = json.loads((out / hf.INDEX).read_text())
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 5 and set(index["weight_map"].values()) == set(files)
    assert_same_tensors(out, saved)
    assert (out / "config.json").read_text() == (saved / "config.json").read_text()


def test_exact_export_onto_other_devices(saved, alone, pair, tmp_path):
    """The command restores what lay on eight devices onto those that it finds; three do not divide the width."""
    export.export(alone[1], tmp_path / "one")
    assert_same_tensors(tmp_path / "one", saved)
    run("dwrl_jax.export", f"--workdir={alone[1]}", f"--output={tmp_path / 'three'}", devices=3)
    assert_same_tensors(tmp_path / "three", saved)
    assert_same_tensors(saved.with_name("restored"), saved)  # by two processes of two devices


def test_exact_failed_exports_stop_all_processes(saved, pair):
    first, second = pair
    assert "model: already there" in first["taken"]
    assert first["full"] == "OSError: No space left on device"
    assert all(second[case].startswith("UserError: the first process could not write") for case in ("taken", "full"))
    assert sorted(path.name for path in saved.parent.iterdir()) == ["model", "out", "restored"]
