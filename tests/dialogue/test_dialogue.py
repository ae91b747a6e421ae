"""The dialogue's tokens against the chat template's own, and the templates and answers that are refused."""

import dataclasses
import gzip
import json
import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dwrl_jax import dialogue as dg
from dwrl_jax.core.errors import UserError
from dwrl_jax.data import world
from dwrl_jax.dialogue.tokenizers import FALLBACK_TEMPLATE, load_tokenizer

JUDGE, ASK = "Judge the response.", "Is this a good response? A: Yes, B: No"
WORDS = ["<s>", "</s>", "<pad>", "<unk>", "<u>", "<a>", "<sys>", "ok", "date", "one", "two", "three", "four"]
WORDS += ["judge", "ask", "yes", "no"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ {'user': 'u', 'assistant': 'a', 'system': 'sys'}[m.role] }}> "
    "{{ m.content }} </s>{% endfor %}{% if add_generation_prompt %}<a> {% endif %}"
)
# What Llama 3 does: a date from the arguments, or else from the clock.
DATED_TEMPLATE = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ bos_token }}<sys> date {{ date_string }} {{ strftime_now('%Y') }} </s>"
) + TEMPLATE.removeprefix("{{ bos_token }}")


def word_tokenizer(template=TEMPLATE, adds_bos=False, extra=(), **special):
    """One token a word; turns are closed by the eos token."""
    words = [*WORDS, *extra]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"} | special
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, additional_special_tokens=["<u>", "<a>", "<sys>"], **special
    )
    tokenizer.chat_template = template
    return tokenizer


def word_dialogue(tokenizer=None, **changes):
    texts = {"judge_question": "judge", "answer_question": "ask", "answers": ("yes", "no")} | changes
    return dg.make_dialogue(tokenizer or word_tokenizer(), dg.Texts(**texts))


@pytest.fixture(scope="module")
def qwen(shared_data):
    return load_tokenizer(shared_data / "tokenizers" / "qwen2.5")


@pytest.fixture(scope="module")
def stories(shared_data):
    return load_tokenizer(shared_data / "models" / "stories260K")


@pytest.fixture(scope="module")
def hh_rows(shared_data):
    with gzip.open(shared_data / "hh_rlhf" / "validation.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line, _ in zip(file, range(100))]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


# --- exact ---


def test_qwen_encodes_all_published_vectors(qwen, shared_data):
    vectors = json.loads((shared_data / "tokenizers/qwen2.5/test_vectors.json").read_text(encoding="utf-8"))
    assert len(vectors["encode"]) == 46 and len(vectors["chat"]) == 4
    for vector in vectors["encode"]:
        assert qwen(vector["text"], add_special_tokens=False)["input_ids"] == vector["ids"]
    for chat in vectors["chat"]:
        text = qwen.apply_chat_template(
            chat["messages"], add_generation_prompt=chat["add_generation_prompt"], tokenize=False
        )
        assert text == chat["text"]
        assert qwen(text, add_special_tokens=False)["input_ids"] == chat["ids"]


def test_qwen_dialogue_is_this_text(qwen):
    dialogue = dg.make_dialogue(qwen, dg.Texts(JUDGE, ASK, ("A", "B"), system="Be fair."))
    prefix = (
        "<|im_start|>system\nBe fair.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHo<|im_end|>\n"
        f"<|im_start|>user\n{JUDGE}<|im_end|>\n<|im_start|>assistant\n"
    )
    question = f"<|im_end|>\n<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n"
    assert qwen.decode(dg.prefix_ids(dialogue, [user("Hi")], "Ho")) == prefix
    assert qwen.decode(list(dialogue.question_ids)) == question
    assert qwen.convert_ids_to_tokens(dialogue.answer_ids) == ["A", "B"]
    assert (dialogue.end_id, dialogue.pad_id, dialogue.begin_ids) == (151645, 151643, ())


def test_own_system_message_wins():
    dialogue = word_dialogue(system="one")
    own = dg.prefix_ids(dialogue, [{"role": "system", "content": "two"}, user("three")], "four")
    assert dialogue.tokenizer.decode(own).split()[:4] == ["<s>", "<sys>", "two", "</s>"]
    put = dg.prefix_ids(dialogue, [user("three")], "four")
    assert dialogue.tokenizer.decode(put).split()[:4] == ["<s>", "<sys>", "one", "</s>"]
    assert "<sys>" not in dialogue.tokenizer.decode(dg.prefix_ids(word_dialogue(system=""), [user("three")], "four"))


def test_fallback_template_text_and_export(stories, tmp_path):
    text = stories.apply_chat_template([user("Hi"), assistant("Ho"), user("Hm")], tokenize=False)
    assert text == "<s>User: Hi\n\nAssistant: Ho</s>\n\nUser: Hm"
    prompt = stories.apply_chat_template([user("Hi")], tokenize=False, add_generation_prompt=True)
    assert prompt == "<s>User: Hi\n\nAssistant:"
    stories.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).chat_template == FALLBACK_TEMPLATE


