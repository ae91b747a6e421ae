"""Exact: the pairs in the rows of each format, and the reasons of rows that have none."""

import json

import pytest

from dwrl_jax.core.errors import UserError
from dwrl_jax.data import formats
from dwrl_jax.data.formats.parts.conversation import make_pair
from dwrl_jax.data.pairs import Pair, read_pairs, repeats
from tests.data.test_pairs import GOOD_ROW, assistant, user, write
from tests.small import REPO

ASKED = [user("x")]
TWO = {"prompt": "x", "response_a": "y", "response_b": "z"}
NUMBERED = {"prompt": "x", "response_1": "y", "response_2": "z"}
LISTED = {"prompt": "x", "responses": ["y", "z"]}
ARENA = {"conversation_a": [*ASKED, assistant("z")], "conversation_b": [*ASKED, assistant("y")]}
ROUND = {"prompt": '["x"]', "response_a": '["z"]', "response_b": '["y"]'}
SHP = {"history": "x", "human_ref_A": "y", "human_ref_B": "z", "score_A": 5, "score_B": 2}
NECTAR = [{"answer": "z", "rank": 2.0}, {"answer": "y", "rank": 1.0}]
SCORED = [{"response": "z", "overall_score": 4.0}, {"response": "y", "overall_score": 6.5}]

# every row says that y is better than z as an answer to x: (row, format, margin)
ROWS = [
    (TWO | {"winner": "a"}, "labelled", None),
    (TWO | {"label": "response_a", "margin": "1.5"}, "labelled", 1.5),
    (TWO | {"preference": "model_a"}, "labelled", None),
    ({"question": "x", "answer0": "z", "answer1": "y", "label": 1}, "labelled", None),
    (NUMBERED | {"preferred": "first"}, "labelled", None),
    (NUMBERED | {"label": "response_1"}, "labelled", None),
    ({"input": "x", "output_1": "z", "output_2": "y", "label": 2}, "labelled_from_1", None),
    (NUMBERED | {"preference_strength": -2}, "helpsteer", 2.0),
    ({"context": ASKED, "response1": "z", "response2": "y", "overall_preference": 3}, "helpsteer", 3.0),
    ({"prompt": "x", "response_0": "z", "response_1": "y", "better_response_id": 1}, "pku_saferlhf", None),
    (ARENA | {"winner": "model_b"}, "arena", None),
    (ROUND | {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}, "arena", None),
    (SHP | {"labels": 1}, "shp", 3.0),
    (LISTED | {"scores": [3, 1.5]}, "ratings", 1.5),
    ({"prompt": "x", "answers": [{"text": "y", "score": 2}, {"text": "z", "score": 1}]}, "ratings", 1.0),
    ({"question": "x", "answer_0": "z", "answer_1": "y", "score_0": -1, "score_1": 1}, "ratings", 2.0),
    ({"instruction": "x", "completions": SCORED}, "ultrafeedback", 2.5),
    (LISTED | {"ranks": [1, 2]}, "ranks", None),
    ({"prompt": "x", "answers": NECTAR}, "ranks", None),
    (LISTED | {"order": [0, 1]}, "order", None),
    (GOOD_ROW | {"score_chosen": 8, "score_rejected": 4.5}, "preference", 3.5),
    (GOOD_ROW | {"chosen_rating": "5", "rejected_rating": "3", "margin": 1}, "preference", 1.0),
    ({"conversations": [{"from": "human", "value": "x"}], "chosen": {"from": "gpt", "value": "y"},
      "rejected": {"from": "gpt", "value": "z"}}, "preference", None),
    (GOOD_ROW | {"prompt": json.dumps(ASKED)}, "preference", None),
    (GOOD_ROW | {"prompt": str(ASKED)}, "preference", None),
    ({"chosen": "x y", "rejected": "x z"}, "implicit_prompt", None),
    ({"chosen": "Human: x\n\nAssistant: y", "rejected": "Human: x\n\nAssistant: z"}, "hh_rlhf", None),
]  # fmt: skip


@pytest.mark.parametrize(("row", "kind", "margin"), ROWS)
def test_a_row_of_each_format_gives_the_same_pair(row, kind, margin):
    assert formats.owners(row) == (kind,)
    (pair,) = formats.pairs_of(row)
    assert pair == Pair((user("x"),), pair.chosen, pair.rejected, margin, pair.source)
    assert (pair.chosen.strip(), pair.rejected.strip()) == ("y", "z")
    assert formats.unused(row | {"id": 7, "note": None}, kind) == ["id"]


