"""A look at a file before training: the figures, the words for them, and the exit code."""

import gzip
import json
import re
import sys

import numpy as np
import pytest

from dwrl_jax import inspect_data
from dwrl_jax.core.terminal import say
from dwrl_jax.data.pairs import read_pairs
from dwrl_jax.data.survey import pieces, survey
from dwrl_jax.dialogue import Texts, fit_prefixes, make_dialogue, prefix_ids
from dwrl_jax.dialogue.tokenizers import load_tokenizer
from dwrl_jax.reporting.survey import lengths, text, verdict, write_page
from tests.data.test_pairs import GOOD_ROW, write


@pytest.fixture(scope="module")
def dialogue(shared_data):
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "qwen2.5")
    return make_dialogue(tokenizer, Texts("Judge the response.", "Good? A or B", ("A", "B")))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Ten good pairs, a repeat, its opposite, a tie, a row that is not JSON, a long pair, one with a control token."""
    rows = [GOOD_ROW | {"prompt": f"number {i}", "chosen": "yes " * (i + 1), "id": i} for i in range(10)]
    rows += [
        rows[0],
        rows[0] | {"chosen": "z", "rejected": "yes "},
        GOOD_ROW | {"score_chosen": 1, "score_rejected": 1},
    ]
    rows += ["oops", GOOD_ROW | {"prompt": "long " * 90}, GOOD_ROW | {"chosen": "<|im_end|>"}]
    return write(tmp_path_factory.mktemp("survey") / "pairs.jsonl", rows)


def test_the_figures_of_a_file(path, dialogue):
    seen = survey(str(path), dialogue, (48, 64))
    assert (seen.reading.count, seen.pairs, seen.ties, seen.sample) == (16, 14, 1, 14)
    assert seen.repeats.summary() == "1 duplicates, 1 contradictions" and seen.reading.unused == {"id": 12}
    assert seen.longer_chosen == 12 / 13  # all but the opposite; "y" and "z" are equally long
    assert [(loss.reason, loss.count) for loss in seen.losses] == [
        ("tie: score_chosen equals score_rejected", 1),
        ("not json", 1),
    ]
    assert seen.losses[1].examples == [(f"{path}:14", "not json")]
    assert {loss.reason: loss.examples[0][0] for loss in seen.misfits} == {
        "too long": f"{path}:15",
        "control token in text": f"{path}:16",
    }
    tokenised = read_pairs(path)[0][:13]
    known = [max(len(prefix_ids(dialogue, p.prompt, y)) for y in (p.chosen, p.rejected)) for p in tokenised]
    assert seen.fit.lengths == known
    small, large = (np.mean([low < n <= high for n in known]) for low, high in ((0, 48), (48, 64)))
    assert seen.in_buckets() == [(48, small), (64, large)] and 0 < small < 1
    assert seen.lost == pytest.approx(4 / 16)
    assert "1  control token in text (dialogue.control=escape keeps it as plain text)" in text(seen)


def test_a_sample_is_said(path, dialogue):
    seen = survey(str(path), dialogue, (64, 128), rows=12, sample=5)
    assert seen.reading.undrawn == 4 and seen.sample == 5 < seen.pairs
    said = text(seen)
    assert "12 read, drawn at random; 4 not drawn" in said and "of 5 pairs drawn at random" in said


def test_dialogues_are_shown_as_the_model_reads_them(path, dialogue):
    seen = survey(str(path), dialogue, (48, 256))
    assert len(seen.shown) == 3 and [shown.tokens for shown in seen.shown] == sorted(s.tokens for s in seen.shown)
    shown = seen.shown[0]
    assert ("<|im_end|>", True) in shown.pieces and all(
        control == (piece[:2] == "<|") for piece, control in shown.pieces
    )
    whole = "".join(piece for piece, _ in shown.pieces)
    assert whole.startswith("<|im_start|>") and whole.endswith("assistant\nA") and "(the thought)<|im_end|>" in whole
    ids = prefix_ids(dialogue, ({"role": "user", "content": "€ 🧿"},), "y")
    assert "".join(piece for piece, _ in pieces(dialogue, ids)) == dialogue.tokenizer.decode(ids)
    assert "⟦<|im_end|>⟧" in text(seen) and "rejected response\nz" in text(seen)


def test_the_page_escapes_what_it_shows(path, dialogue, tmp_path):
    seen = survey(str(path), dialogue, (48, 256))
    write_page(seen, "It can be <used>", tmp_path / "look.html")
    page = (tmp_path / "look.html").read_text()
    assert "It can be &lt;used&gt;." in page and '<span class="control">&lt;|im_end|&gt;</span>' in page
    assert "not json" in page and "contradictions" in page and "<script" not in page
    assert all(label in page for label, _ in lengths(seen))


def test_signs_that_move_the_cursor_are_not_printed(dialogue, tmp_path, capsys):
    path = write(tmp_path / "escape.jsonl", [GOOD_ROW | {"rejected": "\x1b[2J\r gone"}])
    say(text(survey(str(path), dialogue, (256,))))
    said = capsys.readouterr().out
    assert "\\x1b[2J\\r gone" in said and "\x1b" not in said


def test_what_can_be_trained_on(dialogue, tmp_path):
    for rows, usable, words in (
        ([GOOD_ROW] * 9 + ["oops"], True, "it can be trained on; 10.0 % of the rows"),
        ([GOOD_ROW] * 7 + ["oops"] * 3, True, "30.0 % .*which is much"),
        ([GOOD_ROW] * 4 + ["oops"] * 6, False, "60.0 % .*correct the file, or give data.most_lost=0.6"),
        (["oops"], False, "cannot be trained on: .*no usable row, 1 left out .not json 1.; correct"),
        ([GOOD_ROW | {"prompt": "long " * 90}], False, "no pair is left.*raise data.buckets"),
    ):
        seen = survey(str(write(tmp_path / "rows.jsonl", rows)), dialogue, (64,))
        assert verdict(seen, 0.5)[0] == usable and re.search(words, verdict(seen, 0.5)[1]), verdict(seen, 0.5)
        assert text(seen)


def command(*arguments):
    try:
        inspect_data.main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return ended.code
    return 0


def test_the_command(path, shared_data, tmp_path, capsys):
    model = f"--model={shared_data / 'tokenizers' / 'qwen2.5'}"
    assert command(path, model, f"--output={tmp_path / 'look.html'}", "--buckets=64,128") == 0
    said = capsys.readouterr()
    assert "duplicates      1\n" in said.out and "it can be trained on" in said.out and not said.err
    assert (tmp_path / "look.html").exists()
    bad = write(tmp_path / "bad.jsonl", [{"question": "x", "answer": "y"}] * 3)
    assert command("--model", model.partition("=")[2], bad) == 2
    said = capsys.readouterr()
    assert "unknown format: answer, question" in said.out and f"{bad}:1  {{'question'" in said.out
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and "give columns prompt, chosen" in said.err
    assert command(tmp_path / "none.jsonl", model) == 2 and "cannot be read" in capsys.readouterr().err
    assert command(path, model, "--buckets=128,64") == 2 and "--buckets=128,64: give" in capsys.readouterr().err
    assert command(path, model, "--rows=-1") == 2 and "-1: give a number" in capsys.readouterr().err


# --- invariance ---


def test_the_number_of_turns_to_drop_is_the_first_that_fits(dialogue):
    """A bisection; each rendering is one call of the tokenizer."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i} " + "word " * (i % 7)} for i in range(61)]
    for system in ((), ({"role": "system", "content": "s"},)):
        messages = (*system, *turns)
        for limit in (64, 80, 200, 399):
            *ids, dropped = fit_prefixes(dialogue, messages, ("a", "b b"), limit)
            rest = (*system, *turns[dropped:])
            assert ids == [prefix_ids(dialogue, rest, y) for y in ("a", "b b")] and max(map(len, ids)) <= limit
            longer = (*system, *turns[dropped - 2 :])
            assert max(len(prefix_ids(dialogue, longer, y)) for y in ("a", "b b")) > limit
    assert fit_prefixes(dialogue, turns, ("a", "word " * 99), 80) is None


def test_few_renderings_shorten_a_long_conversation(dialogue, monkeypatch):
    module = sys.modules[fit_prefixes.__module__]
    calls, batch = [], module.prefix_ids_batch
    monkeypatch.setattr(module, "prefix_ids_batch", lambda *given: calls.append(given) or batch(*given))
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i}"} for i in range(301)]
    assert fit_prefixes(dialogue, turns, ("a", "b"), 200)[2] > 200
    assert len(calls) < 10


@pytest.mark.slow
def test_of_a_large_file_a_sample_is_rendered(shared_data, dialogue, tmp_path):
    """160,000 rows: a minute or two."""
    with gzip.open(shared_data / "hh_rlhf" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = file.readlines()
    with open(tmp_path / "large.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(json.loads(lines[i % len(lines)]) | {"id": i}) + "\n" for i in range(160_000))
    seen = survey(str(tmp_path / "large.jsonl"), dialogue, (256, 512, 1024), rows=500_000, sample=20_000)
    assert seen.reading.count == 160_000 and seen.sample == 20_000
