"""Exact: the same rows from every kind of file, folder and data set, and parts of them."""

import bz2
import csv
import gzip
import json
import lzma

import pyarrow
import pytest

from dwrl_jax.core.errors import UserError
from dwrl_jax.data.containers import identity, open_table
from dwrl_jax.data.row_files import NOT_JSON

ROWS = [{"prompt": f"number {i}?", "chosen": f"It is,\n“{i}”.", "rejected": "No; no."} for i in range(20)]


def rows_of(name, split="train"):
    return [row for _, row in open_table(str(name), split).rows()]


def places_of(name, split="train"):
    return [where.removeprefix(f"{name}:") for where, _ in open_table(str(name), split).rows()]


def zst(path, mode):
    return pyarrow.output_stream(str(path), compression="zstd")


def packed(path, content):
    opens = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": zst}.get(path.suffix, open)
    with opens(path, "wb") as file:
        file.write(content)
    return path


def lines(rows=ROWS):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(path, delimiter=","):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    return path


@pytest.mark.parametrize("end", ["", ".gz", ".bz2", ".xz", ".zst"])
def test_packed_files(tmp_path, end):
    assert rows_of(packed(tmp_path / f"rows.jsonl{end}", lines())) == ROWS
    assert rows_of(packed(tmp_path / f"rows.json{end}", json.dumps(ROWS, indent=1).encode())) == ROWS
    packed(tmp_path / f"rows.csv{end}", as_csv(tmp_path / "plain.csv").read_bytes())
    assert rows_of(tmp_path / f"rows.csv{end}") == ROWS


def test_every_way_to_write_json(tmp_path):
    """Arrays, also in a file that is called .jsonl, objects of several lines, and an object that holds the rows."""
    texts = {
        "array.json": json.dumps(ROWS),
        "pretty.jsonl": json.dumps(ROWS, indent=2),
        "lines.json": lines().decode(),
        "objects.json": "\n".join(json.dumps(row, indent=1) for row in ROWS),
        "held.json": json.dumps({"version": 1, "data": ROWS}),
        "bom.jsonl": "\ufeff" + lines().decode(),
        "bom.json": "\ufeff" + json.dumps(ROWS),
        "crlf.jsonl": lines().decode().replace("\n", "\r\n"),
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
        assert rows_of(tmp_path / name) == ROWS, name
        assert len(open_table(str(tmp_path / name), "train")) == 20, name
    assert places_of(tmp_path / "pretty.jsonl")[:2] == ["2", "7"]
    assert places_of(tmp_path / "array.json")[:2] == ["1", "2"], "rows of one line are counted"
    (tmp_path / "single.json").write_text(json.dumps(ROWS[0], indent=1))
    assert rows_of(tmp_path / "single.json") == ROWS[:1]


def test_broken_json(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(ROWS, indent=1)[:-30])
    with pytest.raises(UserError, match=r"broken.json .*cannot be read: .*line 97: not JSON"):
        rows_of(path)
    path.write_text(json.dumps(ROWS)[:-1] + ", 3]")
    assert rows_of(path) == [*ROWS, NOT_JSON]
    path.write_text('{"prompt": "x",\n' + json.dumps(ROWS[0]) + "\n[1]\n")
    assert rows_of(path) == [NOT_JSON, ROWS[0], NOT_JSON]
    path.write_text("[1]\n" + json.dumps(ROWS[0]) + "\n")
    assert rows_of(path) == [NOT_JSON, ROWS[0]]
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="cannot be read"):
        rows_of(path)
    path.write_bytes("{}".encode("utf-16"))
    with pytest.raises(UserError, match="UTF-16 text: save it as UTF-8"):
        rows_of(path)