def test_each_format_has_a_row_here_and_a_line_in_the_docs():
    detected = {name for name, kind in formats.load().items() if kind.detect}
    assert detected - {kind for _, kind, _ in ROWS} == {"labelled_from_0"}
    page = (REPO / "docs" / "data.md").read_text()
    assert all(f"\n| `{name}` |" in page for name in formats.load())


TIES = [
    TWO | {"winner": "tie (bothbad)"},
    NUMBERED | {"preference_strength": 0},
    ARENA | {"winner": "tie"},
    ROUND | {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1},
    LISTED | {"scores": [1, 1]},
    LISTED | {"ranks": [1, 1]},
    GOOD_ROW | {"score_chosen": 4, "score_rejected": 4.0},
]


def test_ties_are_counted_and_no_pairs(tmp_path):
    pairs, reading = read_pairs(write(tmp_path / "ties.jsonl", [*TIES, GOOD_ROW]), strict=True)
    assert len(pairs) == 1 and sum(n for reason, n in reading.counts.items() if reason.startswith("tie")) == len(TIES)


UNUSABLE = [
    (TWO | {"winner": "c"}, "label 'c' names no response"),
    (TWO | {"winner": ""}, "no label"),
    (NUMBERED | {"preference_strength": "much"}, "no label"),
    (ARENA | {"winner": None}, "unknown format: conversation_a, conversation_b, winner"),
    (LISTED | {"scores": [1]}, "2 responses, but 1 values"),
    ({"instruction": "x", "completions": 3}, "unknown format: completions, instruction"),
    (GOOD_ROW | {"score_chosen": 1, "score_rejected": 2}, "score_chosen is below score_rejected"),
    (GOOD_ROW | {"tools": [{"type": "function"}]}, "tools"),
    (GOOD_ROW | {"images": ["cat.png"]}, "images"),
    (GOOD_ROW | {"prompt": [{"role": "observation", "content": "s"}]}, "tool turn"),
    (GOOD_ROW | {"chosen": [assistant("y") | {"tool_calls": [{}]}]}, "tool calls"),
    (GOOD_ROW | {"chosen": [assistant("y") | {"reasoning_content": "hm"}]}, "reasoning_content"),
    (GOOD_ROW | {"prompt": [user([{"type": "image_url", "image_url": {}}])]}, "image_url in content"),
    (GOOD_ROW | {"system": "a", "prompt": [{"role": "system", "content": "b"}, *ASKED]}, "two system texts"),
    (GOOD_ROW | {"chosen": "\ud83d"}, r"text is not Unicode"),
    (GOOD_ROW | {"chosen": [*ASKED, assistant("y"), user("u"), assistant("v")]}, "conversations part"),
    ({"chosen": "y", "rejected": "z"}, "missing column: prompt"),
]


@pytest.mark.parametrize(("row", "reason"), UNUSABLE)
def test_an_unusable_row_says_why(row, reason):
    with pytest.raises(formats.Malformed, match=reason):
        formats.pairs_of(row)


def test_rows_that_hold_anything_cost_themselves(tmp_path):
    """The type of each value of each known row is changed."""
    strange = (3, [], {}, "", True, [[]], [None], {"role": 1}, [{"role": [], "content": 1}])
    rows = [row | {key: value} for row, *_ in ROWS for key in row for value in strange]
    _, reading = read_pairs(write(tmp_path / "strange.jsonl", [*rows, *[GOOD_ROW] * len(rows)]))
    assert reading.count == 2 * len(rows) and reading.counts["can have the formats labelled_from_0 and labelled_from_1"]


def test_of_a_list_each_two_that_differ_are_a_pair():
    row = {"prompt": "x", "responses": ["a", "b", "c", "d"], "scores": [1, 4, None, 1]}
    read = formats.pairs_of(row)
    pairs = [(p.chosen, p.rejected, p.margin) for p in read if isinstance(p, Pair)]
    assert pairs == [("b", "a", 3), ("b", "d", 3)]
    assert [str(p) for p in read if not isinstance(p, Pair)] == ["response without a value", "tie"]
    best_first = formats.pairs_of({"prompt": "x", "responses": ["a", "b", "c"]}, "best_first")
    assert [(p.chosen, p.rejected) for p in best_first] == [("a", "b"), ("a", "c"), ("b", "c")]
    order = formats.pairs_of({"prompt": "x", "responses": ["a", "b", "c"], "order": [3, 1, 2]})
    assert [(p.chosen, p.rejected) for p in order] == [("a", "b"), ("c", "a"), ("c", "b")]


