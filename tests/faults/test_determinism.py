"""Two runs with one seed write the same files. What is left out of the comparison is listed here, and nothing else."""

import json
import tempfile
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dwrl_jax.core.names import CHECKPOINTS
from dwrl_jax.reporting.page import write_report
from tests.runs import base_model, fit, lines
from tests.small import in_process_of_devices

LEFT_OUT = {  # files by their pattern in a workdir, and why they differ
    "lock": "the number of the process",
    "tensorboard/events.*": "times, in names too",
    "checkpoints/*/_CHECKPOINT_METADATA": "times",
    "checkpoints/*/checksums.json": "sums of the files here",
    "checkpoints/*/commit_success.txt": "a time",
    "checkpoints/*/*/commit_success.txt": "a time",
    "checkpoints/*/*/manifest.ocdbt": "names of chunks, which are random; what they hold is compared",
    "checkpoints/*/*/d/*": "the same",
    "checkpoints/*/*/ocdbt.process_*/manifest.ocdbt": "the same",
    "checkpoints/*/*/ocdbt.process_*/d/*": "the same",
}
WITH_TIMES = ("metrics.jsonl", "results.json", "report.html")  # compared without the keys below
TIMES = ("seconds", "time/step_seconds", "sample/tokens_per_second", "train/tokens_per_second")


def compared(workdir):
    """The names of the files that must have the same bytes."""
    names = {path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file()}
    return sorted(str(x) for x in names if str(x) not in WITH_TIMES and not any(map(x.match, LEFT_OUT)))


def timeless(row):
    return {key: value for key, value in row.items() if key not in TIMES}


def results_of(workdir):
    return timeless(json.loads((workdir / "results.json").read_text()))


def report_without_times(workdir, folder):
    """The report of the same run, had it taken no time."""
    (folder / "run").mkdir(parents=True)
    (folder / "run" / "thoughts.jsonl").write_bytes((workdir / "thoughts.jsonl").read_bytes())
    (folder / "run" / "results.json").write_text(
        json.dumps(timeless(json.loads((workdir / "results.json").read_text())))
    )
    rows = [json.dumps(timeless(row)) + "\n" for row in lines(workdir / "metrics.jsonl")]
    (folder / "run" / "metrics.jsonl").write_text("".join(rows))
    return write_report(folder / "run").read_bytes()


def assert_same_files(mine, other, scratch):
    names = compared(mine)
    assert names == compared(other) and {"config.json", "thoughts.jsonl", "eval/trained.jsonl"} <= set(names)
    for name in names:
        assert (mine / name).read_bytes() == (other / name).read_bytes(), name
    a, b = ([timeless(row) for row in lines(workdir / "metrics.jsonl")] for workdir in (mine, other))
    assert json.dumps(a) == json.dumps(b)
    assert json.dumps(results_of(mine)) == json.dumps(results_of(other))
    assert report_without_times(mine, scratch / "a") == report_without_times(other, scratch / "b")
    reader = ocp.PyTreeCheckpointer()
    for step in sorted((mine / CHECKPOINTS).glob("[0-9]*")):
        for part in ("params", "rest"):
            a, b = (reader.restore((workdir / CHECKPOINTS / step.name / part).absolute()) for workdir in (mine, other))
            jax.tree.map(np.testing.assert_array_equal, a, b)


def test_two_runs_write_the_same_files(base, four_steps, tmp_path):
    fit(tmp_path / "again", f"--config.model.path={base}")
    assert_same_files(four_steps[0], tmp_path / "again", tmp_path)


@pytest.mark.slow
def test_another_seed_writes_others(base, four_steps, tmp_path):
    """So the comparison can fail."""
    fit(tmp_path / "other", f"--config.model.path={base}", "--config.seed=1")
    with pytest.raises(AssertionError):
        assert_same_files(four_steps[0], tmp_path / "other", tmp_path)


def on_eight_devices():
    """Base model and run, each twice, on a mesh with all three axes."""
    mesh = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2", "--config.data.batch_size=4"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assert len(jax.devices()) == 8
        base = base_model(folder / "base")
        for run in ("mine", "other"):
            fit(folder / run, f"--config.model.path={base}", *mesh)
        assert_same_files(folder / "mine", folder / "other", folder)


@pytest.mark.slow
def test_two_runs_on_eight_devices_write_the_same_files():
    in_process_of_devices(on_eight_devices, 8)