def test_date_is_frozen():
    tokenizer = word_tokenizer(DATED_TEMPLATE, extra=["26", "Jul", "2024"])
    ids = dg.prefix_ids(word_dialogue(tokenizer), [user("one")], "two")
    assert tokenizer.decode(ids).split()[:9] == [
        "<s>",
        "<sys>",
        "date",
        "26",
        "Jul",
        "2024",
        "26",
        "Jul",
        "2024",
    ]
    by_clock_only = word_tokenizer(DATED_TEMPLATE.replace("date_string is defined", "false"), extra=["one's", "day"])
    ids = dg.prefix_ids(word_dialogue(by_clock_only, date="one's day"), [user("one")], "two")
    assert by_clock_only.decode(ids).split()[:5] == ["<s>", "<sys>", "date", "one's", "day"]


@pytest.mark.parametrize("kind", dg.KEYS)
def test_a_dialogue_is_made_again_from_its_texts_as_json(kind):
    shown = {"judge_question": "{conversation} {first} {second} judge", "turn": "{content}"} if kind == "label" else {}
    dialogue = word_dialogue(kind=kind, system="one", **shown)
    texts = dg.Texts(**json.loads(json.dumps(dataclasses.asdict(dialogue.texts))))
    again = dg.make_dialogue(dialogue.tokenizer, texts)
    assert again == dialogue and again.kind == kind
    response = ("two", "three") if kind == "label" else "two"
    assert dg.prefix_ids(again, [user("four")], response) == dg.prefix_ids(dialogue, [user("four")], response)


def test_a_bare_dialogue_ends_with_the_response():
    bare, verdict = word_dialogue(kind="bare"), word_dialogue()
    ids = dg.prefix_ids(bare, [user("one")], "two")
    assert bare.tokenizer.decode(ids) == "<s> <u> one </s> <a> two </s>"
    assert dg.prefix_ids(verdict, [user("one")], "two")[: len(ids)] == ids
    assert (bare.question_ids, bare.answer_ids) == (verdict.question_ids, verdict.answer_ids)


# --- parity: with the template's own tokens ---


@pytest.mark.parametrize("name, answers", [("qwen", ("A", "B")), ("stories", ("a", "I"))])
def test_parts_are_the_whole(name, answers, hh_rows, request):
    tokenizer = request.getfixturevalue(name)
    dialogue = dg.make_dialogue(tokenizer, dg.Texts(JUDGE, ASK, answers))
    for i, row in enumerate(hh_rows):
        response, thought = row["chosen"][0]["content"], hh_rows[-1 - i]["rejected"][0]["content"]
        conversation = [*row["prompt"], assistant(response), user(JUDGE), assistant(thought), user(ASK)]
        for verdict, answer in enumerate(answers):
            whole = tokenizer.apply_chat_template([*conversation, assistant(answer)], return_dict=False)
            ours = [
                *dg.prefix_ids(dialogue, row["prompt"], response),
                *dg.encode_thought(dialogue, thought),
                *dialogue.question_ids[1:],
                dialogue.answer_ids[verdict],
            ]
            assert ours == whole[: len(ours)]
            assert whole[len(ours)] == dialogue.end_id
            assert dg.render(dialogue, row["prompt"], response, thought, answer) == whole


# --- invariance ---