def test_separated_values(tmp_path):
    """Lines are those on which rows begin; the empty cells of a row are missing; a bad row costs itself."""
    assert rows_of(as_csv(tmp_path / "rows.csv")) == rows_of(as_csv(tmp_path / "semi.csv", ";")) == ROWS
    assert rows_of(as_csv(tmp_path / "rows.tsv", "\t")) == ROWS
    assert places_of(tmp_path / "rows.csv")[:3] == ["2", "4", "6"]
    text = b'\xef\xbb\xbfprompt,chosen\nx,\n\na,b,c\n"' + b"long " * 40_000 + b'",\xff\n'
    (tmp_path / "bad.csv").write_bytes(text)
    rows = rows_of(tmp_path / "bad.csv")
    assert rows == [{"prompt": "x"}, "3 cells, not 2", {"prompt": "long " * 40_000, "chosen": "\udcff"}]
    assert places_of(tmp_path / "bad.csv") == ["2", "4", "5"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The rows in the files of `datasets`: Parquet, Arrow, save_to_disk."""
    import datasets  # slow: only where it is needed

    folder = tmp_path_factory.mktemp("saved")
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet(folder / "rows.parquet", batch_size=8)
    table.save_to_disk(folder / "alone")
    datasets.DatasetDict({"train_prefs": table, "test_prefs": table.select(range(4))}).save_to_disk(folder / "splits")
    with pyarrow.ipc.new_file(str(folder / "file.arrow"), table.data.table.schema) as writer:
        writer.write_table(table.data.table)
    return folder


def test_columnar_files(saved):
    arrow = next((saved / "alone").glob("*.arrow"))
    for path in (saved / "rows.parquet", saved / "alone", saved / "file.arrow", arrow):
        assert rows_of(path) == ROWS and len(open_table(str(path), "train")) == 20
        assert rows_of(path, "train[5:-5]") == ROWS[5:15]


SLICES = {
    "train[:50%]": ROWS[:10],
    "train[50%:]": ROWS[10:],
    "train[-10%:]": ROWS[-2:],
    "train[3:5]": ROWS[3:5],
    "train[:3]+train[-2:]": ROWS[:3] + ROWS[-2:],
    "train[:]": ROWS,
    "train[30:]": [],
}


@pytest.mark.parametrize("split", SLICES)
def test_slices_of_everything(saved, tmp_path, split):
    (tmp_path / "rows.jsonl").write_bytes(lines())
    (tmp_path / "parts").mkdir()
    for i in range(0, 20, 7):
        (tmp_path / "parts" / f"train-{i:02}.jsonl").write_bytes(lines(ROWS[i : i + 7]))
    for name in ("rows.jsonl", "parts", "parts/train-*.jsonl"):
        table, expected = open_table(str(tmp_path / name), split), SLICES[split]
        assert [row for _, row in table.rows()] == expected and len(table) == len(expected)
        drawn = [i for i in (1, 8, 9, 16) if i < len(expected)]
        assert [row for _, row in table.rows(drawn)] == [expected[i] for i in drawn]
    assert rows_of(saved / "splits", split.replace("train", "train_prefs")) == SLICES[split]


def test_a_slice_that_is_none(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(lines())
    for split in ("train[50%]", "train[a:b]", "train[", "train[:1.5]"):
        with pytest.raises(UserError, match="write it as train, train"):
            open_table(str(tmp_path / "rows.jsonl"), split)


def test_folders(tmp_path):
    """Files belong to the split that their path speaks of; files that speak of none are the training split."""
    for name, rows in {"data/train-00.jsonl": ROWS[:5], "data/train-01.json": ROWS[5:8], "val.csv": None}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        as_csv(tmp_path / name) if rows is None else (tmp_path / name).write_bytes(lines(rows))
    (tmp_path / "README.md").write_text("rows")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "train.jsonl").write_bytes(lines())
    assert rows_of(tmp_path) == ROWS[:8] and rows_of(tmp_path, "validation") == rows_of(tmp_path, "val") == ROWS
    assert places_of(tmp_path)[5] == f"{tmp_path}/data/train-01.json:1"
    with pytest.raises(UserError, match="split 'test'.*the folder has train, validation"):
        rows_of(tmp_path, "test")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "part1.jsonl").write_bytes(lines())
    assert rows_of(tmp_path / "plain") == ROWS
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no files with rows"):
        rows_of(tmp_path / "none")
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(UserError, match="does not say what kind of file"):
        rows_of(tmp_path / "rows.txt")
    with pytest.raises(UserError, match="no file of this pattern"):
        rows_of(tmp_path / "*.nothing")


def test_a_split_that_a_saved_data_set_lacks(saved):
    with pytest.raises(UserError, match="splits.*cannot be read.*it has the splits train_prefs, test_prefs"):
        rows_of(saved / "splits", "train")


def test_a_data_set_with_a_config(monkeypatch):
    import datasets

    asked = []
    loaded = datasets.Dataset.from_list(ROWS)
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **more: asked.append((given, more)) or loaded)
    assert rows_of("nobody/pairs:hard", "test[:50%]") == ROWS[:10]
    assert rows_of("nobody/pairs", "train") == ROWS
    assert asked == [(("nobody/pairs", "hard"), {"split": "test"}), (("nobody/pairs", None), {"split": "train"})]
    assert identity("nobody/pairs:hard") == ["nobody/pairs:hard"]


def test_the_files_of_a_pattern_are_its_identity(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(lines())
    name = str(tmp_path / "*.jsonl")
    before = identity(name)
    assert [entry[0] for entry in before[1:]] == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    (tmp_path / "b.jsonl").write_bytes(lines(ROWS[:3]))
    assert identity(name) != before


def test_a_file_that_has_changed_is_read_again(tmp_path):
    path = tmp_path / "rows.json"
    for rows in (ROWS, ROWS[:4]):
        path.write_text(json.dumps(rows))
        assert rows_of(path) == rows