def test_the_other_rows_decide_what_a_number_means(tmp_path):
    """A label 2 beside columns 1 and 2 counts from 1; without it nobody knows, and the error names the candidates."""
    path = write(tmp_path / "labels.jsonl", [NUMBERED | {"label": label} for label in (1, 0, 1, 2)])
    pairs, reading = read_pairs(path)
    assert [p.chosen for p in pairs] == ["y", "y", "z"] and reading.counts == {"tie": 1}
    path = write(tmp_path / "unsure.jsonl", [NUMBERED | {"label": label} for label in (1, 0, 1)])
    with pytest.raises(UserError, match=r"unsure.jsonl:1 .*labelled_from_0 and labelled_from_1, .*data.format="):
        read_pairs(path)
    assert [p.chosen for p in read_pairs(path, format="labelled_from_0")[0]] == ["z", "y", "z"]
    assert [p.chosen for p in read_pairs(path, format="labelled_from_1")[0]] == ["y", "y"]
    for label in (1, 2):
        assert len(formats.owners(TWO | {"label": label})) == 2, "beside a and b a number is never certain"


def test_a_ranking_is_ranks_or_an_order(tmp_path):
    listed = {"prompt": "x", "responses": ["a", "b", "c"]}
    path = write(tmp_path / "ranking.jsonl", [listed | {"ranking": [3, 1, 2]}])
    with pytest.raises(UserError, match="order and ranks"):
        read_pairs(path)
    assert [p.chosen for p in read_pairs(path, format="order")[0]] == ["a", "c", "c"]
    path = write(tmp_path / "ranking.jsonl", [listed | {"ranking": [3, 1, 2]}, listed | {"ranking": [1, 1, 2]}])
    assert [p.chosen for p in read_pairs(path)[0]] == ["b", "c", "b", "a", "b"]
    both = [{"ranking": [3, 1, 2]}, {"ranking": [1, 1, 2]}, {"order": [0, 1, 2]}]
    with pytest.raises(UserError, match="ranking.jsonl:1 .*order and ranks"):
        read_pairs(write(tmp_path / "ranking.jsonl", [listed | more for more in [both[0]] * 3 + both[1:]]))


def test_a_format_that_is_given(tmp_path):
    path = write(tmp_path / "rows.jsonl", [TWO | {"winner": "a"}, GOOD_ROW])
    pairs, reading = read_pairs(path, format="labelled")
    assert len(pairs) == 1 and reading.rows[0][1].startswith("not of format labelled, which needs prompt, response_a")
    with pytest.raises(UserError, match="data.format='arenna': no such format; choose one of arena, best_first"):
        read_pairs(path, format="arenna")


def test_what_is_not_read_is_named(tmp_path):
    rows = [
        GOOD_ROW | {"id": 1, "messages": [user("x")], "images": [], "tools": "[]", "note": ""},
        GOOD_ROW | {"chosen": [assistant("y") | {"model": "m", "weight": None}]},
    ]
    _, reading = read_pairs(write(tmp_path / "more.jsonl", rows))
    assert reading.unused == {"id": 1, "messages": 1, "chosen[].model": 1}
    assert reading.remarks() == "format preference 2; columns not used: chosen[].model, id, messages"


def test_optional_columns_that_cannot_be_read_cost_nothing():
    for more in ({"margin": "big"}, {"margin": [1.0]}, {"margin": float("nan")}, {"score_chosen": "?"}):
        assert make_pair(GOOD_ROW | more, **GOOD_ROW).margin is None
    for more in ({"thoughts": ["one"]}, {"verdicts": [0, 2]}, {"thoughts": ["a", "b"], "verdicts": 3}):
        pair = make_pair(GOOD_ROW | more, **GOOD_ROW)
        assert (pair.thoughts, pair.verdicts) == (None, None)


def test_duplicates_and_contradictions():
    pairs = [make_pair({}, prompt=p, chosen=c, rejected=r) for p, c, r in ("xyz", "xyz", "xzy", "uyz", "vab", "vba")]
    pairs.append(make_pair({}, prompt=" x", chosen="y ", rejected="z"))
    assert repeats(pairs).summary() == "2 duplicates, 2 contradictions"