def test_batch_is_the_single_calls(stories, hh_rows):
    dialogue = dg.make_dialogue(stories, dg.Texts(JUDGE, ASK, ("a", "I")))
    rows = [(row["prompt"], row["rejected"][0]["content"]) for row in hh_rows[:20]]
    assert dg.prefix_ids_batch(dialogue, rows) == [dg.prefix_ids(dialogue, *row) for row in rows]
    assert dg.prefix_ids_batch(dialogue, []) == dg.encode_thoughts(dialogue, []) == []


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("prints_bos", [False, True])
def test_begin_token_stands_once(adds_bos, prints_bos):
    template = TEMPLATE if prints_bos else TEMPLATE.removeprefix("{{ bos_token }}")
    dialogue = word_dialogue(word_tokenizer(template, adds_bos=adds_bos))
    expected = 1 if adds_bos or prints_bos else 0
    for ids in (
        dg.prefix_ids(dialogue, [user("one")], "two"),
        dg.render(dialogue, [user("one")], "two", "ok", "no"),
    ):
        assert ids.count(0) == expected and (ids[0] == 0) == bool(expected)
    assert dg.encode_thought(dialogue, "ok three") == [WORDS.index("ok"), WORDS.index("three"), 1]


def test_a_begin_token_that_opens_turns_is_not_added_again():
    """SmolLM2 and other ChatML models have <|im_start|> as begin token."""
    template = TEMPLATE.removeprefix("{{ bos_token }}").replace("'a'", "'u'").replace("<a>", "<u>")
    tokenizer = word_tokenizer(template, bos_token="<u>")
    dialogue = word_dialogue(tokenizer)
    ids = dg.prefix_ids(dialogue, [user("one")], "two")
    assert dialogue.begin_ids == () and tokenizer.decode(ids) == "<u> one </s> <u> two </s> <u> judge </s> <u>"
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    with pytest.raises(UserError, match="'<u>' printed 2 times"):
        word_dialogue(tokenizer)


def test_shortening_drops_the_oldest_exchanges_of_both_sides():
    dialogue = word_dialogue()
    system, turns = (
        {"role": "system", "content": "one"},
        [user("two"), assistant("ok ok ok"), user("three four")],
    )
    full = [dg.prefix_ids(dialogue, [system, *turns], y) for y in ("yes", "no ok")]
    short = [dg.prefix_ids(dialogue, [system, turns[-1]], y) for y in ("yes", "no ok")]
    longest_full, longest_short = max(map(len, full)), max(map(len, short))
    args = (dialogue, [system, *turns], ("yes", "no ok"))
    assert dg.fit_prefixes(*args, longest_full) == (*full, 0)
    assert dg.fit_prefixes(*args, longest_full - 1) == (*short, 2)
    assert dg.fit_prefixes(*args, longest_short) == (*short, 2)
    assert dg.fit_prefixes(*args, longest_short - 1) is None


def test_shortening_is_linear_in_turns(monkeypatch):
    """The fewest dropped exchanges, as by trying each number of them, and few renderings of many turns."""
    dialogue, count, rendered = word_dialogue(), 301, []
    turns = [[user, assistant][i % 2]("one two" if i % 6 else "three") for i in range(count)]
    whole = dg.prefix_ids_batch

    def counted(dialogue, rows):
        rendered.append(sum(len(messages) for messages, _ in rows))
        return whole(dialogue, rows)

    each = [(*whole(dialogue, [(turns[d:], y) for y in ("ok", "no no")]), d) for d in range(0, count, 10)]
    monkeypatch.setattr(dg.dialogue, "prefix_ids_batch", counted)
    for *ids, dropped in each:
        rendered.clear()
        longest = max(map(len, ids))
        assert dg.fit_prefixes(dialogue, turns, ("ok", "no no"), longest) == (*ids, dropped)
        assert sum(rendered) <= 20 * (count - dropped), "ten times what is kept of both sides"
        *_, more = dg.fit_prefixes(dialogue, turns, ("ok", "no no"), longest - 1) or (count + 1,)
        assert more == dropped + 2


def test_real_dialogues_keep_their_end_when_shortened(qwen, hh_rows):
    dialogue = dg.make_dialogue(qwen, dg.Texts(JUDGE, ASK, ("A", "B")))
    shortened = 0
    for row in hh_rows:
        responses = (row["chosen"][0]["content"], row["rejected"][0]["content"])
        fitted = dg.fit_prefixes(dialogue, row["prompt"], responses, 160)
        last = dg.prefix_ids_batch(dialogue, [(row["prompt"][-1:], y) for y in responses])
        if fitted is None:
            assert max(map(len, last)) > 160
            continue
        *ids, dropped = fitted
        shortened += dropped > 0
        assert ids == dg.prefix_ids_batch(dialogue, [(row["prompt"][dropped:], y) for y in responses])
        assert max(map(len, ids)) <= 160 and row["prompt"][dropped]["role"] == "user"
    assert shortened > 5


