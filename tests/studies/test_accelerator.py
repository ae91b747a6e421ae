"""The study of one accelerator: works run in small, one after the other, and the page says what the figures say."""

import json
import sys

import pytest

from studies.accelerator import page, run
from studies.pages import between


def test_page_is_that_of_its_figures():
    rows = [json.loads(line) for line in (page.DOCS / "accelerator.jsonl").read_text(encoding="utf-8").splitlines()]
    assert between((page.DOCS / "accelerator.md").read_text(encoding="utf-8")).strip() == page.generated(rows).strip()


def test_shares_by_hand():
    work = {"kind": "decode", "shape": "tiny", "prompts": 4}
    row = {"name": "d", "work": work, "commit": "c", "step_s": 0.5, "tokens_per_second": 8.0, "peak_bytes": 2**30}
    shares = page.decoding(row | {"needed_bytes_per_step": 1.2e12}, moved=4.8e12)[3:5]
    assert shares == ["50%", "50%"]


def test_works_in_small(tmp_path, capsys):
    """The command beside has ended before a work is timed, and a work that fails costs itself."""
    works = {"good": {"kind": "ceilings", "shape": "tiny", "prompts": 4}, "bad": {"kind": "none such"}}
    (tmp_path / "works.json").write_text(json.dumps(works), encoding="utf-8")
    mark = tmp_path / "ended"
    beside = f"{sys.executable} -c \"import time; time.sleep(1); open('{mark}', 'w').close()\""
    run.main([f"--output={tmp_path / 'out'}", "--small", f"--works={tmp_path / 'works.json'}", f"--beside={beside}"])
    good, bad = map(json.loads, (tmp_path / "out" / "figures.jsonl").read_text(encoding="utf-8").splitlines())
    assert good["name"] == "good" and good["bytes_per_second"] > 0 and good["flops_per_second"] > 0
    assert bad == {"name": "bad", "work": works["bad"] | run.SMALL, "failed": True}
    assert mark.exists()


def test_output_is_needed(capsys):
    with pytest.raises(SystemExit) as ended:
        run.main([])
    assert ended.value.code == 2
    assert "--output=FOLDER is missing" in capsys.readouterr().err
