"""Exact: files of the kinds that people really have, each with what its users expect of it."""

import pytest

from dwrl_jax.core.errors import UserError
from dwrl_jax.data.examples import tokenise
from dwrl_jax.data.pairs import look_for_pairs, read_pairs, repeats
from dwrl_jax.dialogue import Texts, make_dialogue
from dwrl_jax.dialogue.tokenizers import FALLBACK_TEMPLATE, load_tokenizer

PARTED, CALLS = "conversations part before the last turn", "tool calls"
SKY = ("What colour is the sky?", "Blue.", "Green.")
TRIP = ("To the sea.", "Take the train.", "Stay home.")
HELLO = ("Hi", "Hello!", "What.")

# file: (number of pairs, reasons, the last question and the responses of the first pair)
FILES = {
    "01_ultrafeedback/rows.json": (22, {"empty final turn": 1, "tie: score_chosen equals score_rejected": 1}, None),
    "02_trl/explicit_std.jsonl": (1, {}, ("The sky is", " blue.", " green.")),
    "02_trl/explicit_conv.jsonl": (1, {}, SKY),
    "02_trl/implicit_std.jsonl": (1, {}, ("The sky is", " blue.", " green.")),
    "02_trl/implicit_conv.jsonl": (1, {}, SKY),
    "02_trl/prompt_outer_blank.jsonl": (1, {}, SKY),
    "02_trl/prompt_is_last_question.jsonl": (1, {}, TRIP),
    "02_trl/prompt_is_first_question.jsonl": (1, {}, TRIP),
    "02_trl/diverge_earlier_implicit.jsonl": (0, {PARTED: 1}, None),
    "02_trl/multi_turn_completion.jsonl": (0, {PARTED: 1}, None),
    "02_trl/one_extra_turn.jsonl": (0, {PARTED: 1}, None),
    "03_tools/tool_turn_in_prompt.jsonl": (0, {CALLS: 1}, None),
    "03_tools/tool_call_with_text_in_prompt.jsonl": (0, {CALLS: 1}, None),
    "03_tools/reasoning_content.jsonl": (0, {"reasoning_content": 1}, None),
    "03_tools/final_turn_is_call.jsonl": (0, {"tool calls": 1}, None),
    "03_tools/final_turn_call_and_other_text.jsonl": (0, {CALLS: 1}, None),
    "04_other_rows/alpaca.jsonl": (1, {}, ("Translate.\n\nchat", "cat", "dog")),
    "04_other_rows/alpaca_question_system.jsonl": (1, {}, HELLO),
    "04_other_rows/developer_role.jsonl": (1, {}, HELLO),
    "04_other_rows/messages_plus_strings.jsonl": (1, {}, HELLO),
    "04_other_rows/roles_human_gpt.jsonl": (1, {}, HELLO),
    "05_parts/parts.jsonl": (1, {}, ("What is this?\nBe brief.", "A cat.", "A dog.")),
    "05_parts/mixed_good_and_parts.jsonl": (3, {}, None),
    "05_parts/most_lost.jsonl": (224, {}, None),
    "07_empty_system/rows.jsonl": (3, {}, ("Hi", "Hello!", "What.")),
    "08_labels/pku.jsonl": (1, {}, ("Hi", "Hello.", "Go away.")),
    "08_labels/arena.jsonl": (1, {"tie": 1}, ("Hi", "Hello.", "No.")),
    "08_labels/helpsteer3.jsonl": (1, {"tie": 1}, ("How are you?", "Fine.", "Why?")),
    "13_rewardbench/as_source.jsonl": (24, {}, None),
    "13_rewardbench/filtered.jsonl": (24, {}, None),
    "14_bytes/bom.jsonl": (24, {}, ("Name a fruit, number 0.", "An apple, say, or a pear: 0.", "No 0.")),
    "14_bytes/crlf.jsonl": (24, {}, None),
    "14_bytes/surrogate.jsonl": (24, {"text is not Unicode (a lone surrogate)": 1}, None),
    "14_bytes/unicode.jsonl": (4, {}, None),
    "15_containers/array.json": (24, {}, None),
    "15_containers/pretty.jsonl": (2, {}, None),
    "15_containers/rows.csv": (24, {}, ("Name a fruit, number 0.", "An apple, say, or a pear: 0.", "No 0.")),
    "17_margin/score_diff.jsonl": (5, {}, None),
    "18_hh/crlf.jsonl": (1, {}, ("Hi", "See you.", "What?")),
    "18_hh/full_hh.jsonl": (1, {}, ("Bye", " See you.", " What?")),
    "20_dups/rows.jsonl": (26, {}, None),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_the_pairs_that_its_users_expect(shared_data, name):
    count, reasons, first = FILES[name]
    pairs, reading = look_for_pairs(shared_data / "cases" / name)
    assert (len(pairs), reading.counts) == (count, reasons)
    if first:
        assert (pairs[0].prompt[-1]["content"], pairs[0].chosen, pairs[0].rejected) == first


def read(shared_data, name, **options):
    return look_for_pairs(shared_data / "cases" / name, **options)


def test_parts_of_a_saved_data_set_and_of_a_hub_folder(shared_data, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    for folder in ("saved", "repo"):
        for split, count in (("train_prefs[:50%]", 10), ("test_prefs", 18), ("train_prefs[-5:]", 5)):
            pairs, _ = read(shared_data, f"01_ultrafeedback/{folder}", split=split)
            assert len(pairs) == count, (folder, split)
    pairs, reading = read(shared_data, "01_ultrafeedback/saved", split="train_prefs")
    assert pairs[0].margin > 0 and reading.unused.keys() == {"messages", "prompt_id"}
    assert len(read(shared_data, "01_ultrafeedback/repo/data", split="train_prefs")[0]) == 22


def test_a_system_column_is_the_system_turn(shared_data):
    pairs, reading = read(shared_data, "06_system_column/rows.jsonl")
    assert [p.prompt[0]["role"] for p in pairs] == ["system", "system"] and pairs[0].prompt != pairs[1].prompt
    assert reading.unused == {"id": 2}
    (pair,), _ = read(shared_data, "04_other_rows/developer_role.jsonl")
    assert pair.prompt[0] == {"role": "system", "content": "Be terse."}
    assert all(p.prompt[0]["role"] == "user" for p in read(shared_data, "07_empty_system/rows.jsonl")[0])


def test_strengths_and_columns_that_are_not_read(shared_data):
    (pair,), reading = read(shared_data, "08_labels/helpsteer3.jsonl")
    assert pair.margin == 2.0 and pair.source == "general" and reading.unused == {"language": 1}
    assert "safer_response_id" in read(shared_data, "08_labels/pku.jsonl")[1].unused
    margins = [pair.margin for pair in read(shared_data, "17_margin/score_diff.jsonl")[0]]
    assert margins == [-1.5, 2.0, None, 0.0, 3.0]


def test_results_by_subset(shared_data):
    by_subset, by_source = (read(shared_data, f"13_rewardbench/{name}.jsonl")[0] for name in ("filtered", "as_source"))
    assert [pair.source for pair in by_subset] == [pair.source for pair in by_source]
    assert {pair.source for pair in by_subset} == {"chat-easy", "math-prm", "refusals"}


def test_bytes_are_kept(shared_data):
    pairs, _ = read(shared_data, "14_bytes/unicode.jsonl")
    assert "\u202e" in pairs[0].chosen and "\u2028" in pairs[1].chosen and "\0" in pairs[2].prompt[0]["content"]
    assert pairs[3].prompt[0]["content"] == "\u200b"


def test_folders_of_files(shared_data):
    for split, count in (("train", 24), ("test", 16), ("train[:25%]", 6)):
        assert len(read(shared_data, "15_containers/folder", split=split)[0]) == count
    pairs, _ = read(shared_data, "15_containers/folder", split="test+train")
    assert [pair.source for pair in pairs] == ["test"] * 16 + ["train"] * 24
    with pytest.raises(UserError, match="the folder has test, train"):
        read(shared_data, "15_containers/folder", split="validation")


def test_a_quoted_dialogue_stays_text(shared_data):
    (pair,), _ = read(shared_data, "18_hh/quotes_a_dialogue.jsonl")
    assert [turn["content"] for turn in pair.prompt] == ["Write a play."]
    assert (pair.chosen, pair.rejected) == ("Sure.\n\nHuman: hi\n\nAssistant: ho, says the play.", "No.")
    (pair,), _ = read(shared_data, "18_hh/full_hh.jsonl")
    assert [turn["content"] for turn in pair.prompt] == ["Hi", "Hello", "Bye"]


def test_duplicates_are_counted(shared_data):
    assert repeats(read(shared_data, "20_dups/rows.jsonl")[0]).summary() == "1 duplicates, 1 contradictions"


@pytest.fixture(scope="module")
def tokenizer(shared_data):
    return load_tokenizer(shared_data / "tokenizers" / "qwen2.5")


def test_control_tokens_are_named(shared_data, tokenizer):
    dialogue = make_dialogue(tokenizer, Texts("Judge.", "Good?", ("A", "B")))
    pairs, _ = read(shared_data, "19_control/rows.jsonl")
    _, fit = tokenise(pairs, dialogue, 256)
    assert [where.rpartition("/")[2] for where, _ in fit.skipped.rows] == ["rows.jsonl:2"]
    assert fit.skipped.counts == {"control token in text": 1}


def test_a_row_that_the_template_refuses_is_named(shared_data, tokenizer, monkeypatch):
    """The chat template knows no system role; the rows around stay."""
    refusing = "{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{%- endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", refusing + FALLBACK_TEMPLATE)
    dialogue = make_dialogue(tokenizer, Texts("Judge.", "Good?", ("A", "B")))
    pairs, _ = read_pairs(shared_data / "cases" / "12_no_system_role" / "rows.jsonl")
    examples, fit = tokenise(pairs, dialogue, 256)
    ((where, reason),) = fit.skipped.rows
    assert where.endswith("rows.jsonl:6") and "no system role" in reason and "\n" not in reason
    assert [row.pair_id for row in examples.rows] == [i for i in range(25) if i != 5]
    with pytest.raises(UserError, match="rows.jsonl:6: .*no system role"):
        tokenise(pairs, dialogue, 256, strict=True)
