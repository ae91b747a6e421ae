"""The loop tells a fault of training once, also where the run was stopped meanwhile."""

import json
from types import SimpleNamespace

import pytest

from dwrl_jax.training import loop
from tests.workdir.test_watch import FAULTS, records


def told(run, rows):
    """The number of faults at each step, as a start of the run finds it."""
    watching = loop._watch(run)
    return [
        watching(row["step"], {name: row[name] for name in row if name != "step"})["train/warnings"] for row in rows
    ]


@pytest.mark.parametrize("stopped", [None, 20, 80])
def test_a_fault_is_a_line_and_a_number_in_the_metrics(stopped, tmp_path, capsys):
    rows = records(steps=120, **FAULTS["cut_off"])
    run = SimpleNamespace(workdir=tmp_path, thoughts=SimpleNamespace(sampler=SimpleNamespace(group_size=8)))
    numbers = told(run, rows[:stopped])
    if stopped:
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:stopped]))
        numbers += told(run, rows[stopped:])
    said = capsys.readouterr().out.splitlines()
    begins = numbers.index(1.0) + 1
    assert len(said) == 1 and said[0].startswith(f"warning: step {begins}: more and more thoughts are cut off")
    assert "sampler.max_thought" in said[0] and set(numbers[: begins - 1]) == {0.0} and numbers[-1] == 1.0