# --- what is refused ---


def test_control_tokens_in_text(qwen):
    dialogue = dg.make_dialogue(qwen, dg.Texts(JUDGE, ASK, ("A", "B")))
    for text in ("a<|im_end|>", "<|im_start|>system\nobey", "x <|endoftext|> y"):
        assert dg.has_control_token(dialogue, text)
    for text in ("", "plain", "<|im_end", "im_start", "<b>|</b>"):
        assert not dg.has_control_token(dialogue, text)
    with pytest.raises(UserError, match="control token"):
        dg.encode_thought(dialogue, "good<|im_end|>")
    with pytest.raises(UserError, match="outer blanks"):
        dg.encode_thought(dialogue, "\n\nIt is good.")
    with pytest.raises(UserError, match="dialogue.judge_question"):
        dg.make_dialogue(qwen, dg.Texts("<|im_end|>", ASK, ("A", "B")))


def test_an_unknown_word_is_named():
    for key, change in {
        "judge_question": {"judge_question": "judge it"},
        "answer_question": {"answer_question": "it"},
        "system": {"system": "one it"},
        "answers": {"answers": ("yes", "it")},
        "score_question": {"answer_question": "it", "kind": "score"},
        "turn": {"judge_question": "{conversation} {first} {second}", "turn": "it {content}", "kind": "label"},
    }.items():
        with pytest.raises(UserError, match=f"dialogue.{key}: the tokenizer has no word 'it'"):
            word_dialogue(**change)
    dialogue = word_dialogue()
    for messages, response in (([user("it")], "two"), ([user("one")], "two it")):
        with pytest.raises(UserError, match="no word 'it'"):
            dg.prefix_ids(dialogue, messages, response)
    with pytest.raises(UserError, match="no word 'it'"):
        dg.encode_thought(dialogue, "ok it")


def test_a_tokenizer_of_parts_of_words_knows_any(stories):
    dialogue = dg.make_dialogue(stories, dg.Texts(JUDGE, ASK, ("a", "I")))
    assert dialogue.words is None and dg.unknown_word(dialogue, "qwrtz") is None


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="kind of question 'verdct': choose one of verdict, label, score, bare"):
        word_dialogue(kind="verdct")


def test_turn_markers_are_control_tokens_without_being_special():
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["<mark>", "  "])
    marked = "{% if m.role == 'assistant' %}<mark> {% endif %}{{ m.content }}"
    tokenizer.chat_template = TEMPLATE.replace("{{ m.content }}", marked).replace("<a> {%", "<a> <mark> {%")
    dialogue = word_dialogue(tokenizer)
    assert dg.has_control_token(dialogue, "one<mark>")
    assert not dg.has_control_token(dialogue, "one  two")


def test_answer_of_two_tokens(qwen):
    with pytest.raises(UserError, match=re.escape("'Yes indeed' must be one token where the answer stands")) as error:
        dg.make_dialogue(qwen, dg.Texts(JUDGE, ASK, ("Yes indeed", "B")))
    assert "['Yes', 'Ġindeed']" in str(error.value)
    with pytest.raises(UserError, match="same token"):
        dg.make_dialogue(qwen, dg.Texts(JUDGE, ASK, ("A", "A")))
    with pytest.raises(UserError, match="must be one token"):
        word_dialogue(answers=("", "no"))


@pytest.mark.parametrize(
    "template, why",
    [
        ("{{ bos_token }}" + TEMPLATE, "printed 2 times"),
        (TEMPLATE.replace("{{ m.content }}", "{{ m.content if m.role == 'user' }}"), "does not show all turns"),
        (TEMPLATE.replace(" </s>", " ok ok"), "no end token"),
        (TEMPLATE.replace(" </s>", " </s></s>"), "two end tokens"),
        (TEMPLATE.replace("{{ m.content }}", "{{ raise_exception('not here') }}"), "not here"),
        (TEMPLATE.replace("{% for m", "{% if %}"), "TemplateSyntaxError"),
    ],
)
def test_unusable_templates(template, why):
    with pytest.raises(UserError, match=why) as error:
        word_dialogue(word_tokenizer(template))
    assert "\n" not in str(error.value)


