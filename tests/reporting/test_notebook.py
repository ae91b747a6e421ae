"""Figures and pages for notebooks say what a run's files say."""

import json
import re

import numpy as np
import pytest

from dwrl_jax.core.errors import UserError
from dwrl_jax.reporting import notebook, suite
from dwrl_jax.workdir import records
from tests.reporting.test_report import ATTACK, results, thoughts, write_jsonl


@pytest.fixture
def run(tmp_path):
    """A run with two votes on pairs 0 to 7: 1 and 3 become right, 2 and 6 wrong; thoughts of pairs 0 to 5."""
    both = results()
    (tmp_path / "results.json").write_text(
        json.dumps({**both, **{m: {"k2": both[m]["k8"]} for m in ("base", "trained")}})
    )
    before, after = [1, -1, 1, -1, 1, 1, 3, -1], [1, 1, -2, 3, 1, 2, -3, -1]
    for name, margin in (("base", before), ("trained", after)):
        sides = np.stack([np.full(8, -4.0), -4.0 - np.array(margin)], 1)  # a log score of either side
        votes = np.log(np.exp(sides)[..., None] * np.array([0.5, 1.5]))  # of which this is the mean
        records.write_scores(tmp_path / "eval" / f"{name}.jsonl", np.arange(8), votes)
    write_jsonl(tmp_path / "thoughts.jsonl", [row for step in (0, 100, 200) for row in thoughts(step)])
    rows = [{"step": s, "train/misalignment_weight": 0.5, "train/effective_thoughts": 2.0 + s} for s in range(5)]
    write_jsonl(tmp_path / "metrics.jsonl", rows)
    return tmp_path


def test_minds_are_means_over_votes(run):
    minds = notebook.read_minds(run)
    np.testing.assert_allclose(minds.before, [1, -1, 1, -1, 1, 1, 3, -1], atol=1e-6)
    np.testing.assert_allclose(minds.after, [1, 1, -2, 3, 1, 2, -3, -1], atol=1e-6)


def test_changed_pairs_by_size_where_thoughts_were_kept(run):
    assert notebook.shown(run) == list(range(6))
    assert notebook.changed(run) == {"right": [3, 1], "wrong": [2]}


def test_thoughts_before_and_after_in_the_order_asked_for(run):
    text = notebook.thoughts_page(run, [4, 2]).text
    assert re.findall(r"<h3>Pair (\d)", text) == ["4", "2"]
    assert text.count("<b>Before</b>, step 0") == text.count("<b>After</b>, step 200") == 2
    assert ATTACK[:8] not in text and "&lt;script&gt;" in text


def test_a_page_stays_in_its_frame():
    shown = notebook.Page('<b title="x">&amp; \ud83d</b>', height=7)._repr_html_()
    assert 'srcdoc="&lt;b title=&quot;x&quot;&gt;&amp;amp; ?&lt;/b&gt;"' in shown and 'height="7"' in shown


def test_figures_hold_the_numbers(run):
    axes = notebook.minds_figure(run).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["same side", "now right: 2", "now wrong: 2"]
    votes, said = notebook.quality_figure(run).axes
    np.testing.assert_allclose([line.get_ydata()[-1] for line in votes.lines], [5 / 8, 5 / 8])
    assert len(said.lines) == 3
    misalignment, effective = notebook.weights_figure(run).axes
    np.testing.assert_allclose(effective.lines[0].get_ydata(), np.arange(2.0, 7.0))
    np.testing.assert_allclose(misalignment.lines[0].get_ydata(), 0.5)


def test_calibration_by_hand():
    """Ten bins: 0.72 and 0.77 lie in two of them."""
    margin = np.log([0.72 / 0.28] * 3 + [0.28 / 0.72] + [0.77 / 0.23] * 3 + [0.93 / 0.07] * 2)
    np.testing.assert_allclose(suite.calibration(margin, least=3), [(0.72, 0.75), (0.77, 1.0)])


@pytest.mark.parametrize(
    "file, call, message",
    [
        ("results.json", notebook.read_minds, "results.json does not exist"),
        ("eval/base.jsonl", notebook.quality_figure, "base.jsonl does not exist"),
        ("thoughts.jsonl", notebook.changed, "thoughts of two moments"),
        ("metrics.jsonl", notebook.weights_figure, "no train/misalignment_weight"),
        ("eval/none", notebook.report_page, "report.html does not exist"),
        ("eval/none", lambda run: notebook.thoughts_page(run, [7]), "pair 7: no thoughts"),
    ],
)
def test_what_is_missing_is_named(run, file, call, message):
    (run / file).unlink(missing_ok=True)
    with pytest.raises(UserError, match=message):
        call(run)
