"""Templates of published models in both layouts, each cell of the table in docs/templates.md."""

import dataclasses
import datetime
import functools
import gzip
import json
import re

import pytest
from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from dwrl_jax import dialogue as dg
from dwrl_jax.core.errors import UserError
from dwrl_jax.dialogue.tokenizers import end_ids
from tests.small import REPO

JUDGE, ASK, ANSWERS = "Judge the response.", "Is this a good response? A: Yes, B: No", ("A", "B")
LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
THINK = ("<think>", "</think>")
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
# family: special tokens, plain added tokens, begin token (None: none), end token; those of the published tokenizers
TOKENS = {
    "qwen2": ((), (), None, "<|im_end|>"),
    "qwen3": ((), ("<tool_response>", "</tool_response>", *THINK), None, "<|im_end|>"),
    "llama": (LLAMA, (), LLAMA[0], "<|eot_id|>"),
    "gemma": (("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), (), "<bos>", "<eos>"),
    "phi": (("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), (), "<|endoftext|>", "<|endoftext|>"),
    "deepseek": (DEEPSEEK, THINK, DEEPSEEK[0], DEEPSEEK[1]),
    "gptoss": (("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"), (), None, "<|return|>"),
    "smollm": ((), (), "<|im_start|>", "<|im_end|>"),
}
ADDS_BEGIN = ("llama", "gemma", "deepseek")
FAMILY = {"qwen2_5": "qwen2", "qwen3_instruct_2507": "qwen2"}
SMOLLM = (  # SmolLM2-135M-Instruct, Apache-2.0
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def table():
    """(template, layout, outcome) of each cell in the table of docs/templates.md."""
    text = (REPO / "docs" / "templates.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|", text, re.M)
    cells = [
        (name, layout, said.strip()) for name, *both in rows for layout, said in zip(("two_turns", "one_turn"), both)
    ]
    return [cell for cell in cells if cell[0] not in ("two_turns", "one_turn")]


@functools.cache
def tokenizer_of(family, folder):
    """Qwen2.5's tokenizer with the special tokens of a family."""
    special, plain, begin, end = TOKENS[family]
    core = Tokenizer.from_file(str(folder / "tokenizers" / "qwen2.5" / "tokenizer.json"))
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    if family in ADDS_BEGIN:
        ids = [(begin, core.token_to_id(begin))]
        core.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=begin, eos_token=end, pad_token="<|endoftext|>")


@pytest.fixture(scope="module")
def published(shared_data):
    def make(name):
        """The tokenizer with the template of this name."""
        family = FAMILY.get(name) or next(family for family in TOKENS if name.startswith(family))
        tokenizer = tokenizer_of(family, shared_data)
        path = shared_data / "templates" / f"{name}.jinja"
        tokenizer.chat_template = SMOLLM if name == "smollm2" else path.read_text(encoding="utf-8")
        return tokenizer

    return make


@pytest.fixture(scope="module")
def rows(shared_data):
    """(messages, response, thought) of real dialogues; their thoughts have several lines."""
    with gzip.open(shared_data / "hh_rlhf" / "validation.jsonl.gz", "rt", encoding="utf-8") as file:
        read = [json.loads(line) for line, _ in zip(file, range(40))]
    said = [row["rejected"][0]["content"] for row in read]
    long = [text for text in said if "\n\n" in text and not text.startswith("\n")]
    return [(row["prompt"], row["chosen"][0]["content"], long[i % len(long)]) for i, row in enumerate(read)]


def turn(role, content, **fields):
    return {"role": role, "content": content, **fields}


def make(tokenizer, layout="two_turns", **changes):
    return dg.make_dialogue(tokenizer, dg.Texts(JUDGE, ASK, ANSWERS, layout=layout, **changes))


def own_rendering(tokenizer, name, layout, messages, response, thought, answer):
    """The ids of the whole conversation, from the template alone."""
    judged, prompt, behind = [*messages, turn("assistant", response)], False, ""
    if layout == "two_turns":
        asked = [turn("user", JUDGE), turn("assistant", thought), turn("user", ASK), turn("assistant", answer)]
    else:
        asked = [
            turn("user", f"{JUDGE}\n\n{ASK}"),
            turn("assistant", answer, reasoning_content=thought, thinking=thought),
        ]
        if name == "deepseekv3":  # it renders no thought: the generation prompt, and what the model writes behind it
            asked, prompt, behind = asked[:1], True, f"{thought}\n</think>\n\n{answer}{tokenizer.eos_token}"
    text = tokenizer.apply_chat_template(
        [*judged, *asked], tokenize=False, add_generation_prompt=prompt, date_string="26 Jul 2024"
    )
    if name == "gptoss":  # it asks the clock alone
        text = text.replace(datetime.date.today().isoformat(), "26 Jul 2024")
    return tokenizer(text + behind, add_special_tokens=False)["input_ids"]


# --- parity ---


@pytest.mark.parametrize(("name", "layout", "outcome"), table())
def test_parts_are_the_templates_own_rendering(name, layout, outcome, published, rows):
    tokenizer = published(name)
    if outcome != "yes":
        with pytest.raises(UserError, match=f"dialogue.layout='one_turn'.*{outcome}") as error:
            make(tokenizer, layout)
        assert "\n" not in str(error.value)
        return
    dialogue = make(tokenizer, layout)
    assert {len(messages) for messages, _, _ in rows} > {1, 3, 5}
    for i, (messages, response, thought) in enumerate(rows):
        messages = messages if i % 2 or name == "gemma" else [turn("system", "Be fair."), *messages]
        for verdict, answer in enumerate(ANSWERS):
            expected = own_rendering(tokenizer, name, layout, messages, response, thought, answer)
            ours = [
                *dg.prefix_ids(dialogue, messages, response),
                *dg.encode_thought(dialogue, thought),
                *dialogue.question_ids[1:],
                dialogue.answer_ids[verdict],
            ]
            assert ours == expected[: len(ours)]
            assert len(expected) - len(ours) <= 3 and expected[len(ours)] in tokenizer.added_tokens_decoder
            assert dg.render(dialogue, messages, response, thought, answer) == expected


def test_the_table_has_every_template(shared_data):
    files = {path.stem for path in (shared_data / "templates").glob("*.jinja")}
    assert {name for name, _, _ in table()} == files | {"smollm2"}


# --- exact ---


def test_qwen3_dialogues_are_these_texts(published):
    tokenizer = published("qwen3")
    one, two = make(tokenizer, "one_turn"), make(tokenizer)
    opened = f"<|im_start|>user\n{JUDGE}\n\n{ASK}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert tokenizer.decode(dg.prefix_ids(one, [turn("user", "Hi")], "Ho")).endswith(opened)
    assert tokenizer.decode(dg.encode_thought(one, "Fine.\n\nYes.")) == "Fine.\n\nYes.\n</think>"
    assert tokenizer.convert_ids_to_tokens(one.question_ids) == ["</think>", "ĊĊ"]
    assert tokenizer.convert_ids_to_tokens(one.stop_ids) == ["<|im_end|>"]
    assert tokenizer.decode(list(two.question_ids)) == (
        f"<|im_end|>\n<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    for dialogue in (one, two):
        assert dg.has_control_token(dialogue, "good</think>") and not dg.has_control_token(dialogue, "good<b>")


@pytest.mark.parametrize("kind", dg.KEYS)
def test_a_layout_is_kept_as_json_for_every_kind(kind, published):
    shown = {"judge_question": "{conversation} {first} {second}", "turn": "{content}"} if kind == "label" else {}
    texts = dg.Texts(**{"judge_question": JUDGE, "answer_question": ASK, "answers": ANSWERS, "kind": kind} | shown
                     | {"layout": "one_turn", "template_arguments": {"enable_thinking": False}})  # fmt: skip
    dialogue = dg.make_dialogue(published("qwen3"), texts)
    again = dg.make_dialogue(published("qwen3"), dg.Texts(**json.loads(json.dumps(dataclasses.asdict(texts)))))
    assert again == dialogue
    ids = dg.prefix_ids(again, [turn("user", "Hi")], ("Ho", "Hm") if kind == "label" else "Ho")
    end = "Ho<|im_end|>\n" if kind == "bare" else f"{ASK}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert again.tokenizer.decode(ids).endswith(end)


def test_template_arguments(published):
    messages = [turn("user", "Hi")]
    tokenizer = published("gptoss")
    high = make(tokenizer, template_arguments={"reasoning_effort": "high"})
    assert "Reasoning: high" in tokenizer.decode(dg.prefix_ids(high, messages, "Ho"))
    assert "Reasoning: medium" in tokenizer.decode(dg.prefix_ids(make(tokenizer), messages, "Ho"))
    for name, why in (("reasoning_effrt", "does not know 'reasoning_effrt'"), ("tokenize", "not for you to set")):
        with pytest.raises(UserError, match=f"dialogue.template_arguments: .*{why}"):
            make(tokenizer, template_arguments={name: True})
    with pytest.raises(UserError, match="dialogue.layout='one_trun': choose one of two_turns, one_turn"):
        make(tokenizer, "one_trun")


def test_other_end_tokens(published, tmp_path):
    llama = published("llama3_1")
    assert make(llama).stop_ids == () and make(published("phi3")).stop_ids == (151643,)
    ends = [llama.convert_tokens_to_ids(token) for token in ("<|eot_id|>", "<|end_of_text|>")]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [*ends, 10**6]}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert end_ids(tmp_path) == (7, *sorted(ends), 10**6) and end_ids(tmp_path / "nowhere") == ()
    dialogue = dg.make_dialogue(llama, dg.Texts(JUDGE, ASK, ANSWERS), end_ids(tmp_path))
    assert dialogue.stop_ids == (7, ends[1]), "without the turn's own end, and without ids that no token has"


# --- what is refused ---


def test_a_template_without_a_system_role_refuses_the_row_and_the_key(published):
    gemma = published("gemma")
    dialogue = make(gemma)
    assert dg.prefix_ids(dialogue, [turn("user", "Hi")], "Ho")
    with pytest.raises(UserError, match="the chat template refuses a conversation: .*System role not supported"):
        dg.prefix_ids(dialogue, [turn("system", "Be fair."), turn("user", "Hi")], "Ho")
    with pytest.raises(UserError, match="^dialogue.system: .*System role not supported.*; leave it empty"):
        make(gemma, system="Be fair.")


def test_a_template_runs_in_a_sandbox(published):
    tokenizer = published("qwen2_5")
    tokenizer.chat_template = "{{ cycler.__init__.__globals__.os.getcwd() }}" + tokenizer.chat_template
    with pytest.raises(UserError, match="the chat template refuses a conversation: SecurityError"):
        make(tokenizer)