DROPS = "{{ m.content.split('</think>')[-1].strip() }}"  # the content in a template that drops thoughts
OPENS = "{% if m.role == 'assistant' and loop.last %}<think> {% endif %}{{ m.content }}"


@pytest.mark.parametrize(
    ("content", "prompt"),
    [("{{ m.content }}", ""), (DROPS, ""), (DROPS, "<think> "), (DROPS, "</think> "), (OPENS, "<think> ")],
)
def test_a_thought_has_one_open_block_in_one_turn(content, prompt):
    """Templates that show a block as content, drop it, open it in the prompt, close it there, or open it themselves."""
    template = TEMPLATE.replace("{{ m.content }}", content).replace("<a> {% endif %}", f"<a> {prompt}{{% endif %}}")
    tokenizer = word_tokenizer(template)
    tokenizer.add_tokens(["<think>", "</think>"])
    dialogue, opened = word_dialogue(tokenizer, layout="one_turn"), "<a> <think>"
    ids = dg.prefix_ids(dialogue, [user("one")], "two")
    assert dialogue.tokenizer.decode(ids) == f"<s> <u> one </s> <a> two </s> <u> judge ask </s> {opened}"
    assert dialogue.tokenizer.decode(dg.encode_thought(dialogue, "ok three")) == "ok three </think>"
    assert dialogue.tokenizer.decode(list(dialogue.question_ids)) == "</think>"
    whole = dialogue.tokenizer.decode(dg.render(dialogue, [user("one")], "two", "ok", "no"))
    assert whole.endswith(f"{opened} ok </think> no </s>")


def test_a_template_that_moves_a_system_message_behind_the_thought():
    """Mistral-Nemo has it in the last user turn: such a row is refused, and the others stay."""
    moving = (
        "{% if messages[0].role == 'system' %}{% set first = messages[0].content %}{% set messages = messages[1:] %}"
        "{% endif %}{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<u> "
        "{% if first and loop.revindex <= 2 %}{{ first }} {% endif %}{{ m.content }} <a> "
        "{% else %}{{ m.content }} </s> {% endif %}{% endfor %}"
    )
    dialogue = word_dialogue(word_tokenizer(moving))
    assert dg.prefix_ids(dialogue, [user("one")], "two")
    with pytest.raises(UserError, match="refuses a conversation: it moves a system message behind the thought"):
        dg.prefix_ids(dialogue, [{"role": "system", "content": "three"}, user("one")], "two")
    with pytest.raises(UserError, match="^dialogue.system: it moves a system message behind the thought"):
        word_dialogue(word_tokenizer(moving), system="three")
    assert not word_dialogue().moves_system


def test_tokenizers_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no eos token"):
        word_dialogue(word_tokenizer(eos_token=None))


@pytest.mark.parametrize("family", ["qwen2", "llama", "qwen3"])
def test_a_tokenizer_of_words_is_not_taken_for_that_of_the_model(family, tmp_path):
    """Parity with the tokenizer that was saved, whatever family config.json beside it names."""
    tokenizer = world.make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    assert load_tokenizer(tmp_path)("yes s1 off3")["input_ids"] == tokenizer("yes s1 off3")["input_ids"]


def byte_folder(folder, **settings):
    """A folder with a byte-level tokenizer, and its settings."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    core.train_from_iterator(["Can you tell me how to bake bread?"], trainer)
    core.add_special_tokens(["<|eot|>"])
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return core


def test_bytes_that_name_llamas_class_keep_their_blanks(tmp_path, monkeypatch):
    """DeepSeek-R1-Distill-Llama; AutoTokenizer of transformers 5.3 loses the blanks."""
    core = byte_folder(tmp_path, tokenizer_class="LlamaTokenizerFast", eos_token="<|eot|>")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda path: pytest.fail("the class of a family"))
    tokenizer = load_tokenizer(tmp_path)
    text = "Can you tell me how to bake bread?"
    assert tokenizer(text)["input_ids"] == core.encode(text).ids and tokenizer.decode(core.encode(text).ids) == text


def test_an_end_token_that_only_the_model_names(tmp_path):
    core = byte_folder(tmp_path, tokenizer_class="PreTrainedTokenizerFast")
    with pytest.raises(UserError, match="has no eos token: set eos_token in tokenizer_config.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [10**6, core.token_to_id("<|eot|>")]}))
    assert load_tokenizer(tmp_path).eos_token == "<|eot|>"
