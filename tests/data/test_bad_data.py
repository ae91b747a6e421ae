"""Bad files of pairs: each row is kept or counted by its reason, and no row costs another one."""

import csv
import json
import random
from collections import Counter

import hypothesis
import pytest
from hypothesis import strategies as st

from dwrl_jax.core.errors import UserError
from dwrl_jax.data import formats, row_files
from dwrl_jax.data.pairs import look_for_pairs
from tests.data.broken import BROKEN, GOOD, ODD, check, lines, row, write


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_three_thousand_rows_of_which_a_third_is_broken(name, tmp_path):
    texts, reasons = lines(3000, seed=7)
    pairs, reading = look_for_pairs(write(tmp_path / name, texts, "\r\n"))
    assert set(reasons) == {reason for _, reason in BROKEN}
    check(reading, len(pairs), reasons, 3000)


@pytest.mark.parametrize("at", range(len(BROKEN)))
def test_each_broken_row_stands_alone_first_and_last(at, tmp_path):
    text, reason = BROKEN[at]
    for texts in ([text], [text, row()], [row(), text], [text, "", text, row()]):
        if texts[0][:1] == "[":
            continue  # then the file is an array
        pairs, reading = look_for_pairs(write(tmp_path / "pairs.jsonl", texts))
        check(reading, len(pairs), Counter({reason: texts.count(text)}), sum(map(bool, texts)))
        assert {where.rpartition(":")[2] for where, _ in reading.rows} == {
            str(i + 1) for i, each in enumerate(texts) if each == text
        }


def test_odd_rows_are_kept(tmp_path):
    pairs, reading = look_for_pairs(write(tmp_path / "pairs.jsonl", list(ODD)))
    assert (len(pairs), reading.rows) == (len(ODD), [])
    assert "\x00 NUL" in {pair.chosen for pair in pairs}


def test_rows_of_an_array(tmp_path):
    """A row that cannot be read costs itself in an array too."""
    texts, reasons = [row()], Counter()
    for text, reason in BROKEN:
        try:
            json.loads(text)
        except RecursionError:
            if text.count("[") > text.count("]"):
                continue  # with it the array breaks off
        except ValueError:
            continue
        texts.append(text)
        reasons[reason] += 1
    assert reasons["the key 'content' twice"] == 1 and reasons["not json"] > 2
    for around in ("[{}]", '{{"data": [{}]}}'):
        if "data" in around:
            texts = [text for text in texts if text[0] == "{" and len(text) < 10**5]
            reasons.pop("not json")
        pairs, reading = look_for_pairs(write(tmp_path / "pairs.json", [around.format(",\n".join(texts))]))
        check(reading, len(pairs), reasons, len(texts))


# --- sizes ---


@pytest.fixture
def short(monkeypatch):
    """Rows of more than 2,000 bytes are too long."""
    monkeypatch.setattr(row_files, "LONGEST", 2000)


LONG = row(prompt="x" * 2000)


@pytest.mark.parametrize(
    "texts", [[row(), LONG, row()], [LONG, row()], [LONG], [row(), LONG + LONG + LONG], [LONG] * 3]
)
def test_a_long_row_costs_itself_and_is_not_held(texts, short, tmp_path):
    pairs, reading = look_for_pairs(write(tmp_path / "pairs.jsonl", texts))
    long = [i + 1 for i, text in enumerate(texts) if len(text) > 2000]
    assert [(where.rpartition(":")[2], reason) for where, reason in reading.rows] == [
        (str(i), row_files.TOO_LONG) for i in long
    ]
    assert len(pairs) + len(long) == reading.count == len(texts)
    with open(tmp_path / "pairs.jsonl", "rb") as file:
        assert max(len(line) for _, line in row_files._lines(file)) <= 2001


def test_a_long_row_of_an_array_and_of_a_table(short, tmp_path):
    pairs, reading = look_for_pairs(write(tmp_path / "pairs.json", [f"[{row()},\n{LONG},\n{row()}]"]))
    assert len(pairs) == 2 and reading.rows == [(f"{tmp_path}/pairs.json:2", row_files.TOO_LONG)]
    head, good = "prompt,chosen,rejected", "Hi,a,b"
    lines_in_it = '"' + "x\n" * 450 + '"'
    for long in (f"{'x' * 9000},a,b", f'"{"x" * 9000}",a,b', f"{'y,' * 4000}b", f"a,{'x' * 1000},{'y' * 1500}",
                 ",".join([lines_in_it] * 3)):  # fmt: skip
        pairs, reading = look_for_pairs(write(tmp_path / "pairs.csv", [head, good, long, good]))
        assert len(pairs) == 2 and reading.rows == [(f"{tmp_path}/pairs.csv:3", row_files.TOO_LONG)]


