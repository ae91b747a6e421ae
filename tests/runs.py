"""Whole runs of the quick trial on the built-in world, shared by tests."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from dwrl_jax.planning import compiled as lowering
from dwrl_jax.planning.model import model_of
from dwrl_jax.settings.commandline import parse
from dwrl_jax.training import assemble as build
from dwrl_jax.training import run as train
from dwrl_jax.workdir import checkpoint
from dwrl_jax.workdir import model as export

REPO = Path(__file__).parents[1]
SHORT = [
    "--config.base.optim.steps=3",
    "--config.eval.pairs=8",
    "--config.eval.batch_size=4",
    "--config.eval.curve_pairs=4",
    "--config.data.batch_size=2",
]


def tiny(variant="smoke"):
    """The flags of a run of few steps on the built-in world."""
    return [f"--config={REPO / 'configs' / 'tiny.py'}:{variant}", *SHORT]


TINY = tiny()


def run_command(module, *arguments) -> int | str | None:
    """Exit code of a command that is run in this process."""
    with mock.patch.object(sys, "argv", [module, *map(str, arguments)]):
        try:
            return importlib.import_module(f"dwrl_jax.{module}").main() or 0
        except SystemExit as ended:
            return ended.code


def command(module, *arguments):
    """The same command for a process."""
    return [sys.executable, "-m", f"dwrl_jax.{module}", *map(str, arguments)]


def call(module, *arguments, **options):
    """The same command, run in a process until it ends."""
    return subprocess.run(command(module, *arguments), cwd=REPO, capture_output=True, text=True, **options)


def fit(workdir, *arguments, variant="smoke"):
    """The results of a run of few steps on the built-in world."""
    config, workdir = parse([*tiny(variant), f"--workdir={workdir}", *arguments])
    return train.fit(config, workdir)


def base_model(workdir) -> Path:
    """The folder of the model that such a run makes first and starts from."""
    return train.starting_folder(*parse([*tiny(), f"--workdir={workdir}"]))


def recipe_of(config):
    """What the programs of a run are made of; its base model need not be there."""
    shape, tokens, _ = model_of(config, "gpu")
    return build.recipe(config, shape, *tokens)


def trace_update(variant):
    """The update of a run on the built-in world, traced from its config without being compiled."""
    config, _ = parse([*tiny(variant), "--workdir=unused"])
    recipe = recipe_of(config)
    with jax.set_mesh(recipe.mesh):
        return lowering.lower(recipe, "update", config.data.buckets[-1], config.data.batch_size)


def params_of(workdir):
    hf_config, shape = export.read_architecture(workdir)
    with checkpoint.open_manager(workdir) as manager:
        return checkpoint.restore_params(manager, "last", export.abstract_params(shape))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_run(found, expected):
    """Bit for bit: parameters, thoughts, held-out scores, and every metric that is not a time."""
    jax.tree.map(np.testing.assert_array_equal, params_of(found), params_of(expected))
    for name in ("base", "trained"):
        assert (found / "eval" / f"{name}.jsonl").read_text() == (expected / "eval" / f"{name}.jsonl").read_text()
    assert (found / "thoughts.jsonl").read_text() == (expected / "thoughts.jsonl").read_text()

    def timeless(row):
        return {k: v for k, v in row.items() if "second" not in k}

    pairs = zip(lines(found / "metrics.jsonl"), lines(expected / "metrics.jsonl"), strict=True)
    assert all(timeless(a) == timeless(b) for a, b in pairs)
