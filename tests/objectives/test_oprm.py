"""Exact: preferences from distributions over scores, enumerated, and their way through a judge."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwrl_jax.core.errors import UserError
from dwrl_jax.core.types import Logps
from dwrl_jax.data import world
from dwrl_jax.evaluation import metrics as evaluate
from dwrl_jax.judge.judge import logps
from dwrl_jax.judge.thoughts import no_thoughts
from dwrl_jax.models.transformer import logits, output_table
from dwrl_jax.objectives import oprm
from dwrl_jax.settings.commandline import parse
from dwrl_jax.training import config as configuration
from dwrl_jax.training import sources
from tests.runs import recipe_of, tiny, trace_update
from tests.small import assert_trees_close, make_batch, make_judge

SCORES = (7, 2, 9)  # tokens, the lowest score first


def probability(first, second):
    """P(first > second) of two distributions [K], score by score."""
    found = 0.0
    for j in range(len(first)):
        for k in range(len(second)):
            found += first[j] * second[k] * (1.0 if j > k else 0.5 if j == k else 0.0)
    return found


def test_wins_in_numbers():
    first, second = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.4, 0.0])
    wins = 0.3 * 0.6 + 0.5 * (0.6 + 0.4) + (0.2 * 0.6 + 0.3 * 0.4) / 2
    assert probability(first, second) == pytest.approx(wins) == pytest.approx(0.8)
    log_first, log_second = jnp.log(first), jnp.log(second + 1e-12)
    assert float(jnp.exp(oprm.log_wins(log_first, log_second))) == pytest.approx(0.8, rel=1e-5)
    assert float(jnp.exp(oprm.log_wins(log_second, log_first))) == pytest.approx(0.2, rel=1e-5)
    assert float(jnp.exp(oprm.log_wins(log_first, log_first))) == pytest.approx(0.5)


def of_values(values):
    """Logps of log-probabilities of scores [B 2 G K]."""
    answer = oprm.value_scores(values, oprm.Hyper())
    return Logps(jnp.zeros((*answer.shape, 1)), answer, jnp.ones_like(answer), jnp.zeros((*answer.shape, 1)))


def test_the_loss_is_the_likelihood_and_the_evaluation_agrees():
    raw = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 1, 5)), jnp.float32)
    (loss,) = oprm.phases(oprm.Hyper()).values()

    def exact(raw):
        each = jax.nn.softmax(raw, -1)[:, :, 0]
        return jnp.stack([-jnp.log(probability(*pair)) for pair in each])

    def ours(raw):
        return loss(of_values(jax.nn.log_softmax(raw, -1)), None)[0]

    np.testing.assert_allclose(ours(raw), exact(raw), rtol=1e-5)
    gradient = jax.grad(lambda x: ours(x).sum())(raw)
    assert_trees_close(gradient, jax.grad(lambda x: exact(x).sum())(raw), 1e-5)
    assert (gradient[:, 0, 0, -1] < 0).all() and (gradient[:, 1, 0, -1] > 0).all()  # the chosen one's best score rises
    np.testing.assert_allclose(loss(of_values(raw), None)[0], exact(raw), rtol=1e-5)  # renormalised or not
    found = of_values(jax.nn.log_softmax(raw, -1))
    margin = evaluate.log_odds(np.asarray(found.answer), 1)[:, 0]
    np.testing.assert_allclose(np.log1p(np.exp(-margin)), exact(raw), rtol=1e-5)
    assert loss(found, None)[1]["pair_accuracy"].tolist() == (exact(raw) < np.log(2)).astype(float).tolist()


def ordinal_judge():
    judge, params = make_judge(kind="score")
    scores = functools.partial(oprm.value_scores, hyper=oprm.Hyper())
    return dataclasses.replace(judge, answers=SCORES, value_scores=scores), params


def test_a_judge_reads_the_scores_where_the_answer_stands():
    """Parity: the plain decoder on each written-out dialogue, and the softmax of three of its logits."""
    judge, params = ordinal_judge()
    batch = make_batch(pairs=2)
    found = logps(judge, params, batch, no_thoughts(batch, judge.end))
    mass = np.zeros((2, 2))
    for b in range(2):
        each = []
        for s in range(2):
            ids = [*np.asarray(batch.prefix)[b, s, : int(batch.prefix_len[b, s])].tolist(), *judge.question]
            ids += [0] * (16 - len(ids))  # of one length, so that it is compiled once
            at = int(batch.prefix_len[b, s]) + len(judge.question) - 1
            hidden, _ = judge.model.apply(params, jnp.asarray([[ids]]), jnp.arange(16)[None, None])
            every = np.asarray(jax.nn.softmax(logits(hidden, output_table(params))[0, 0, at]), np.float64)
            picked = every[list(SCORES)]
            mass[b, s] = picked.sum()
            each.append(picked / picked.sum())
        win = probability(*each)
        expected = np.log(win / (1 - win)) / 2
        np.testing.assert_allclose(found.answer[b, :, 0], [expected, -expected], atol=1e-5)
    np.testing.assert_allclose(found.answer_mass[..., 0], mass, atol=1e-5)


def config_of(*changes):
    return parse([*tiny("oprm,smoke"), "--workdir=unused", *changes])[0]


def test_scores_are_tokens_of_the_dialogue():
    tokenizer = world.make_tokenizer()
    talk = sources.make_talk(config_of(), tokenizer, "score")
    assert tokenizer.convert_ids_to_tokens(talk.answer_ids) == ["off4", "off3", "off2", "off1", "off0"]
    asked = config_of("--config.dialogue.score_question=judge good?")
    other = sources.make_talk(asked, tokenizer, "score")
    assert tokenizer.decode(other.question_ids) == "<end> <user> judge good? <end> <assistant>"


@pytest.mark.parametrize(
    ("scores", "said"), [("('s1','s2 s3')", "must be one token"), ("('s1','s2','s1')", "are the same token")]
)
def test_scores_that_are_no_tokens(scores, said):
    with pytest.raises(UserError, match=f"dialogue.scores: .*{said}"):
        sources.make_talk(config_of(f"--config.dialogue.scores={scores}"), world.make_tokenizer(), "score")


def test_one_score_is_no_scale():
    with pytest.raises(UserError, match="dialogue.scores=.* give at least 2 values"):
        configuration.check(config_of("--config.dialogue.scores=('s1',)"))


def test_its_update_traces():
    """From the config to the program of a step: five scores, no thought, one answer a side."""
    _, batch, thoughts, *_ = trace_update("oprm,smoke").args_info[0]
    assert thoughts.thought.shape == (*batch.answer.shape, 1, 1)
    judge = recipe_of(config_of()).judge
    assert judge.kind == "score" and len(set(judge.answers)) == 5
