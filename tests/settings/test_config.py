"""The way from --config=FILE:OBJECTIVE,smoke to a config."""

from pathlib import Path

import pytest

from dwrl_jax import objectives
from dwrl_jax.core.errors import UserError
from dwrl_jax.settings import config as configuration
from dwrl_jax.settings.commandline import parse
from dwrl_jax.training import assemble as build

CONFIGS = Path(__file__).parents[2] / "configs"


def config_of(path, variant):
    return parse([f"--config={path}{variant}", "--workdir=unused"])[0]


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("", ("dwrl", False)),
        ("smoke", ("dwrl", True)),
        ("sft", ("sft", False)),
        ("sft,smoke", ("sft", True)),
    ],
)
def test_variants(variant, expected):
    assert configuration.read_variant(variant) == expected


@pytest.mark.parametrize("variant", ["smokey", "smoke,dwrl", "dwrl,sft", "dwrl,smoke,smoke", "_policy", "__init__"])
def test_a_variant_that_does_not_exist(variant):
    with pytest.raises(UserError, match=f":{variant}: no such variant; give one of .*dwrl, .*sft, or NAME,smoke"):
        configuration.read_variant(variant)


def test_every_config_takes_every_objective():
    assert configuration.OBJECTIVES.keys() <= set(objectives.names())
    assert set(configuration.PAIRWISE) == {
        name for name in objectives.names() if objectives.load(name).judges[0] == "label"
    }
    for path in CONFIGS.glob("*.py"):
        for name in objectives.names():
            config, quick = (config_of(path, f":{name}{smoke}") for smoke in ("", ",smoke"))
            assert config.objective.name == quick.objective.name == name
            assert quick.optim.steps < config.optim.steps
            build.load_objective(config)
            flat = configuration.flat(quick.to_dict())
            for key, value in configuration.OBJECTIVES.get(name, {}).items():
                if key.startswith("base.") and quick.base is None:
                    continue
                assert flat[key] == value, f"{path.name}:{name},smoke changes {key} after the objective has set it"
