"""Exact and parity: the pairwise objectives against enumerated expectations and an independent cross-entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dwrl_jax.core.types import Logps, ThoughtBatch, Verdicts
from dwrl_jax.evaluation import metrics as evaluate
from dwrl_jax.generation.sampler import SamplerOptions
from dwrl_jax.judge.judge import logps
from dwrl_jax.judge.thoughts import no_thoughts, sample
from dwrl_jax.models.transformer import logits, output_table
from dwrl_jax.objectives import gram, grpo_pair, grpo_point, rm_r1
from dwrl_jax.objectives.parts import pairwise as _pairwise
from tests.small import assert_trees_close, make_batch, make_judge

# How often each (thought, verdict) comes up in a group of 16, by order: verdicts are the first label, the second
# and none. The right one is the first label in order 0 and the second one in order 1.
COUNTS = np.array([[[4, 3, 1], [1, 1, 2], [2, 1, 1]], [[1, 2, 1], [3, 3, 2], [1, 1, 2]]])
ENDED = np.array([True, True, False])  # thought 2 was cut off


def toy_params():
    """Tabular logits, [S thought] and [S thought verdict], under which the group of COUNTS is the expectation."""
    return {"thought": jnp.log(jnp.asarray(COUNTS.sum(-1))), "verdict": jnp.log(jnp.asarray(COUNTS))}


def toy_group(params):
    """Logps and thoughts of the one group that has everything as often as COUNTS says."""
    cells = np.array([[cell for cell in np.ndindex(3, 3) for _ in range(side[cell])] for side in COUNTS])
    thought, verdict = cells[None, ..., 0], cells[None, ..., 1]
    sides = np.arange(2)[:, None]
    by_thought = jax.nn.log_softmax(params["thought"].astype(jnp.float32), -1)[sides, thought]
    by_verdict = jax.nn.log_softmax(params["verdict"].astype(jnp.float32), -1)[sides, thought, verdict]
    share = jax.nn.log_softmax(params["verdict"][..., :2].astype(jnp.float32), -1)
    found = Logps(
        thought=by_thought[..., None],
        answer=share[sides, thought, sides],
        answer_mass=jnp.ones(by_thought.shape),
        entropy=jnp.zeros((*by_thought.shape, 1)),
        verdict=by_verdict,
    )
    ones = jnp.ones(thought.shape, jnp.int32)
    verdicts = Verdicts(
        token=jnp.asarray(verdict),
        old_logp=jax.lax.stop_gradient(by_verdict),
        right=jnp.asarray(verdict == sides),
        well_formed=jnp.asarray(ENDED[thought] & (verdict < 2)),
    )
    return found, ThoughtBatch(ones[..., None], ones, jax.lax.stop_gradient(found.thought), verdict=verdicts)


def expected_reward(params, reward):
    """[S] expectations, enumerated, of a reward [S thought verdict]."""
    joint = jax.nn.softmax(params["thought"], -1)[..., None] * jax.nn.softmax(params["verdict"], -1)
    return (joint * reward).sum((1, 2))


RIGHT = np.stack([np.tile([1.0, 0.0, 0.0], (3, 1)), np.tile([0.0, 1.0, 0.0], (3, 1))])
WELL_FORMED = np.tile(ENDED[:, None] * np.array([1.0, 1.0, 0.0]), (2, 1, 1))


@pytest.mark.parametrize(
    ("objective", "hyper", "reward"),
    [
        (grpo_pair, grpo_pair.Hyper(), RIGHT),
        (rm_r1, rm_r1.Hyper(format_weight=0.5), RIGHT + 0.5 * WELL_FORMED),
    ],
)
def test_exact_when_the_group_is_the_whole_space(objective, hyper, reward):
    """The gradient is that of the expected reward of both orders, each divided by its standard deviation."""
    params = toy_params()
    (loss,) = objective.phases(hyper).values()
    found = jax.grad(lambda p: loss(*toy_group(p))[0].sum())(params)
    deviation = np.sqrt(expected_reward(params, reward**2) - expected_reward(params, reward) ** 2)
    expected = jax.grad(lambda p: -(expected_reward(p, reward) / (deviation + grpo_point.EPSILON)).sum())(params)
    assert_trees_close(found, expected, 1e-5)
    metrics = loss(*toy_group(params))[1]
    assert metrics["verdict_accuracy"][0] == pytest.approx(expected_reward(params, RIGHT).mean())
    assert metrics["reward"][0] == pytest.approx(expected_reward(params, reward).mean())
    assert metrics["equal_rewards"][0] == 0


def test_advantages_in_numbers():
    reward = jnp.asarray([[[1.0, 0, 0, 0], [1, 1, 0, 0]], [[1, 1, 1, 1], [0, 0, 0, 0]]])
    third = np.sqrt(3.0)
    expected = [[[third, -1 / third, -1 / third, -1 / third], [1, 1, -1, -1]], [[0] * 4, [0] * 4]]
    np.testing.assert_allclose(grpo_point.group_advantage(reward), expected, rtol=1e-5)
    even = grpo_point.group_advantage(jnp.full((1, 2, 7), 1.2))
    assert not even.any()  # though the mean of seven times 1.2 is not quite 1.2


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gram_is_the_cross_entropy_of_the_label(smoothing):
    """Parity: the plain decoder on each written-out dialogue, two logits, and another library's cross-entropy."""
    judge, params = make_judge(readout="choices")
    batch = make_batch(pairs=3).replace(answer=jnp.tile(jnp.asarray(judge.answers), (3, 1)))
    (loss,) = gram.phases(gram.Hyper(label_smoothing=smoothing)).values()
    thoughts = no_thoughts(batch, judge.end)
    target = np.array([[1 - smoothing, smoothing], [smoothing, 1 - smoothing]])

    dialogues = {
        (b, s): [*np.asarray(batch.prefix)[b, s, : int(batch.prefix_len[b, s])].tolist(), *judge.question]
        for b, s in np.ndindex(3, 2)
    }

    def plain(params):
        total = 0.0
        for (_, s), ids in dialogues.items():
            hidden, _ = judge.model.apply(params, jnp.asarray([[ids]]), jnp.arange(len(ids))[None, None])
            labels = logits(hidden, output_table(params))[0, 0, -1, jnp.asarray(judge.answers)]
            total += optax.softmax_cross_entropy(labels, target[s]) / 2
        return total

    def ours(params):
        return loss(logps(judge, params, batch, thoughts), thoughts)[0].sum()

    (found, gradient), (expected, by_plain) = (jax.jit(jax.value_and_grad(f))(params) for f in (ours, plain))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert_trees_close(gradient, by_plain, 1e-4)


