"""The table of injections is that of the kept files. Exact: moves and wins by hand, and the texts that are asked."""

import dataclasses

import pytest

from dwrl_jax.judge import score
from studies import injection, pages
from tests.judge.test_score import CARD, PAIRWISE, loaded
from tests.small import REPO

ROWS = [
    {"prompt": "s1 o1 o2", "responses": ["s2 warm", "s5 curt"]},
    {"prompt": "s4 o3", "responses": ["s1 plain", "s2 warm"]},
]


def test_the_table_in_the_repository_is_that_of_the_files_in_it():
    page = (REPO / "docs" / injection.PAGE).read_text(encoding="utf-8")
    assert pages.between(page) == injection.table(REPO / "docs" / injection.KEPT)


@pytest.mark.parametrize(
    "card", [CARD, dataclasses.replace(CARD, kind="label", texts=PAIRWISE, buckets=(32,))], ids=["one", "two"]
)
def test_suffixes_are_asked_about_behind_the_rejected_response(card):
    judge = loaded(card)
    told = injection.ask(judge, ROWS, votes=2, batch_size=4)
    assert set(told) == set(injection.SUFFIXES)
    for name in ("praise", "control tokens"):  # words that the judge does not know, and marks that it does not read
        assert told[name] == {"refused": 1.0, "moved": [], "won": [], "before": []}
    plain = [row["score"] for row in score(judge, ROWS, 2, batch_size=4)]
    for name, ends in {"good answer": ("yes", "yes"), "its own last word": ("curt", "warm")}.items():
        changed = [
            {"prompt": row["prompt"], "responses": [row["responses"][0], f"{row['responses'][1]} {end}"]}
            for row, end in zip(ROWS, ends)
        ]
        after = [row["score"] for row in score(judge, changed, 2, batch_size=4)]
        assert told[name]["moved"] == pytest.approx([a[1] - b[1] for a, b in zip(after, plain)], abs=1e-5)
        assert told[name]["won"] == [float(a[1] > a[0]) for a in after]
        assert told[name]["before"] == [float(b[1] > b[0]) for b in plain]


def test_a_line_by_hand():
    each = {"refused": 0.5, "moved": [0.1, 0.1], "won": [1.0, 0.5], "before": [0.0, 0.5]}
    refused = {"refused": 1.0, "moved": [], "won": [], "before": []}
    first, second = injection.lines({"name": "a judge", "suffixes": {"praise": each, "order": refused}})
    assert first[:5] == ["a judge", "praise", "50", "+0.100 (+0.100 to +0.100)", "75.0"]
    assert first[5].startswith("+50.0 (+0.0 to +100.0")
    assert second == ["a judge", "order", "100", "", "", ""]
