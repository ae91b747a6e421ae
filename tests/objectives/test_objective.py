"""Exact: DWRL against enumerated likelihoods, and its parts against their definitions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwrl_jax.core.types import Logps, ThoughtBatch
from dwrl_jax.judge.judge import logps
from dwrl_jax.objectives import dwrl
from dwrl_jax.objectives.parts import policy as _policy
from tests.small import assert_trees_close, given_thoughts, make_batch, make_judge

END, LETTERS = 3, range(24)


def toy_logps(params, groups):
    """Logps of groups [B S G] of one-token thoughts under tabular log-probabilities [S M]."""
    log_pi = jax.nn.log_softmax(params["policy"], -1)
    log_s = jax.nn.log_sigmoid(params["score"])
    sides = jnp.arange(2)[:, None]
    thought, answer = log_pi[sides, groups], log_s[sides, groups]
    return Logps(thought[..., None], answer, jnp.ones_like(answer), jnp.zeros_like(thought)[..., None])


def toy_thoughts(found: Logps):
    ones = jnp.ones(found.answer.shape, jnp.int32)
    return ThoughtBatch(ones[..., None], ones, jax.lax.stop_gradient(found.thought))


def exact_nll(params):
    log_pi, log_s = jax.nn.log_softmax(params["policy"], -1), jax.nn.log_sigmoid(params["score"])
    log_p = jax.nn.logsumexp(log_pi + log_s, -1)
    return -jax.nn.log_sigmoid(log_p[0] - log_p[1])


def dwrl_gradient(params, groups, **hyper):
    """Gradient of the mean joint loss over groups [B S G]."""

    def loss(params):
        found = toy_logps(params, groups)
        return dwrl.joint_loss(found, toy_thoughts(found), dwrl.Hyper(**hyper))[0].mean()

    return jax.grad(loss)(params)


def toy_params(thoughts, seed=0):
    policy, score = np.random.default_rng(seed).normal(size=(2, 2, thoughts))
    return {"policy": jnp.asarray(policy, jnp.float32), "score": jnp.asarray(score, jnp.float32)}


@pytest.mark.parametrize("updates", ["joint", "alternating"])
def test_exact_when_the_group_is_the_whole_thought_space(updates):
    counts = np.array([4, 2, 1, 1])  # each thought as often as its probability says
    params = toy_params(4) | {"policy": jnp.log(jnp.asarray([counts, counts], jnp.float32))}
    group = jnp.asarray(np.repeat(np.arange(4), counts))
    groups = jnp.stack([group, group])[None]
    expected = jax.grad(exact_nll)(params)

    def loss(params):
        found = toy_logps(params, groups)
        phases = dwrl.phases(dwrl.Hyper(updates=updates, baseline="none"))
        return sum(f(found, toy_thoughts(found))[0].sum() for f in phases.values())

    assert_trees_close(jax.grad(loss)(params), expected, 1e-6)
    centred = dwrl_gradient(params, groups, baseline="mean")
    assert_trees_close(centred, expected, 1e-6)  # the score function sums to zero over the whole space


def test_estimator_bias_falls_with_the_group():
    """Expectation over all groups of n thoughts, enumerated with their probabilities: no sampling noise."""
    params, thoughts = toy_params(4, seed=3), 4
    expected = jax.grad(exact_nll)(params)
    pi = np.asarray(jax.nn.softmax(params["policy"], -1))
    bias = {}
    for n in (1, 2, 3, 4):
        one = np.array(list(itertools.product(range(thoughts), repeat=n)))
        plus, minus = (np.repeat(one, len(one), 0), np.tile(one, (len(one), 1)))
        weight = pi[0][plus].prod(1) * pi[1][minus].prod(1)
        groups = jnp.asarray(np.stack([plus, minus], 1))

        def loss(params, groups=groups, weight=weight):
            found = toy_logps(params, groups)
            losses = dwrl.joint_loss(found, toy_thoughts(found), dwrl.Hyper(baseline="none"))[0]
            return (losses * weight).sum()

        assert weight.sum() == pytest.approx(1, abs=1e-5)
        error = jax.tree.map(lambda a, b: a - b, jax.jit(jax.grad(loss))(params), expected)
        bias[n] = float(jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(error))))
    size = float(jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(expected))))
    assert bias[1] > bias[2] > bias[3] > bias[4]
    assert bias[4] < 0.5 * bias[1] and bias[4] < 0.3 * size
    assert bias[4] * 4 == pytest.approx(bias[3] * 3, rel=0.15)  # self-normalised: the bias is of order 1/n


@pytest.mark.parametrize("baseline", ["none", "mean", "leave_one_out"])
def test_estimator_mean_approaches_the_exact_gradient(baseline):
    params, n, groups = toy_params(12, seed=1), 64, 4000
    rng = np.random.default_rng(0)
    pi = np.asarray(jax.nn.softmax(params["policy"], -1), np.float64)
    drawn = np.stack([rng.choice(12, (groups, n), p=side / side.sum()) for side in pi], 1)
    expected = jax.grad(exact_nll)(params)
    assert_trees_close(dwrl_gradient(params, jnp.asarray(drawn), baseline=baseline), expected, 0.06)


def whole_thought_space(vocab_size):
    """All thoughts of at most two tokens: END, x END, and x y cut off at the limit."""
    others = [x for x in range(vocab_size) if x != END]
    thoughts = [(END, 0), *((x, END) for x in others), *itertools.product(others, others)]
    lengths = [1] + [2] * (len(thoughts) - 1)
    return np.array(thoughts), np.array(lengths)


@pytest.mark.parametrize("readout", ["vocab", "choices"])
def test_exact_on_a_transformer(readout):
    """All 57 thoughts of at most two tokens: their probabilities sum to one, and DWRL's gradient is the exact one.

    The group holds each thought once, so its probability enters through the score.
    """
    judge, params = make_judge(vocab_size=8, readout=readout)
    batch = make_batch(pairs=2, length=6, vocab_size=8)
    thought, lengths = whole_thought_space(8)
    shape = (2, 2, len(thought))
    thoughts = given_thoughts(np.broadcast_to(thought, (*shape, 2)), np.broadcast_to(lengths, shape))
    log_count = np.log(len(thought))

    def exact(params):
        found = logps(judge, params, batch, thoughts)
        log_p = jax.nn.logsumexp(found.thought.sum(-1) + found.answer, -1)
        return dwrl.pair_nll(log_p).sum(), found

    def surrogate(params):
        found = logps(judge, params, batch, thoughts)
        sampled = thoughts.replace(old_logp=jax.lax.stop_gradient(found.thought))
        log_pi = jax.lax.stop_gradient(found.thought.sum(-1))
        weighted = found.replace(answer=found.answer + log_pi + log_count)
        return dwrl.joint_loss(weighted, sampled, dwrl.Hyper(baseline="none"))[0].sum()

    (_, found), expected = jax.jit(jax.value_and_grad(exact, has_aux=True))(params)
    np.testing.assert_allclose(jax.nn.logsumexp(found.thought.sum(-1), -1), 0, atol=1e-5)
    assert_trees_close(jax.jit(jax.grad(surrogate))(params), expected, 1e-5)


def random_logps(seed=0, shape=(3, 2, 4, 5)):
    rng = np.random.default_rng(seed)
    lengths = jnp.asarray(rng.integers(1, shape[-1] + 1, shape[:-1]))
    written = jnp.arange(shape[-1]) < lengths[..., None]
    thought = jnp.where(written, -jnp.asarray(rng.exponential(size=shape)), 0.0)
    answer = -jnp.asarray(rng.exponential(size=shape[:-1]))
    found = Logps(thought, answer, jnp.exp(answer), jnp.zeros(shape))
    old = jnp.where(written, thought + 0.3 * jnp.asarray(rng.normal(size=shape)), 0.0)
    return found, ThoughtBatch(jnp.ones(shape, jnp.int32), lengths, old)


def test_score_loss_has_the_gradient_of_the_pair_nll():
    found, thoughts = random_logps()
    expected = jax.grad(lambda a: dwrl.pair_nll(dwrl.log_preference_score(a)).sum())(found.answer)
    gradient = jax.grad(lambda a: dwrl.score_loss(found.replace(answer=a), thoughts)[0].sum())(found.answer)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    assert (expected[:, 0] < 0).all() and (expected[:, 1] > 0).all()  # the chosen score is to rise


@pytest.mark.parametrize(("updates", "centred"), [("alternating", "score"), ("joint", "joint")])
def test_the_level_is_held_by_the_update_of_the_answers(updates, centred):
    """p+ = .4 and p- = .1, so log p+ + log p- = log .04; both answers of a side have the same part in its level."""
    found, thoughts = random_logps()
    answer = jnp.log(jnp.full((3, 2, 4), 0.1).at[:, 0].set(0.4))
    added = {}
    for centring in (0.0, 0.5):
        phases = dwrl.phases(dwrl.Hyper(updates=updates, centring=centring, centre=-2.0))

        def total(answer, thought, loss):
            return loss(found.replace(answer=answer, thought=thought), thoughts)[0].sum()

        for name, loss in phases.items():
            value = loss(found.replace(answer=answer), thoughts)[0]
            added.setdefault(name, []).append((value, *jax.grad(total, (0, 1))(answer, found.thought, loss)))
    for name, (without, term) in added.items():
        value, of_answer, of_thought = (np.asarray(b - a) for a, b in zip(without, term))
        distance = np.log(0.04) + 4.0 if name == centred else 0.0
        np.testing.assert_allclose(value, 0.5 * distance**2, rtol=1e-5)
        np.testing.assert_allclose(of_answer, distance / 4, rtol=1e-4, atol=1e-7)
        assert not of_thought.any()


def test_weights_in_numbers():
    answer = jnp.log(jnp.asarray([[[0.2, 0.6], [0.1, 0.1]]]))
    np.testing.assert_allclose(jnp.exp(dwrl.log_preference_score(answer)), [[0.4, 0.1]], rtol=1e-6)
    np.testing.assert_allclose(dwrl.misalignment_weight(dwrl.log_preference_score(answer)), [0.2], rtol=1e-6)
    np.testing.assert_allclose(dwrl.dual_weight(answer), [[[0.05, 0.15], [-0.1, -0.1]]], rtol=1e-6)
    np.testing.assert_allclose(dwrl.dual_weight(answer, "mean"), [[[-0.05, 0.05], [0, 0]]], atol=1e-7)
    np.testing.assert_allclose(dwrl.dual_weight(answer, "leave_one_out"), [[[-0.1, 0.1], [0, 0]]], atol=1e-7)


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_one_thought_with_a_baseline_teaches_no_thought(baseline):
    assert not dwrl.dual_weight(jnp.log(jnp.asarray([[[0.3], [0.6]]])), baseline).any()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.0, 2.0, 2.0), (1.5, 2.0, 2.4), (0.5, 2.0, 1.0), (1.5, -2.0, -3.0), (0.5, -2.0, -1.6), (9.0, -2.0, -6.0)],
)
def test_clipping_in_numbers(ratio, advantage, expected):
    found = _policy.clipped_surrogate(jnp.float32(ratio), jnp.float32(advantage), (0.2, 0.2), 3.0)
    assert float(found) == pytest.approx(expected)


def test_thought_loss_by_hand():
    found, thoughts = random_logps()
    advantage = np.asarray(dwrl.dual_weight(found.answer, "mean"))
    ratio = np.exp(np.asarray(found.thought - thoughts.old_logp))
    expected = {"sum": np.zeros(3), "mean": np.zeros(3)}
    for b, s, g in np.ndindex(*advantage.shape):
        a, n = advantage[b, s, g], int(thoughts.thought_len[b, s, g])
        terms = [min(r * a, np.clip(r, 0.9, 1.3) * a) for r in ratio[b, s, g, :n]]
        terms = [max(term, 2.0 * a) if a < 0 else term for term in terms]
        expected["sum"][b] -= sum(terms)
        expected["mean"][b] -= sum(terms) / n
    for aggregation, losses in expected.items():
        hyper = dwrl.Hyper(clip=(0.1, 0.3), dual_clip=2.0, token_aggregation=aggregation)
        np.testing.assert_allclose(dwrl.thought_loss(found, thoughts, hyper)[0], losses, atol=1e-5)


def test_kl_term_is_the_kl_in_expectation():
    rng = np.random.default_rng(0)
    policy, reference = (jax.nn.log_softmax(jnp.asarray(rng.normal(size=6))) for _ in range(2))
    expected = float((jnp.exp(policy) * (policy - reference)).sum())
    assert float((jnp.exp(policy) * _policy.token_kl(policy, reference)).sum()) == pytest.approx(expected, abs=1e-6)
    found, thoughts = random_logps()
    thoughts = thoughts.replace(ref_logp=found.thought - 0.5)
    plain, with_kl = (dwrl.thought_loss(found, thoughts, dwrl.Hyper(kl=kl))[0] for kl in (0.0, 0.1))
    tokens = np.asarray(thoughts.thought_len, np.float64)
    expected = 0.1 * (np.exp(-0.5) + 0.5 - 1) * tokens.mean(2).sum(1)
    np.testing.assert_allclose(with_kl - plain, expected, rtol=1e-4)


def test_ties_count_one_half():
    found, thoughts = random_logps()
    even = found.replace(answer=jnp.full_like(found.answer, -1.0))
    metrics = dwrl.score_loss(even, thoughts)[1]
    assert (metrics["pair_accuracy"] == 0.5).all() and (metrics["ties"] == 1).all()
    assert metrics["effective_thoughts"] == pytest.approx(4)
