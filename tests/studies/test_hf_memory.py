"""Smoke: the measurement of a checkpoint's load by two processes, on a small one."""

import json

import pytest

from studies.speed import hf_memory


def test_each_process_says_what_it_held(capfd):
    """Two processes hold half of the parameters each, in twice the bytes of the bfloat16 files."""
    with pytest.raises(SystemExit) as ended:
        hf_memory.main(["--processes=2", "--devices=1", "--layers=1", "--width=256"])
    output, errors = capfd.readouterr()
    assert ended.value.code == 0, errors[-3000:]
    figures = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert sorted(row["process"] for row in figures) == [0, 1]
    assert "checkpoint: 36 MB" in output
    for row in figures:
        assert row["parameters_mb"] == pytest.approx(36, abs=1)
        assert row["largest_piece_mb"] < row["parameters_mb"] and row["seconds"] >= 0
