"""Restart with other settings: a run goes on with keys that change no result, and with more steps."""

import json
import shutil

import jax
import numpy as np
import pytest

from tests.runs import fit, lines, params_of

PLAIN = ["--config.optim.schedule=constant", "--config.eval.every=0"]
SAME = ["model.remat=full", "log.thoughts_every=1", "log.thought_pairs=1", "checkpoint.every=1"]


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """A run of four steps that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(folder, f"--config.model.path={base}", *PLAIN)


@pytest.fixture(scope="module")
def begun(base, tmp_path_factory):
    """A run of two steps, from a time when three keys did not exist."""
    folder = tmp_path_factory.mktemp("begun")
    results = fit(folder, f"--config.model.path={base}", *PLAIN, "--config.optim.steps=2")
    kept = json.loads((folder / "config.json").read_text())
    del kept["optim"]["moments"], kept["log"]
    (folder / "config.json").write_text(json.dumps(kept))
    return folder, results


def goes_on(base, begun, folder, changes):
    """The results of the run that has begun, in a copy of its folder, with four steps and changed settings."""
    shutil.copytree(begun[0], folder)
    return fit(folder, f"--config.model.path={base}", *PLAIN, *(f"--config.{change}" for change in changes))


def timeless(folder):
    return [{k: v for k, v in row.items() if "second" not in k} for row in lines(folder / "metrics.jsonl")]


def test_with_other_logs_and_remat_it_is_the_undisturbed_run_bit_for_bit(base, begun, whole, tmp_path):
    results = goes_on(base, begun, tmp_path / "run", SAME)
    jax.tree.map(np.testing.assert_array_equal, params_of(tmp_path / "run"), params_of(whole[0]))
    assert timeless(tmp_path / "run") == timeless(whole[0])
    assert results["trained"] == whole[1]["trained"], "the scores are those of the last step, not of the second"
    assert begun[1]["trained"] != results["trained"] and results["steps"] == 4
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert results["config"] == written and written["log"] == {"thoughts_every": 1, "thought_pairs": 1}


def test_with_other_micro_batches_it_is_the_undisturbed_run_but_for_rounding(base, begun, whole, tmp_path):
    """Two halves of a gradient are added in another order than its parts in one."""
    goes_on(base, begun, tmp_path / "run", [*SAME, "optim.micro_batches=2"])
    expected = params_of(whole[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=0), params_of(tmp_path / "run"), expected
    )
    rows = timeless(tmp_path / "run")
    assert rows[:2] == timeless(whole[0])[:2] and len(rows) == 4
    for name, value in timeless(whole[0])[3].items():
        assert rows[3][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