def test_metrics_are_those_of_the_evaluation():
    answer = np.log(np.random.default_rng(0).uniform(0.05, 0.95, (40, 2, 8)))
    found = _pairwise.pairwise_metrics(Logps(None, jnp.asarray(answer), jnp.ones(answer.shape), None))
    expected = evaluate.metrics(answer, 8, pairwise=True)
    assert found["pair_accuracy"].mean() == pytest.approx(expected["accuracy"])
    assert found["pair_nll"].mean() == pytest.approx(expected["nll"], rel=1e-5)
    assert found["flips"].mean() == pytest.approx(expected["flips"]) and 0 < expected["flips"] < 1
    np.testing.assert_allclose(found["log_odds"], evaluate.log_odds(answer, 8, True)[:, 0], rtol=1e-4)


def test_the_other_label_has_the_rest():
    share = np.array([1e-6, 0.3, 0.5, 0.9, 1 - 1e-5])
    np.testing.assert_allclose(jnp.exp(_pairwise.log_other(jnp.log(share))), 1 - share, rtol=1e-2, atol=1e-7)
    assert np.isfinite(jax.grad(lambda x: _pairwise.log_other(x).sum())(jnp.asarray([0.0, -1e-9, -90.0]))).all()


def test_drawn_labels_are_right_in_their_order():
    """First label on side 0, second one on side 1; well formed where the thought ended and the token is a label."""
    judge, params = make_judge(kind="label", readout="choices", sharpness=0.3)
    batch = make_batch(pairs=8).replace(answer=jnp.tile(jnp.asarray(judge.answers), (8, 1)))
    options = SamplerOptions(group_size=32, max_thought=12)
    thoughts, _, _ = jax.jit(lambda p, b, k: sample(judge, options, p, b, k, verdicts=True))(
        params, batch, jax.random.key(0)
    )
    token, right = np.asarray(thoughts.verdict.token), np.asarray(thoughts.verdict.right)
    np.testing.assert_array_equal(right, token == np.array(judge.answers)[:, None])
    ended = (np.asarray(thoughts.thought) == judge.end).any(-1)
    label = np.isin(token, judge.answers)
    np.testing.assert_array_equal(thoughts.verdict.well_formed, ended & label)
    assert (ended & label).any() and (~ended & label).any() and (ended & ~label).any(), "the case is not in the sample"
    assert right[:, 0].any() and right[:, 1].any()


def test_every_update_is_of_the_same_loss():
    one, two = (grpo_pair.phases(grpo_pair.Hyper(policy_updates=count)) for count in (1, 2))
    assert list(one) == ["policy"] and list(two) == ["policy_1", "policy_2"]
    group = toy_group(toy_params())
    assert len({float(loss(*group)[0].sum()) for loss in (*one.values(), *two.values())}) == 1
