"""Exact: likelihoods with margins and their gradients; margins on their way from a file to the loss."""

import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwrl_jax.core.errors import UserError
from dwrl_jax.data import world
from dwrl_jax.data.batches import make_batches
from dwrl_jax.data.examples import tokenise
from dwrl_jax.data.pairs import read_pairs
from dwrl_jax.dialogue import Texts, make_dialogue
from dwrl_jax.judge.thoughts import no_thoughts
from dwrl_jax.objectives import bt, bt_token, dwrl
from dwrl_jax.objectives.parts import bradley_terry as _bradley_terry
from dwrl_jax.settings.commandline import parse
from dwrl_jax.training import assemble as build
from dwrl_jax.training.step import gradient
from tests.objectives.test_objective import random_logps, toy_logps, toy_params, toy_thoughts
from tests.runs import REPO
from tests.small import assert_trees_close, make_batch, make_judge

KINDS = ("regular", "margin", "scaled")


def likelihood(kind, log_odds, margin):
    """-log of the likelihood as written, by exponentials."""
    if kind == "margin":
        return jnp.log(1 + jnp.exp(margin - log_odds))
    return (margin if kind == "scaled" else 1) * jnp.log(1 + jnp.exp(-log_odds))


def test_losses_in_numbers():
    log_odds, margin = jnp.log(jnp.asarray([4.0, 0.25])), jnp.log(jnp.asarray([2.0, 8.0]))
    expected = {
        "regular": np.log([5 / 4, 5]),
        "margin": np.log([3 / 2, 33]),  # odds 4 / 2 and 1 / 32
        "scaled": np.log([2, 8]) * np.log([5 / 4, 5]),
    }
    for kind in KINDS:
        found = _bradley_terry.pair_loss(log_odds, bt_token.Hyper(kind), margin)
        np.testing.assert_allclose(found, expected[kind], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_weight_is_the_slope_of_the_loss(kind):
    rng = np.random.default_rng(0)
    log_odds, margin = jnp.asarray(3 * rng.normal(size=20)), jnp.asarray(3 * rng.random(20))
    slope = jax.vmap(jax.grad(lambda d, m: likelihood(kind, d, m)))(log_odds, margin)
    found = _bradley_terry.pair_weight(log_odds, bt_token.Hyper(kind), margin)
    np.testing.assert_allclose(found, -slope, rtol=1e-5)


@pytest.mark.parametrize("kind", ["margin", "scaled"])
@pytest.mark.parametrize("updates", ["joint", "alternating"])
def test_dwrl_with_margins_is_the_gradient_of_its_likelihood(updates, kind):
    """The group is the whole thought space, each thought as often as its probability says; two pairs, two margins."""
    counts, margin = np.array([4, 2, 1, 1]), jnp.asarray([0.5, 2.5])
    params = toy_params(4) | {"policy": jnp.log(jnp.asarray([counts, counts], jnp.float32))}
    groups = jnp.tile(jnp.asarray(np.repeat(np.arange(4), counts)), (2, 2, 1))

    def exact(params):
        log_pi, log_s = jax.nn.log_softmax(params["policy"], -1), jax.nn.log_sigmoid(params["score"])
        log_p = jax.nn.logsumexp(log_pi + log_s, -1)
        return likelihood(kind, log_p[0] - log_p[1], margin).sum()

    def surrogate(params):
        found = toy_logps(params, groups)
        phases = dwrl.phases(dwrl.Hyper(updates=updates, baseline="none", bradley_terry=kind))
        return sum(f(found, toy_thoughts(found), margin=margin)[0].sum() for f in phases.values())

    assert_trees_close(jax.grad(surrogate)(params), jax.grad(exact)(params), 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bradley_terry_objectives_with_margins(kind):
    found, thoughts = random_logps(shape=(3, 2, 1, 1))
    margin, score = jnp.asarray([1.0, 2.0, 3.0]), found.answer[..., 0]
    expected = likelihood(kind, score[:, 0] - score[:, 1], margin)
    for objective, hyper in ((bt, bt.Hyper(kind)), (bt_token, bt_token.Hyper(kind))):
        (loss,) = objective.phases(hyper).values()
        np.testing.assert_allclose(loss(found, thoughts, margin=margin)[0], expected, rtol=1e-5)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_step_gives_each_pair_its_own_margin(micro_batches):
    """A scaled loss is a pair's loss as often as its margin says."""
    judge, params = make_judge()
    batch, margin = make_batch(pairs=4), jnp.asarray([1.0, 3.0, 0.0, 2.0])
    (scaled,) = bt_token.phases(bt_token.Hyper("scaled")).values()
    (plain,) = bt_token.phases(bt_token.Hyper()).values()

    def of(loss, batch, **options):
        return jax.jit(lambda p: gradient(judge, loss, p, batch, no_thoughts(batch, judge.end), **options)[0])(params)

    found = of(scaled, batch.replace(margin=margin), micro_batches=micro_batches)
    repeated = jax.tree.map(lambda x: None if x is None else x[jnp.asarray([0, 1, 1, 1, 3, 3])], batch)
    expected = jax.tree.map(lambda g: g * 6 / 4, of(plain, repeated))
    assert_trees_close(found, expected, 1e-5)


def pair_file(path, margins):
    """A file of pairs of the built-in world with these margins, None for no such field."""
    rows = [{"prompt": "s1 o1", "chosen": "s2 warm", "rejected": f"s{i} curt"} for i in range(len(margins))]
    rows = [row if margin is None else row | {"margin": margin} for row, margin in zip(rows, margins)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made_batches(path, **options):
    words = {"judge_question": world.JUDGE, "answer_question": world.ASK, "answers": world.ANSWERS}
    talk = make_dialogue(world.make_tokenizer(), Texts(**words))
    examples, _ = tokenise(read_pairs(path)[0], talk, 20)
    return make_batches(examples, batch_size=3, buckets=(20,), pad_id=talk.pad_id, **options)


def test_margins_of_a_file_reach_the_batch(tmp_path):
    path = pair_file(tmp_path / "pairs.jsonl", [3, 0.5, 1, 2])
    batch, _ = made_batches(path, margins=True)(0)
    np.testing.assert_array_equal(batch.margin, np.array([3, 0.5, 1, 2], np.float32)[batch.pair_id])
    assert made_batches(path)(0)[0].margin is None  # nobody asks for them


@pytest.mark.parametrize(("margin", "said"), [(None, "missing"), (-1, "-1.0")])
def test_a_pair_without_a_usable_margin_is_named(tmp_path, margin, said):
    path = pair_file(tmp_path / "pairs.jsonl", [3, 1, margin])
    assert made_batches(path)(0)[0].margin is None  # nobody asks for them
    with pytest.raises(UserError, match=rf"pairs.jsonl:3: margin is {said}; .* objective.bradley_terry to 'regular'"):
        made_batches(path, margins=True)


def config_of(name, *changes):
    flags = [f"--config={REPO / 'configs' / 'tiny.py'}:{name},smoke", "--workdir=unused"]
    return parse([*flags, *(f"--config.objective.{change}" for change in changes)])[0]


@pytest.mark.parametrize("name", ["bt", "bt_token", "bt_prefilled", "dwrl"])
def test_the_config_chooses_what_is_made_of_margins(name):
    for kind in KINDS:
        _, hyper = build.load_objective(config_of(name, f"bradley_terry={kind}"))
        assert hyper.bradley_terry == kind


@pytest.mark.parametrize("name", ["dwrl_no_misalignment", "gram", "grpo_point", "irpm_auc", "sft"])
def test_objectives_that_make_nothing_of_margins_say_so(name):
    with pytest.raises(UserError, match=f"objective.bradley_terry: {name} has no such key"):
        config_of(name, "bradley_terry=scaled")


def test_the_world_says_how_much_nearer_a_claim_is():
    made = world.make_world(0)
    pairs = [world.pair(made, "train", index) for index in range(300)]
    for pair in pairs:
        prompt = pair.prompt[0]["content"]
        plain = [made.quality(prompt, f"{text.split()[0]} plain") for text in (pair.chosen, pair.rejected)]
        nearer = abs(plain[0] - plain[1]) / world.DISTANCE_WEIGHT
        assert pair.margin == {0: 1, 1: 2}.get(round(nearer), 3)
    assert {pair.margin for pair in pairs} == {1.0, 2.0, 3.0}


def test_margins_leave_the_pairs_of_the_world_as_they_are():
    """The checksum is that of the same pairs drawn without margins."""
    made = world.make_world(0)
    pairs = [world.pair(made, "train", index) for index in range(300)]
    text = "".join(f"{pair.prompt[0]['content']} {pair.chosen} {pair.rejected}\n" for pair in pairs)
    assert zlib.crc32(text.encode()) == 4190158267
