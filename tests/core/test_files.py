"""A file is there whole or not at all, and lines of JSON are read for what they are."""

import json

import pytest

from dwrl_jax.core import files
from dwrl_jax.core.errors import UserError


def test_a_file_that_could_not_be_written_whole_leaves_the_old_one(tmp_path):
    path = tmp_path / "results.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.whole(path) as file:
        file.write("half of")
        raise RuntimeError
    assert files.read_json(path) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_files_of_one_stem_do_not_share_their_partial_file(tmp_path):
    """results.json and results.jsonl stand in the same folder."""
    with files.whole(tmp_path / "a.json") as first, files.whole(tmp_path / "a.jsonl") as second:
        first.write("1")
        second.write("2")
    assert [(tmp_path / name).read_text() for name in ("a.json", "a.jsonl")] == ["1", "2"]


def test_a_half_written_last_line_is_dropped_and_another_bad_line_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1, "a": "\u2028"}\n\n{"step": 2}\n{"step": 3, "a"')
    assert list(files.read_lines(path, needs="step")) == [{"step": 1, "a": "\u2028"}, {"step": 2}]
    for bad in ('{"step": 2,', "[1]", '{"other": 1}'):
        path.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 3}}\n')
        with pytest.raises(UserError, match=r'rows\.jsonl:2: not a JSON object with a "step"'):
            list(files.read_lines(path, needs="step"))
    with pytest.raises(UserError, match="other.jsonl does not exist"):
        list(files.read_lines(tmp_path / "other.jsonl"))


@pytest.mark.parametrize("tail, kept", [('{"step": 2, "a', [1]), ('{"step": 2}', [1, 2]), ("", [1])])
def test_lines_added_behind_a_half_written_one_stay_readable(tmp_path, tail, kept):
    path = tmp_path / "rows.jsonl"
    files.append_lines(path, [{"step": 1}])
    path.write_text(path.read_text() + tail)
    files.append_lines(path, [{"step": 3}, {"step": 4}])
    assert [row["step"] for row in files.read_lines(path)] == [*kept, 3, 4]


def test_lines_that_are_kept_stay_to_the_letter(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = ['{"step":1,"score":Infinity}\n', '{"step": 2}\n', '{ "step": 1.0 }\n']
    path.write_text("".join(lines) + '{"step": 1')
    files.keep_lines(path, lambda row: row["step"] <= 1, needs="step")
    assert path.read_text() == lines[0] + lines[2]


def test_numbers_that_are_not_finite_are_no_json(tmp_path):
    content = {"trained": {"k1": [0.5, float("inf")]}}
    for write in (files.write_json, lambda path, row: files.append_lines(path, [row])):
        with pytest.raises(UserError, match=r"x.json: trained.k1.1 would be inf"):
            write(tmp_path / "x.json", content)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert files.read_json(tmp_path / "old.json") == content


def test_half_a_surrogate_pair_does_not_cost_the_file(tmp_path):
    files.write_lines(tmp_path / "x.jsonl", [{"a": "\ud83d \N{SNOWMAN}"}])
    assert list(files.read_lines(tmp_path / "x.jsonl")) == [{"a": "? \N{SNOWMAN}"}]


@pytest.mark.parametrize("text, said", [("{", "not JSON"), ('{"a": ' + "[" * 99999, "not JSON"), ("[]", "not list")])
def test_a_file_that_is_no_object_is_named(tmp_path, text, said):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=said):
        files.read_json(tmp_path / "x.json")
