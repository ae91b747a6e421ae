"""The layout "one_turn": sampler, teacher forcing and the template's own text share one density, by enumeration."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dwrl_jax.core import files
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.types import PreferenceBatch
from dwrl_jax.dialogue import Texts, make_dialogue, prefix_ids, render
from dwrl_jax.generation.keys import TRAINING, sampling_key
from dwrl_jax.generation.sampler import SamplerOptions
from dwrl_jax.judge import JudgeCard, load
from dwrl_jax.judge.card import as_json
from dwrl_jax.judge.judge import logps
from dwrl_jax.judge.thoughts import sample
from dwrl_jax.models import hf
from dwrl_jax.models.families.presets import PRESETS, shrink
from dwrl_jax.models.transformer import logits, output_table
from tests.small import given_thoughts, make_judge

T = 2  # longest thought
WORDS = ["<pad>", "</s>", "<u>", "<a>", "</think>", "<think>", "one", "two", "judge", "ask", "yes", "no"]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role[0] }}> {% if m.reasoning_content %}<think> {{ m.reasoning_content }} </think> "
    "{% endif %}{{ m.content }} </s> {% endfor %}{% if add_generation_prompt %}<a> {% endif %}"
)
MESSAGES, RESPONSES = [{"role": "user", "content": "one two"}], ("two", "one one")


@pytest.fixture(scope="module")
def case():
    """The dialogue, its judge with random parameters, and a pair."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="<pad>")
    tokenizer.add_tokens(["<u>", "<a>", "<think>", "</think>"])
    tokenizer.chat_template = TEMPLATE
    talk = make_dialogue(tokenizer, Texts("judge", "ask", ("yes", "no"), layout="one_turn"))
    judge, params = make_judge(vocab_size=len(WORDS), temperature=0.8, sharpness=1.0)
    judge = dataclasses.replace(  # the end token also fills up, as in SmolLM2
        judge, question=talk.question_ids, answers=talk.answer_ids, stops=talk.stop_ids, pad=talk.end_id
    )
    prefixes = [prefix_ids(talk, MESSAGES, response) for response in RESPONSES]
    assert tokenizer.decode(prefixes[0]) == "<u> one two </s> <a> two </s> <u> judge ask </s> <a> <think>"
    width = max(map(len, prefixes))
    batch = PreferenceBatch(
        prefix=jnp.asarray([[ids + [0] * (width - len(ids)) for ids in prefixes]]),
        prefix_len=jnp.asarray([[len(ids) for ids in prefixes]]),
        answer=jnp.full((1, 2), talk.answer_ids[0]),
        valid=jnp.ones(1, bool),
        pair_id=jnp.asarray([7]),
    )
    return talk, judge, params, batch


@pytest.fixture(scope="module")
def table(case):
    """All thoughts of at most T tokens, and for each side their log-probabilities and log scores by teacher forcing."""
    talk, judge, params, batch = case
    ends = (talk.end_id, *talk.stop_ids)
    tokens = range(len(WORDS))
    all_of_them = [(first,) for first in ends] + [
        (first, second) for first, second in itertools.product(tokens, tokens) if first not in ends
    ]
    ids = np.array([[*thought, *[judge.pad] * (T - len(thought))] for thought in all_of_them])
    length = np.array([len(thought) for thought in all_of_them])
    given = given_thoughts(np.broadcast_to(ids, (1, 2, *ids.shape)), np.broadcast_to(length, (1, 2, *length.shape)))
    found = jax.jit(lambda p: logps(judge, p, batch, given))(params)
    return all_of_them, np.asarray(found.thought)[0], np.asarray(found.answer)[0]


def test_the_density_of_thoughts_is_whole(case, table):
    talk, _, _, _ = case
    thoughts, logp, _ = table
    assert talk.tokenizer.decode([talk.end_id]) == "</think>" and len(talk.stop_ids) == 1
    np.testing.assert_allclose(np.exp(logp.sum(-1)).sum(-1), 1, atol=1e-5)
    assert len(thoughts) == 2 + 10 * 12


def test_drawn_thoughts_have_the_density_that_is_trained(case, table):
    _, judge, params, batch = case
    thoughts, logp, score = table
    options, key = SamplerOptions(group_size=64, max_thought=T), sampling_key(0, TRAINING, 0)
    drawn, drawn_score, _ = jax.jit(lambda p: sample(judge, options, p, batch, key, True))(params)
    place, seen = {thought: i for i, thought in enumerate(thoughts)}, set()
    for s, g in np.ndindex(2, 64):
        size = int(drawn.thought_len[0, s, g])
        thought = tuple(np.asarray(drawn.thought)[0, s, g, :size].tolist())
        np.testing.assert_allclose(drawn.old_logp[0, s, g], logp[s, place[thought]], atol=1e-4)
        np.testing.assert_allclose(drawn_score[0, s, g], score[s, place[thought]], atol=1e-4)
        if int(drawn.verdict.place[0, s, g]) >= 0:
            assert bool(drawn.verdict.well_formed[0, s, g]) == (thought[-1] == judge.end)
            seen.add(thought[-1])
    assert {judge.end, *judge.stops} < seen, "the case is not in the sample"


def test_scores_are_those_of_the_plain_model_on_the_templates_text(case, table):
    """log pi(answer) behind each whole thought, from one pass over the template's own rendering."""
    talk, judge, params, _ = case
    thoughts, _, score = table
    plain = jax.jit(lambda ids, at: logits(judge.model.apply(params, ids, at)[0], output_table(params)))
    words = [i for i, word in enumerate(WORDS) if word in ("one", "two", "judge")]
    for side, response in enumerate(RESPONSES):
        for word in words:
            ids = render(talk, MESSAGES, response, WORDS[word], "yes")
            assert talk.tokenizer.decode(ids).endswith(f"judge ask </s> <a> <think> {WORDS[word]} </think> yes </s>")
            at = len(ids) - 3  # predicts the answer
            padded = jnp.asarray([[ids + [0] * (24 - len(ids))]])
            expected = jax.nn.log_softmax(plain(padded, jnp.arange(24)[None, None])[0, 0, at])[ids[at + 1]]
            found = score[side, thoughts.index((word, talk.end_id))]
            np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_judge_json_carries_the_layout_and_a_folder_its_end_tokens(case, tmp_path):
    talk, judge, params, _ = case
    card = JudgeCard(texts=talk.texts, max_thought=T, buckets=(16,))
    hf_config = shrink(PRESETS["qwen2.5-3b"], len(WORDS))
    hf.save_model(tmp_path, params, judge.model.config, hf_config, tokenizer=talk.tokenizer)
    files.write_json(tmp_path / "judge.json", as_json(card))
    files.write_json(tmp_path / "generation_config.json", {"eos_token_id": [1, 2]})
    loaded = load(tmp_path)
    assert loaded.card == card and loaded.judge.question == talk.question_ids
    assert loaded.judge.stops == (1, 2) and judge.stops == (1,)
    assert prefix_ids(loaded.dialogue, MESSAGES, "two") == prefix_ids(talk, MESSAGES, "two")
    files.write_json(tmp_path / "judge.json", as_json(card) | {"texts": vars(talk.texts) | {"layout": "three_turns"}})
    with pytest.raises(UserError, match=r"judge.json: dialogue.layout='three_turns': choose one of"):
        load(tmp_path)
