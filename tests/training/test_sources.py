"""Exact: which pairs of a file a run draws, and how often they are read and rendered."""

import dataclasses
import json
import os
import sys

import numpy as np
import pytest

from dwrl_jax.core.errors import UserError
from dwrl_jax.data import examples, token_file, world
from dwrl_jax.data.pairs import read_pairs
from dwrl_jax.settings.commandline import parse
from dwrl_jax.training import sources
from tests.small import REPO

TOKENIZER = world.make_tokenizer()


def pair_file(path, count=40, **columns):
    rows = [
        {"prompt": f"s{i % 8} o{i // 8}", "chosen": "s2 warm", "rejected": "s6 curt"} | columns for i in range(count)
    ]
    path.write_text("".join(json.dumps(row | columns) + "\n" for row in rows))
    return path


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Tokenised pairs of the file, with changes to the config, and the number of prefixes rendered for it."""
    rendered, batch = [], examples.prefix_ids_batch
    monkeypatch.setattr(examples, "prefix_ids_batch", lambda d, rows: (rendered.extend(rows), batch(d, rows))[1])
    path = pair_file(tmp_path / "pairs.jsonl")

    def call(*changes, part="train", supervised=False, margins=False):
        flags = [f"--config.data.{part}={path}", *(f"--config.{change}" for change in changes)]
        config, _ = parse([f"--config={REPO / 'configs' / 'tiny.py'}", "--workdir=unused", *flags])
        rendered.clear()
        talk = sources.make_talk(config, TOKENIZER, "verdict")
        found, note = sources.tokenised(config, talk, part, tmp_path, sources.Needs(supervised, margins))
        return found, note, len(rendered)

    call.path, call.kept = path, tmp_path / "tokens" / "train.npz"
    return call


def prompts(found):
    return [row.pair.prompt[0]["content"] for row in found.rows]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found.rows, expected.rows):
        assert (a.pair_id, a.answer, a.thoughts, a.pair) == (b.pair_id, b.answer, b.thoughts, b.pair)
        assert all(x.dtype == y.dtype and x.tolist() == y.tolist() for x, y in zip(a.prefix, b.prefix))


def test_only_the_drawn_pairs_are_rendered(made):
    found, note, rendered = made("data.pairs=10")
    assert len(found) == 10 and rendered == 20
    assert "10 pairs read by seed 0, 30 not drawn, 0 left out; 10 pairs kept" in note
    assert prompts(found) != prompts(made()[0])[:10]  # no file is read from its beginning alone
    made.kept.unlink()
    again, _, rendered = made("data.pairs=10")
    assert rendered == 20 and prompts(again) == prompts(found)
    assert prompts(made("data.pairs=10", "seed=1")[0]) != prompts(found)


def test_a_run_that_goes_on_reads_and_renders_nothing(made, monkeypatch):
    first, note, _ = made("data.pairs=10")
    monkeypatch.setattr(sources, "read_pairs", None)
    second, again, rendered = made("data.pairs=10")
    assert rendered == 0 and again == note
    assert_same(second, first)
    pair_id = second.rows[3].pair_id
    assert sources.find_pair(second, pair_id) == first.rows[3].pair


@pytest.mark.parametrize(
    "change",
    ["data.pairs=11", "seed=5", "data.buckets=(19,)", "data.strict=True", "dialogue.judge_question=judge judge"],
)
def test_another_draw_text_or_limit_makes_the_tokens_again(made, change):
    made("data.pairs=10")
    assert made("data.pairs=10", change)[2] > 0


def test_another_tokenizer_makes_the_tokens_again(made, monkeypatch):
    made()
    larger = world.make_tokenizer()
    larger.add_tokens(["<more>"])
    monkeypatch.setattr(sys.modules[__name__], "TOKENIZER", larger)
    assert made()[2] == 80


def test_a_changed_file_makes_the_tokens_again(made):
    made()
    pair_file(made.path, count=39)
    found, _, rendered = made()
    assert rendered == 78 and len(found) == 39
    before = os.stat(made.path)
    os.utime(made.path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert made()[2] == 78


def test_a_file_of_tokens_that_is_cut_off_is_made_again(made):
    found, _, _ = made()
    for content in (b"", made.kept.read_bytes()[:-100], b"not an archive"):
        made.kept.write_bytes(content)
        again, _, rendered = made()
        assert rendered == 80
        assert_same(again, found)


def test_kept_tokens_are_those_of_the_pairs(made):
    """All columns come back, and pair ids count the usable rows of the file."""
    pair_file(made.path, margin=0.1, source="here", thoughts=["hm", "s1 off2"], verdicts=[0, 1])
    made.path.write_text("oops\n" + made.path.read_text())
    made(supervised=True)
    kept, note, rendered = made(supervised=True)
    pairs, _ = read_pairs(made.path)
    config, _ = parse([f"--config={REPO / 'configs' / 'tiny.py'}", "--workdir=unused"])
    expected, _ = examples.tokenise(pairs, sources.make_talk(config, TOKENIZER, "verdict"), 20)
    assert rendered == 0 and "40 pairs read, 1 left out (not json 1)" in note
    assert_same(kept, expected)
    assert [row.pair_id for row in kept.rows] == list(range(40))
    assert (made.path.parent / "skipped_train.txt").read_text() == f"{made.path}:1: not json\n"
    plain, _, rendered = made()
    assert rendered == 80 and plain.rows[0].thoughts is None


def test_held_out_pairs_are_drawn_before_they_are_rendered(made):
    found, note, rendered = made("eval.pairs=7", part="eval")
    assert len(found) == 7 and rendered == 14 and "33 not drawn" in note
    assert prompts(made("eval.pairs=7", "seed=9", part="eval")[0]) == prompts(found)  # the same for every run
    drawn = sorted(np.random.default_rng(0).permutation(40)[:7].tolist())
    assert prompts(found) == [prompts(made(part="eval")[0])[i] for i in drawn]


def test_held_out_pairs_of_the_world_are_its_first(tmp_path):
    config, _ = parse([f"--config={REPO / 'configs' / 'tiny.py'}", "--workdir=unused", "--config.eval.pairs=30"])
    held, _ = sources.held_out(config, sources.make_talk(config, TOKENIZER, "verdict"), tmp_path)
    made_world = world.make_world(config.world.seed)
    assert held.pairs == [world.pair(made_world, "eval", index) for index in range(30)]
    assert not list(tmp_path.iterdir())


def test_a_word_of_a_file_that_the_world_lacks_is_named(made):
    pair_file(made.path, prompt="s1 o1 hello")
    with pytest.raises(UserError, match="pairs.jsonl:1: the tokenizer has no word 'hello'"):
        made()
    pair_file(made.path, thoughts=["hm", "hmm"])
    with pytest.raises(UserError, match="pairs.jsonl:1: the tokenizer has no word 'hmm'"):
        made(supervised=True)


def test_the_first_process_decides(made, monkeypatch):
    """Another one reads what is there, and says so where it is not."""
    found, _, _ = made()
    monkeypatch.setattr(sources.hosts, "first", lambda: False)
    monkeypatch.setattr(sources.hosts, "of_first", lambda flag: True)
    second, _, rendered = made("data.buckets=(19,)")  # the key is the first one's affair
    assert rendered == 0
    assert_same(second, found)
    made.kept.unlink()
    with pytest.raises(UserError, match="train.npz cannot be read here"):
        made()


def test_every_field_of_a_pair_is_kept(tmp_path):
    pair = world.pair(world.make_world(0), "demonstrations", 3)
    assert all(getattr(pair, field.name) for field in dataclasses.fields(pair))
    row = examples.Example(7, (np.arange(3, dtype=np.int32), np.arange(5, dtype=np.int32)), (1, 2), ([4, 5], [6]), pair)
    token_file.write(tmp_path / "a" / "tokens.npz", "key", examples.Examples((row,)), "a note")
    found, note = token_file.read(tmp_path / "a" / "tokens.npz", "key")
    assert_same(found, examples.Examples((row,)))
    assert note == "a note" and token_file.read(tmp_path / "a" / "tokens.npz", "other") is None


# --- exact: what a run loses ---


def test_a_run_says_loudly_what_it_loses_and_stops_where_most_is_lost(made):
    lines = made.path.read_text().splitlines()
    made.path.write_text("\n".join([*lines[:36], *["oops"] * 4]))
    assert "WARNING" not in made()[1], "a tenth is not loud"
    made.path.write_text("\n".join([*lines[:20], *["oops"] * 20]))
    note = made()[1]
    assert note.endswith(f"\nWARNING: 20 of 40 rows (50 %) of {made.path} are left out; see the list in skipped_*.txt")
    assert note == made()[1], "the warning is kept with the tokens"
    made.path.write_text("\n".join([*lines[:19], *["oops"] * 21]))
    with pytest.raises(
        UserError, match=r"21 of 40 rows \(52 %\) .* are left out \(not json 21\).* data.most_lost to go"
    ):
        made()
    assert not made.kept.exists() or "21 of 40" not in str(made.kept)
    assert (made.path.parent / "skipped_train.txt").read_text().count("not json") == 21
    assert len(made("data.most_lost=0.6")[0]) == 19


def test_control_tokens_count_as_lost(made):
    rows = [json.loads(line) for line in made.path.read_text().splitlines()]
    rows = [row | {"chosen": "s2 <pad>"} if i % 4 else row for i, row in enumerate(rows)]
    made.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"30 of 40 rows .*control token in text 30"):
        made()


def test_the_note_says_format_columns_and_repeats(made):
    note = made()[1]
    assert "; format preference 40; 0 duplicates, 0 contradictions" in note
    pair_file(made.path, system="s1 o1", weight=3, prompt="s0 o0")
    note = made()[1]
    assert "; format preference 40; columns not used: weight; 39 duplicates, 0 contradictions" in note
    assert made("data.format=preference")[1] == note
    with pytest.raises(UserError, match="data.format='best': no such format"):
        made("data.format=best")


def test_a_part_of_a_file(made):
    found, _, rendered = made("data.train_split=train[:25%]")
    assert rendered == 20 and prompts(found) == prompts(made()[0])[:10]


def test_a_pair_without_what_the_objective_reads_costs_itself(made):
    """A bad margin or thought costs a row only where it is read."""
    rows = [json.loads(line) for line in made.path.read_text().splitlines()]
    for i, row in enumerate(rows):
        row |= {"margin": "?" if i == 3 else -1 if i == 4 else 1.5, "thoughts": ["hm", "" if i == 5 else "hm"]}
    made.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(made()[0]) == 40 and made()[0].rows[0].thoughts is None
    kept, _, _ = made(margins=True)
    assert len(kept) == 38 and {row.pair.margin for row in kept.rows} == {1.5}
    listed = (made.path.parent / "skipped_train.txt").read_text().splitlines()
    assert listed == [f"{made.path}:{i}: no margin from 0 on" for i in (4, 5)]
    kept, _, _ = made(supervised=True)
    assert len(kept) == 39 and all(row.thoughts for row in kept.rows)
    assert (made.path.parent / "skipped_train.txt").read_text() == f"{made.path}:6: no written thoughts\n"
