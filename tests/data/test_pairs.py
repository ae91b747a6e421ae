"""Pair files, real and broken: every format of the field, every reason to leave a row out."""

import dataclasses
import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from dwrl_jax.core.errors import UserError
from dwrl_jax.data import formats
from dwrl_jax.data.formats.parts.conversation import make_pair
from dwrl_jax.data.pairs import read_pairs
from tests.small import REPO


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


PARTED = "conversations part before the last turn"
GOOD_ROW = {"prompt": "x", "chosen": "y", "rejected": "z"}


def write(path, rows):
    """A .jsonl or .jsonl.gz of rows; a row that is a string is a line as it stands."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return path


# --- exact: reading ---


@pytest.mark.parametrize(
    "name, count",
    [
        ("hh_rlhf/train", 3598),
        ("hh_rlhf/train_extra", 1500),
        ("hh_rlhf/validation", 500),
        ("llmbar/llmbar", 418),
        ("pandalm/pandalm", 700),
        ("gsm8k_pairs/gsm8k_pairs", 731),
    ],
)
def test_converted_files_have_no_malformed_row(shared_data, name, count):
    pairs, skipped = read_pairs(shared_data / f"{name}.jsonl.gz", strict=True)
    assert len(pairs) == count and not skipped.rows
    assert all(pair.source for pair in pairs)


def test_raw_hh_rlhf(shared_data):
    path = shared_data / "hh_rlhf" / "raw_helpful-base_test_first200.jsonl.gz"
    pairs, skipped = read_pairs(path)
    assert skipped.rows == [(f"{path}:121", "empty final turn"), (f"{path}:169", PARTED)]
    assert skipped.counts == {"empty final turn": 1, PARTED: 1}
    assert len(pairs) == 198 and pairs[120].where == f"{path}:122"
    with pytest.raises(UserError, match=r"\.gz:121: empty final turn"):
        read_pairs(path, strict=True)


def test_raw_rows_are_the_converted_ones(shared_data):
    folder = shared_data / "hh_rlhf"
    raw, _ = read_pairs(folder / "raw_helpful-base_test_first200.jsonl.gz")
    by_line = {int(pair.where.rpartition(":")[2]) - 1: pair for pair in raw}
    converted, _ = read_pairs(folder / "train.jsonl.gz")
    lines = json.loads((folder / "index.json").read_text())["train"]
    compared = 0
    for line, pair in zip(lines, converted):
        source, _, number = line.partition(":")
        if source == "helpful-base" and int(number) in by_line:
            other = by_line[int(number)]
            assert (pair.prompt, pair.chosen, pair.rejected) == (other.prompt, other.chosen, other.rejected)
            compared += 1
    assert compared > 100


@pytest.mark.parametrize(
    "row",
    [
        GOOD_ROW,
        {"prompt": [user("x")], "chosen": "y", "rejected": "z"},
        {"prompt": "x", "chosen": [assistant("y")], "rejected": [assistant("z")]},
        {"chosen": [user("x"), assistant("y")], "rejected": [user("x"), assistant("z")]},
        {"prompt": "x", "chosen": [user("x"), assistant("y")], "rejected": [user("x"), assistant("z")]},
        {"chosen": "\n\nHuman: x\n\nAssistant: y", "rejected": "\n\nHuman: x\n\nAssistant: z"},
        {"prompt": "\n\nHuman: x\n\nAssistant:", "chosen": "y", "rejected": "z"},
    ],
)
def test_every_format_gives_the_same_pair(tmp_path, row):
    (pair,), _ = read_pairs(write(tmp_path / "set.jsonl", [row]), strict=True)
    assert (pair.prompt, pair.chosen, pair.rejected, pair.source) == ((user("x"),), "y", "z", "set")
    assert (pair.margin, pair.thoughts, pair.verdicts) == (None, None, None)


def test_system_turn_and_optional_columns(tmp_path):
    system = {"role": "system", "content": "s"}
    row = {
        "prompt": "x",
        "chosen": [system, user("x"), assistant("y")],
        "rejected": [system, user("x"), assistant("z")],
        "margin": 2,
        "source": "here",
        "thoughts": [" good ", "bad"],
        "verdicts": [0, 1],
    }
    (pair,), _ = read_pairs(write(tmp_path / "set.jsonl.gz", [row]), strict=True)
    assert pair.prompt == (system, user("x"))
    assert (pair.margin, pair.source, pair.thoughts, pair.verdicts) == (2.0, "here", ("good", "bad"), (0, 1))


MALFORMED = [
    ('{"prompt": "x", ', "not json"),
    ("[1, 2]", "not json"),
    ({"prompt": "x", "rejected": "z"}, "missing column: chosen"),
    ({"prompt": "x", "chosen": "y", "rejected": None}, "missing column: rejected"),
    ({"chosen": "y", "rejected": "z"}, "missing column: prompt"),
    (GOOD_ROW | {"chosen": 3}, "not a string or message list"),
    (GOOD_ROW | {"prompt": []}, "missing column: prompt"),
    (GOOD_ROW | {"prompt": [3]}, "not a string or message list"),
    (GOOD_ROW | {"prompt": [{"role": "user", "content": None}]}, "content is null"),
    (GOOD_ROW | {"rejected": " \n"}, "empty final turn"),
    (GOOD_ROW | {"prompt": " "}, "empty prompt turn"),
    (GOOD_ROW | {"prompt": "u", "chosen": [user("x"), assistant("y")]}, "prompts differ"),
    ({"chosen": [user("x"), assistant("y")], "rejected": [user("u"), assistant("z")]}, "prompts differ"),
    (GOOD_ROW | {"prompt": [user("x"), user("u")]}, "consecutive same role"),
    (GOOD_ROW | {"prompt": [user("x"), assistant("u")]}, "consecutive same role"),
    (GOOD_ROW | {"prompt": [assistant("u"), user("x")]}, "first turn not user"),
    (GOOD_ROW | {"prompt": [user("u"), {"role": "system", "content": "s"}]}, "system turn not first"),
    (GOOD_ROW | {"prompt": [{"role": "judge", "content": "s"}]}, "unknown role: judge"),
    ({"chosen": [user("x"), user("y")], "rejected": [user("x"), user("z")]}, "last turn not assistant"),
    (GOOD_ROW | {"rejected": "y "}, "chosen equals rejected"),
    ({"question": "x", "answer": "y"}, "unknown format: answer, question"),
]


def test_every_malformed_row_is_listed_with_its_line(tmp_path):
    path = write(tmp_path / "bad.jsonl", [GOOD_ROW, "", *(row for row, _ in MALFORMED)])
    pairs, skipped = read_pairs(path)
    assert [pair.where for pair in pairs] == [f"{path}:1"]
    assert skipped.rows == [(f"{path}:{i}", reason) for i, (_, reason) in enumerate(MALFORMED, 3)]
    assert skipped.counts["not json"] == 2 and "consecutive same role 2" in skipped.summary()


@pytest.mark.parametrize("row, reason", MALFORMED)
def test_strict_names_line_and_reason(tmp_path, row, reason):
    with pytest.raises(UserError, match=f"bad.jsonl:2: {reason}") as error:
        read_pairs(write(tmp_path / "bad.jsonl", [GOOD_ROW, row]), strict=True)
    assert "\n" not in str(error.value)


def test_bytes_that_are_not_utf8(tmp_path):
    path = tmp_path / "bytes.jsonl"
    path.write_bytes(json.dumps(GOOD_ROW).encode() + b'\n{"prompt": "\xff"}\n')
    assert read_pairs(path)[1].rows == [(f"{path}:2", "not json")]


def test_files_that_cannot_be_used(tmp_path):
    cut = write(tmp_path / "cut.jsonl.gz", [GOOD_ROW] * 500)
    cut.write_bytes(cut.read_bytes()[:-12])
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_text("not gzip")
    for path in (cut, plain, tmp_path / "absent.jsonl", tmp_path / "absent.parquet", tmp_path / "absent"):
        with pytest.raises(UserError, match="cannot be read") as error:
            read_pairs(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)
    with pytest.raises(UserError, match="no usable row, 1 left out .not json 1."):
        read_pairs(write(tmp_path / "none.jsonl", ["oops"]))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, shared_data):
    """A folder with the same 40 rows as JSON lines, Parquet and two data sets, and their pairs."""
    import datasets  # slow: only where it is needed

    folder = tmp_path_factory.mktemp("saved")
    path = shared_data / "llmbar" / "llmbar.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:40]
    write(folder / "set.jsonl.gz", ["", *rows[:20], "", *rows[20:]])
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(folder / "set.parquet", batch_size=16)
    table.save_to_disk(folder / "alone")
    datasets.DatasetDict({"test": table}).save_to_disk(folder / "splits")
    return folder, read_pairs(path)[0][:40]


def content(pairs):
    return [(p.prompt, p.chosen, p.rejected, p.source) for p in pairs]


def test_parquet_and_saved_data_sets(saved):
    folder, expected = saved
    for name, split in (("set.parquet", "train"), ("alone", "train"), ("splits", "test")):
        pairs, skipped = read_pairs(folder / name, split=split)
        assert content(pairs) == content(expected) and not skipped.rows
        assert pairs[2].where == f"{folder / name}:3"
    with pytest.raises(UserError, match="split 'train'"):
        read_pairs(folder / "splits")


# --- exact: drawing ---


def test_every_container_draws_the_same_rows(saved):
    folder, expected = saved
    drawn = sorted(np.random.default_rng(3).permutation(40)[:12].tolist())
    for name, split in (("set.jsonl.gz", "train"), ("set.parquet", "train"), ("alone", "train"), ("splits", "test")):
        pairs, skipped = read_pairs(folder / name, split=split, count=12, seed=3)
        assert content(pairs) == content([expected[i] for i in drawn])
        assert skipped.undrawn == 28 and skipped.summary() == "28 not drawn, 0 left out"
        lines = [i + 2 + (i >= 20) if name.endswith("gz") else i + 1 for i in drawn]
        assert [pair.where for pair in pairs] == [f"{folder / name}:{line}" for line in lines]
    assert content(read_pairs(folder / "set.parquet", count=12, seed=4)[0]) != content(pairs)


def test_more_than_all_rows_are_all_of_them(saved):
    folder, expected = saved
    for count in (40, 41):
        pairs, skipped = read_pairs(folder / "set.jsonl.gz", count=count)
        assert content(pairs) == content(expected) and skipped.undrawn == 0


def test_a_drawn_row_that_is_malformed_is_listed_and_not_replaced(tmp_path):
    path = write(tmp_path / "half.jsonl", ["oops", GOOD_ROW] * 50)
    pairs, skipped = read_pairs(path, count=20)
    assert len(pairs) + len(skipped.rows) == 20 and skipped.undrawn == 80
    assert 0 < len(pairs) < 20 and skipped.counts == {"not json": 20 - len(pairs)}


# --- exact: formats ---


def test_a_row_of_no_format_is_listed(tmp_path):
    path = write(tmp_path / "other.jsonl", [{"question": "x", "answer": "y"}])
    with pytest.raises(UserError, match="1 left out .unknown format: answer, question 1.; give columns .*rejected"):
        read_pairs(path)


@pytest.fixture
def with_formats(monkeypatch):
    """Adds formats to those of the folder, as a file there does."""
    known = formats.load()

    def add(**more):
        monkeypatch.setattr(formats, "load", lambda: known | more)
        formats._candidates.cache_clear()

    yield add
    formats._candidates.cache_clear()


def test_a_row_may_stand_for_several_pairs(tmp_path, with_formats):
    """A list of responses, the best first; a draw counts pairs."""

    def pairs(row):
        for worse in row["ranked"][1:]:
            yield make_pair(row, prompt=row["prompt"], chosen=row["ranked"][0], rejected=worse)

    with_formats(
        ranked=formats.Format(
            columns="prompt, ranked", has=lambda names: "ranked" in names, pairs=pairs, uses=lambda names: set()
        )
    )
    rows = [{"prompt": f"x{i}", "ranked": ["a", "b", "c", "d"]} for i in range(10)]
    path = write(tmp_path / "lists.jsonl", [*rows, GOOD_ROW])
    found, _ = read_pairs(path)
    assert len(found) == 31 and [pair.rejected for pair in found[:3]] == ["b", "c", "d"]
    assert {pair.where for pair in found[:3]} == {f"{path}:1"}
    few, skipped = read_pairs(path, count=5)
    assert len(few) == 5 and skipped.undrawn > 6


def test_formats_that_own_a_row_are_named(tmp_path, with_formats):
    """A general format leaves the row to a special one, two special ones are named with what to do."""
    path = write(tmp_path / "set.jsonl", [GOOD_ROW])
    twin = dataclasses.replace(formats.load()["preference"], general=False)
    with_formats(twin=twin)
    assert read_pairs(path)[1].formats == {"twin": 1}
    with_formats(twin=twin, triplet=twin)
    with pytest.raises(UserError, match="set.jsonl:1 can have the formats twin and triplet.*data.format=twin or"):
        read_pairs(path)
    assert read_pairs(path, format="twin")[1].formats == {"twin": 1}


def test_reading_pairs_imports_no_library_of_data_sets():
    """In a process of its own: this one has them all."""
    modules = ["pairs", "examples", "batches", "world", "token_file", "row_files", "containers"]
    code = "".join(f"import dwrl_jax.data.{name}\n" for name in modules)
    code += "import sys; assert not {'datasets', 'pyarrow', 'optax', 'orbax'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
