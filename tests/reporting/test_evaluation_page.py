"""The page and the table about evaluations that were written by hand."""

import json
import re

import numpy as np
import pytest

from dwrl_jax.core import files
from dwrl_jax.core.errors import UserError
from dwrl_jax.evaluation import run
from dwrl_jax.judge.card import JudgeCard, as_json
from dwrl_jax.reporting.evaluation_page import write_page
from dwrl_jax.reporting.evaluation_text import compared, table

SHARP = {"right": [0.8, 0.9, 0.7, 0.8], "wrong": [0.1, 0.2, 0.1, 0.2]}


def row(index, wins):
    """A scored pair about which the judge is right or wrong."""
    plain = [0.4, 0.5] if index % 2 else [0.5, 0.4]
    votes = [SHARP["right"], SHARP["wrong"]] if wins else [SHARP["wrong"], SHARP["right"]]
    return {
        "id": f"row{index}",
        "where": f"f:{index}",
        "subset": f"set {index % 2}",
        "prompt": f"<b>question {index}",
        "responses": [f"first {index}", f"second {index}"],
        "right": [True, False],
        "score": [float(np.mean(each)) for each in votes],
        "log_odds": [0.0, 0.0],
        "votes": votes,
        "rank": [1, 2] if np.mean(votes[0]) > np.mean(votes[1]) else [2, 1],
        "thoughts": [[f"thought {index}{i}{k}" for k in range(4)] for i in range(2)],
        "no_thought": {"score": plain, "votes": [plain[:1], plain[1:]]},
        "tokens": {"prefix": 10, "thoughts": 30},
    }


def write(folder, outcomes, benchmark="pairs", kind="verdict", more=(), data="f.jsonl.gz"):
    """A finished evaluation with these outcomes."""
    card = as_json(JudgeCard(kind=kind))
    about = {
        "benchmark": benchmark,
        "data": data,
        "rows": "",
        "judge": "m",
        "card": card,
        "votes": 4,
        "seed": 0,
        "commit": "abc",
    }
    run.begin(folder, json.loads(json.dumps(about)))
    files.write_lines(folder / run.ROWS, [*(row(i, wins) for i, wins in enumerate(outcomes)), *more])
    files.write_json(folder / run.CLOCK, {"seconds": 2.0, "tokens": 60, "positions": 80})
    run.finish(folder)
    return run.read(folder)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A judge that is right about 6 of 8 pairs, and one that is right about 7 of them."""
    folder = tmp_path_factory.mktemp("two")
    first = write(folder / "first", [1, 1, 0, 1, 1, 0, 1, 1])
    bad = {"id": "bad", "where": "f:9", "error": "too long: 999 tokens"}
    return first, write(folder / "second", [1, 1, 0, 1, 1, 1, 1, 1], more=[bad])


def text_of(page):
    without = re.sub(r"<svg.*?</svg>|<style>.*?</style>|<[^>]+>", " ", page.read_text(), flags=re.S)
    return " ".join(without.split())


def test_the_summary_by_hand(two):
    summary = two[0].summary
    assert (summary["overall"], summary["n"], summary["votes"], summary["padding"]) == (0.75, 8, 4, 0.25)
    assert summary["subsets"] == {"set 0": 0.75, "set 1": 0.75} and summary["rows per second"] == 4
    assert summary["no_thought"]["overall"] == 0.5 and summary["no_thought"]["thoughts add"]["overall"] == 0.25
    assert summary["pairs"]["stability"] == 1 and summary["pairs"]["by votes"] == {"1": 0.75, "2": 0.75, "4": 0.75}
    odds = np.log(0.8 / 0.15)
    assert summary["pairs"]["nll"] == pytest.approx(0.75 * np.log1p(np.exp(-odds)) + 0.25 * np.log1p(np.exp(odds)))
    assert summary["cost"] == {"thoughts per pair": 8, "tokens per pair": 40}


def test_the_page_of_one_judge(two, tmp_path):
    page = write_page(tmp_path / "report.html", [[two[0]]])
    told = text_of(page)
    assert told.count("75.0 %") >= 3 and "without a thought" in told and "thoughts add, in points +25.0" in told
    assert "less the first" not in told and page.read_text().count("<svg") == 2
    assert "Most confident mistakes of first" in told and "first 2" in told and "thought 200" in told
    assert "<b>question 2" not in page.read_text(), "texts are escaped"
    assert "://" not in page.read_text().replace("http://www.w3.org", ""), "it loads nothing"


def test_two_judges_beside_each_other(two, tmp_path):
    told = text_of(write_page(tmp_path / "report.html", [[two[0]], [two[1]]]))
    assert "2 judges beside each other" in told and "+12.5" in told and "too long 1" in told
    lines = compared([[two[0]], [two[1]]]).splitlines()
    assert "75.0%" in lines[1] and re.search(r"87.5% .* \+12.5 .*87.5%$", lines[2])


def test_the_table_of_one_judge(two):
    lines = table([two[1]]).splitlines()
    assert lines[0].startswith("preference pairs, 4 votes") and re.match(r"with thoughts +87.5%", lines[1])
    assert lines[-1].startswith("1 rows without a score (too long 1)")


def test_a_pairwise_judge_can_change_its_mind(tmp_path):
    """Both orders say that the first response is better: a flip, a tie of JudgeBench, half of LLMBar."""
    flip = row(0, True) | {"votes": [[0.9] * 4, [0.8] * 4], "score": [0.55, 0.45]}
    flip["no_thought"] = {"score": [0.5, 0.5], "votes": [[0.5], [0.5]]}
    for name, overall in (("llmbar", 0.5), ("judgebench", 0.0), ("pairs", 1.0)):
        about = write(tmp_path / name, [], name, "label", more=[flip])
        assert about.summary["overall"] == overall, name
        assert about.summary["pairs"]["consistency"] == 0
        assert about.summary["pairs"]["position bias"] == pytest.approx(0.35)
        write_page(tmp_path / name / "report.html", [[about]])


def test_nothing_scored_is_said(tmp_path):
    with pytest.raises(UserError, match="no row could be scored, the first for: too long"):
        write(tmp_path, [], more=[{"id": "bad", "where": "f:9", "error": "too long: 999 tokens"}])