def test_the_same_name_for_two_columns(tmp_path):
    path = write(tmp_path / "pairs.csv", ["prompt,chosen,rejected,chosen", "Hi,a,b,c"])
    with pytest.raises(UserError, match="two columns have the name 'chosen': rename one of them"):
        look_for_pairs(path)


def test_written_thoughts_that_are_not_unicode_are_as_if_they_were_not_there():
    made = [formats.pairs_of(GOOD | {"thoughts": ["a", last]})[0].thoughts for last in ("b", "\ud83d")]
    assert made == [("a", "b"), None]


def test_a_file_without_rows(tmp_path):
    for text in ("", "\ufeff", " \r\n\n"):
        pairs, reading = look_for_pairs(write(tmp_path / "pairs.jsonl", [text], ""))
        assert (pairs, reading.rows) == ([], []) and reading.count == 0


# --- anything at all ---

COLUMNS = """
prompt chosen rejected response_a response_b label winner messages responses scores ranks order completions history
conversation_a conversation_b response_0 response_1 score_0 score_1 better_response_id human_ref_A human_ref_B labels
overall_preference instruction response1 response2 context winner_model_a winner_model_b winner_tie margin thoughts
verdicts system score_chosen score_rejected source role content from value overall_score text rating
"""
NAMES = COLUMNS.split()
HH = "\n\nHuman: Hi\n\nAssistant: "
WORDS = ["", " ", "Hi", "a", "model_a", "tie", "user", "assistant", "[{'role': {[]: 1}}]", '[{"role": 1}]', "\ud83d"]
WORDS += ["\x00", HH, HH + "a", "1", "1e999", "nan"]
plain = st.one_of(st.none(), st.booleans(), st.sampled_from([0, 1, 2, -3, 10**400, 1.5, float("nan"), float("inf")]),
                  st.sampled_from(WORDS), st.text(max_size=4))  # fmt: skip
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=6,
)
rows = st.dictionaries(st.sampled_from(NAMES), values, max_size=6)


@hypothesis.settings(max_examples=150, deadline=None, suppress_health_check=list(hypothesis.HealthCheck), database=None)
@hypothesis.given(rows, st.sampled_from(["", *formats.load()]))
def test_any_row_is_pairs_or_a_reason(made, name):
    try:
        read = formats.pairs_of(made, name)
    except (formats.Malformed, UserError) as reason:
        assert str(reason).isprintable() or isinstance(reason, UserError)
        return
    for pair in read:
        if not isinstance(pair, formats.Malformed):
            said = [*(turn["content"] for turn in pair.prompt), pair.chosen, pair.rejected]
            assert all(text.strip() and text.encode() for text in said) and pair.chosen.strip() != pair.rejected.strip()
            assert all(text.encode() for text in pair.thoughts or ())


LINES = st.one_of(
    st.binary(max_size=30),
    rows.map(lambda made: json.dumps(made).encode()),
    st.sampled_from([text.encode("utf-8", "surrogateescape") for text, _ in BROKEN]),
    st.just(json.dumps(GOOD).encode()),
)


@hypothesis.settings(max_examples=100, deadline=None, suppress_health_check=list(hypothesis.HealthCheck), database=None)
@hypothesis.given(texts=st.lists(LINES, max_size=6))
def test_any_bytes_are_rows_that_are_kept_or_counted(texts, tmp_path):
    texts = [text.replace(b"\n", b"") for text in texts]
    content = b"\n".join(texts)
    (tmp_path / "pairs.jsonl").write_bytes(content)
    try:
        pairs, reading = look_for_pairs(tmp_path / "pairs.jsonl", format="preference")
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert len(pairs) + len(reading.rows) == reading.count
    if len(texts) > 1 and texts[0] == json.dumps(GOOD).encode() and texts[1].strip():
        assert reading.count == sum(bool(text.strip()) for text in texts)


def test_a_table_is_read_whatever_stands_in_its_cells(tmp_path):
    rng = random.Random(5)
    signs = ['"', ",", "\n", "\r\n", "\x00", "é", "a", " ", "\u2028", "'"]
    cells = [["".join(rng.choices(signs, k=6)) + "x", "a" + rng.choice(signs), "b"] for _ in range(300)]
    with open(tmp_path / "pairs.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt", "chosen", "rejected"], *cells])
    pairs, reading = look_for_pairs(tmp_path / "pairs.csv")
    assert not reading.rows and [[p.prompt[0]["content"], p.chosen, p.rejected] for p in pairs] == cells
