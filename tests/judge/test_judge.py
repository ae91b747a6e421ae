"""Sampler and judge: one density, whatever the padding, the packing and the sharing of prefixes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwrl_jax.core.types import PreferenceBatch
from dwrl_jax.generation.draw import categorical, truncate
from dwrl_jax.generation.keys import HELD_OUT, TRAINING, sampling_key
from dwrl_jax.generation.packing import pack
from dwrl_jax.generation.sampler import SamplerOptions, room
from dwrl_jax.judge.judge import branch_length, logps
from dwrl_jax.judge.thoughts import sample, sample_in_parts
from dwrl_jax.models.transformer import logits, output_table
from dwrl_jax.objectives import dwrl
from dwrl_jax.training.step import gradient
from tests.small import assert_trees_close, given_thoughts, make_batch, make_judge

OPTIONS = SamplerOptions(group_size=6, max_thought=7)
KEY = jax.random.key(5)


def draw(judge, params, batch, options=OPTIONS, key=KEY):
    return jax.jit(lambda p, b, k: sample(judge, options, p, b, k))(params, batch, key)


def reread(judge, params, batch, thoughts):
    return jax.jit(lambda p, b, t: logps(judge, p, b, t))(params, batch, thoughts)


def reread_packed(judge, params, batch, thoughts, packing):
    return jax.jit(lambda p, b, t: logps(judge, p, b, t, packing=packing))(params, batch, thoughts)


@pytest.mark.parametrize(
    ("preset", "readout"), [("qwen2.5-3b", "vocab"), ("llama3.1-8b", "choices"), ("qwen3-4b", "vocab")]
)
def test_sampler_and_teacher_forcing_agree(preset, readout):
    judge, params = make_judge(preset=preset, readout=readout, temperature=0.7, sharpness=1.5)
    batch = make_batch(pairs=6)
    thoughts, score, mass = draw(judge, params, batch)
    found = reread(judge, params, batch, thoughts)
    np.testing.assert_allclose(found.thought, thoughts.old_logp, atol=1e-4)
    np.testing.assert_allclose(found.answer, score, atol=1e-4)
    np.testing.assert_allclose(found.answer_mass, mass, atol=1e-4)
    final = np.take_along_axis(np.asarray(thoughts.thought), np.asarray(thoughts.thought_len)[..., None] - 1, -1)
    ended = final[..., 0] == judge.end
    kinds = {"at once": thoughts.thought_len == 1, "late": (thoughts.thought_len > 3) & ended, "cut off": ~ended}
    assert all(np.asarray(kind).any() for kind in kinds.values()), "the case is not in the sample"


def test_thoughts_that_outgrow_their_region():
    """As above where the region grows twice: thoughts that end in each of its three sizes, and some cut off."""
    judge, params = make_judge(sharpness=0.3)
    T = 100
    assert room(T) == [33, 66, 100]
    batch = make_batch(pairs=4)
    thoughts, score, _ = draw(judge, params, batch, SamplerOptions(group_size=6, max_thought=T))
    found = reread(judge, params, batch, thoughts)
    np.testing.assert_allclose(found.thought, thoughts.old_logp, atol=1e-4)
    np.testing.assert_allclose(found.answer, score, atol=1e-4)
    assert np.histogram(thoughts.thought_len, [0, 33, 66, T, T + 1])[0].all(), "the case is not in the sample"


def test_sliding_windows_in_every_pass():
    """A region that grows, last thoughts apart, both kinds of update, and one plain pass: the same density."""
    judge, params = make_judge(sharpness=0.3, windows=(0, 6))
    batch = make_batch(pairs=2)
    thoughts, score, _ = draw(judge, params, batch, SamplerOptions(group_size=4, max_thought=66))
    lengths = np.asarray(thoughts.thought_len)
    assert len(room(66)) == 2 and (lengths > 33).any() and lengths.min() < 20, "the case is not in the sample"
    found = reread(judge, params, batch, thoughts)
    np.testing.assert_allclose(found.thought, thoughts.old_logp, atol=1e-4)
    np.testing.assert_allclose(found.answer, score, atol=1e-4)
    short = np.minimum(lengths, [66, 15, 15, 15])
    packing = pack(short + 1 + len(judge.question), branch_length(judge, 66))
    assert packing.source.shape[2] == 2
    cut = thoughts.replace(thought_len=jnp.asarray(short))
    one, other = reread(judge, params, batch, cut), reread_packed(judge, params, batch, cut, packing)
    np.testing.assert_allclose(one.thought, other.thought, atol=1e-5)
    np.testing.assert_allclose(one.answer, other.answer, atol=1e-5)
    plain = jax.jit(lambda ids, at: logits(judge.model.apply(params, ids, at)[0], output_table(params)))
    batch, thoughts = jax.tree.map(np.asarray, (batch, thoughts))
    for b, s in np.ndindex(2, 2):
        count, first = lengths[b, s, 0], batch.prefix_len[b, s] - 1
        ids = np.pad(np.concatenate([batch.prefix[b, s, : first + 1], thoughts.thought[b, s, 0]]), (0, 11 - first))
        by_token = np.asarray(jax.nn.log_softmax(plain(ids[None, None], np.arange(78)[None, None])[0, 0]))
        expected = by_token[first + np.arange(count), thoughts.thought[b, s, 0, :count]]
        np.testing.assert_allclose(thoughts.old_logp[b, s, 0, :count], expected, atol=1e-4)


@pytest.mark.parametrize(("readout", "stops"), [("vocab", ()), ("choices", (6, 7, 8))])
def test_judge_is_the_plain_model_on_the_written_out_dialogue(readout, stops):
    """Every log-probability against one pass of the decoder over prefix, thought, end and question in a row.

    A thought that stopped by another end token is read as if it had the usual one; its log-probability is that of the
    token that was drawn.
    """
    judge, params = make_judge(readout=readout, temperature=0.7, sharpness=1.5, stops=stops)
    batch = make_batch(pairs=2)
    thoughts, score, _ = draw(judge, params, batch, SamplerOptions(group_size=3, max_thought=5))
    found = reread(judge, params, batch, thoughts)
    np.testing.assert_allclose(found.thought, thoughts.old_logp, atol=1e-4)
    np.testing.assert_allclose(found.answer, score, atol=1e-4)
    ends = set()
    plain = jax.jit(lambda ids, at: logits(judge.model.apply(params, ids, at)[0], output_table(params)))
    for b, s, g in np.ndindex(2, 2, 3):
        prefix = np.asarray(batch.prefix)[b, s, : int(batch.prefix_len[b, s])].tolist()
        thought = np.asarray(thoughts.thought)[b, s, g, : int(thoughts.thought_len[b, s, g])].tolist()
        assert not {judge.end, *stops} & set(thought[:-1]), "it goes on behind an end token"
        ends.add(thought[-1])
        content = thought[:-1] if thought[-1] in (judge.end, *stops) else thought
        ids = [*prefix, *content, *judge.question]
        padded = jnp.asarray([[ids + [9] * (24 - len(ids))]])
        out = np.asarray(plain(padded, jnp.arange(24)[None, None]))[0, 0]
        by_token = jax.nn.log_softmax(out[len(prefix) - 1 : len(prefix) + len(thought) - 1] / 0.7)
        expected = by_token[np.arange(len(thought)), np.array(thought)]
        np.testing.assert_allclose(found.thought[b, s, g, : len(thought)], expected, atol=1e-4)
        assert not found.thought[b, s, g, len(thought) :].any()
        answer = jax.nn.log_softmax(out[len(ids) - 1])
        mass = jnp.logaddexp(answer[1], answer[2])
        expected = answer[1] - mass if readout == "choices" else answer[1]
        np.testing.assert_allclose(found.answer[b, s, g], expected, atol=1e-4)
        np.testing.assert_allclose(found.answer_mass[b, s, g], jnp.exp(mass), atol=1e-4)
    assert judge.end in ends and (not stops or ends & set(stops)), "the case is not in the sample"


def test_sides_steps_and_seeds_have_keys_of_their_own():
    judge, params = make_judge(sharpness=0.1)
    batch = make_batch(pairs=2)
    same = jax.tree.map(lambda x: x[:1], batch)
    same = same.replace(prefix=same.prefix.at[:, 1].set(same.prefix[:, 0]), prefix_len=jnp.full((1, 2), 4))
    keys = [sampling_key(0, TRAINING, 0), sampling_key(0, TRAINING, 1), sampling_key(1, TRAINING, 0)]
    keys.append(sampling_key(0, HELD_OUT, 0))
    drawn = [np.asarray(draw(judge, params, same, key=key)[0].thought)[0, side] for key in keys for side in (0, 1)]
    assert len({thought.tobytes() for thought in drawn}) == len(drawn)


def test_sampled_frequencies_are_the_density():
    judge, params = make_judge(temperature=0.7, sharpness=1.5)
    batch = make_batch(pairs=1)
    thoughts, _, _ = draw(judge, params, batch, SamplerOptions(group_size=4096, max_thought=1))
    first = given_thoughts(np.broadcast_to(np.arange(24)[:, None], (1, 2, 24, 1)), np.ones((1, 2, 24)))
    expected = np.exp(reread(judge, params, batch, first).thought)[0, :, :, 0]
    np.testing.assert_allclose(expected.sum(-1), 1, atol=1e-5)
    for side in range(2):
        counts = np.bincount(np.asarray(thoughts.thought)[0, side, :, 0], minlength=24)
        spread = np.sqrt(expected[side] * (1 - expected[side]) * 4096)
        assert (np.abs(counts - expected[side] * 4096) < 4.5 * spread + 1).all()


def test_drawn_tokens_are_the_softmax():
    """A vocabulary of more than one block, the last one not full, with tokens and a whole block that never come."""
    scaled = np.random.default_rng(0).normal(size=300) * 2
    scaled[:128], scaled[130], scaled[-1] = -np.inf, -np.inf, 3.0
    keys = jax.random.split(KEY, (20_000, 1))
    drawn = jax.jit(lambda x: categorical(keys, jnp.broadcast_to(x, (20_000, 1, 300))))(jnp.asarray(scaled))
    counts, expected = np.bincount(np.asarray(drawn)[:, 0], minlength=300), 20_000 * np.asarray(jax.nn.softmax(scaled))
    assert len(counts) == 300 and not counts[expected == 0].any()
    assert (np.abs(counts - expected) < 4.5 * np.sqrt(expected) + 1).all()


def test_samples_do_not_depend_on_the_rest_of_the_batch():
    judge, params = make_judge()
    batch = make_batch(pairs=4)
    whole, score, _ = draw(judge, params, batch)
    order = np.array([2, 0])
    part, part_score, _ = draw(judge, params, jax.tree.map(lambda x: x[order], batch))
    assert (part.thought == whole.thought[order]).all()
    np.testing.assert_allclose(part_score, score[order], atol=1e-5)
    other, _, _ = draw(judge, params, batch, key=jax.random.key(6))
    assert (other.thought != whole.thought).any()
    assert (whole.thought[:, :, 0] != whole.thought[:, :, 1]).any()  # samples of a group differ


@pytest.mark.parametrize("verdicts", [pytest.param(False, marks=pytest.mark.slow), True])
def test_thoughts_sampled_in_parts_are_the_same(verdicts):
    judge, params = make_judge()
    batch = make_batch(pairs=6)
    options = SamplerOptions(group_size=4, max_thought=40)
    sizes = [dataclasses.replace(options, batch_size=size) for size in (0, 2, 3)]
    draw_at_once, *in_parts = (
        jax.jit(functools.partial(sample_in_parts, judge, kind, verdicts=verdicts)) for kind in sizes
    )
    whole, score = draw_at_once(params, batch, jax.random.key(5))
    assert len(set(np.asarray(whole.thought_len).ravel())) > 4, "thoughts of one length would prove little"
    for draw_parts in in_parts:
        found, found_score = draw_parts(params, batch, jax.random.key(5))
        assert (found.thought == whole.thought).all() and (found.thought_len == whole.thought_len).all()
        assert not verdicts or (found.verdict.token == whole.verdict.token).all()
        np.testing.assert_allclose(found.old_logp, whole.old_logp, atol=1e-5)
        np.testing.assert_allclose(found_score, score, atol=1e-5)


def test_a_thought_does_not_depend_on_its_group():
    """The last thoughts of a batch of groups go on in rows of their own; a group of one never moves."""
    judge, params = make_judge(sharpness=0.3)
    batch = make_batch(pairs=4)
    whole, score, _ = draw(judge, params, batch, SamplerOptions(group_size=6, max_thought=80), jax.random.key(2))
    alone, alone_score, _ = draw(judge, params, batch, SamplerOptions(group_size=1, max_thought=80), jax.random.key(2))
    longest = np.sort(np.asarray(whole.thought_len).reshape(-1))[::-1]
    assert longest[0] > longest[8] + 5, "no thought is left when the others have moved"
    assert np.asarray(whole.thought_len)[:, :, 0].max() > longest[8] + 5, "and it is one of those compared"
    assert (whole.thought[:, :, :1] == alone.thought).all()
    np.testing.assert_allclose(whole.old_logp[:, :, :1], alone.old_logp, atol=1e-5)
    np.testing.assert_allclose(score[:, :, :1], alone_score, atol=1e-5)


def test_truncation_keeps_the_right_tokens():
    scaled = jnp.log(jnp.asarray([0.5, 0.1, 0.3, 0.1 - 1e-3, 1e-3]))
    kept = [np.isfinite(np.asarray(truncate(scaled, k, p))).tolist() for k, p in ((2, 1.0), (0, 0.79), (0, 0.81))]
    assert kept == [[1, 0, 1, 0, 0], [1, 0, 1, 0, 0], [1, 1, 1, 0, 0]]
    judge, params = make_judge()
    batch = make_batch(pairs=2)
    greedy, _, _ = draw(judge, params, batch, SamplerOptions(group_size=2, max_thought=5, top_k=1))
    assert (greedy.thought[:, :, 0] == greedy.thought[:, :, 1]).all()
    np.testing.assert_allclose(reread(judge, params, batch, greedy).thought, greedy.old_logp, atol=1e-4)


def loss_and_gradient(judge, params, batch, thoughts, micro_batches=1, hyper=dwrl.Hyper(), packing=None):  # noqa: B008, frozen
    def loss_fn(found, group):
        return dwrl.joint_loss(found, group, hyper)

    step = jax.jit(lambda p, b, t, packed: gradient(judge, loss_fn, p, b, t, micro_batches, packed))
    found, metrics = step(params, batch, thoughts, packing)
    assert not metrics.pop("broken").any()
    return found, metrics


@pytest.fixture(scope="module")
def case():
    judge, params = make_judge()
    batch = make_batch(pairs=4)
    thoughts, _, _ = draw(judge, params, batch)
    shifted = thoughts.replace(old_logp=thoughts.old_logp * 1.05)  # ratios away from 1
    return judge, params, batch, shifted, loss_and_gradient(judge, params, batch, shifted)


def test_invariant_to_padding(case):
    judge, params, batch, thoughts, expected = case
    wide = batch.replace(prefix=jnp.pad(batch.prefix, ((0, 0), (0, 0), (0, 9)), constant_values=7))
    longer = ((0, 0), (0, 0), (0, 0), (0, 4))
    more = thoughts.replace(
        thought=jnp.pad(thoughts.thought, longer, constant_values=9), old_logp=jnp.pad(thoughts.old_logp, longer)
    )
    found = loss_and_gradient(judge, params, wide, more)
    assert_trees_close(found[0], expected[0], 1e-5)
    assert_trees_close(found[1], expected[1], 1e-5)


def test_invariant_to_what_stands_in_padding(case):
    """Masks come from lengths: a pad position that holds an ordinary token, or the end token, changes nothing."""
    judge, params, batch, thoughts, expected = case
    beyond = jnp.arange(thoughts.thought.shape[-1]) >= thoughts.thought_len[..., None]
    dirty = thoughts.replace(thought=jnp.where(beyond, judge.end, thoughts.thought))
    padding = jnp.arange(batch.prefix.shape[-1]) >= batch.prefix_len[..., None]
    found = loss_and_gradient(judge, params, batch.replace(prefix=jnp.where(padding, 5, batch.prefix)), dirty)
    assert_trees_close(found[0], expected[0], 1e-5)


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_invariant_to_micro_batches(case, micro_batches):
    judge, params, batch, thoughts, expected = case
    found = loss_and_gradient(judge, params, batch, thoughts, micro_batches)
    assert_trees_close(found[0], expected[0], 1e-5)
    assert_trees_close(found[1], expected[1], 1e-5)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_invariant_to_packing(case, micro_batches):
    """Six thoughts in three lanes: a full one alone, two and three shorter ones together, in any order."""
    judge, params, batch, _, _ = case
    judge, rng = dataclasses.replace(judge, stops=(6,)), np.random.default_rng(4)
    length = rng.permuted(np.broadcast_to([12, 3, 3, 1, 1, 1], (4, 2, 6)), axis=-1)
    thought = rng.integers(4, 24, (4, 2, 6, 12))
    final = np.arange(12) == length[..., None] - 1
    thought[final] = rng.choice([judge.end, judge.stops[0], 9], size=final.sum())
    group = given_thoughts(thought, length)
    packing = pack(length + 1 + len(judge.question), branch_length(judge, 12))
    assert packing.source.shape == (4, 2, 3, 16)
    expected = loss_and_gradient(judge, params, batch, group)
    found = loss_and_gradient(judge, params, batch, group, micro_batches, packing=packing)
    assert_trees_close(found[0], expected[0], 1e-5)
    assert_trees_close(found[1], expected[1], 1e-5)


def test_invariant_to_the_order_of_pairs(case):
    judge, params, batch, thoughts, expected = case
    order = np.array([3, 1, 0, 2])
    found = loss_and_gradient(judge, params, *(jax.tree.map(lambda x: x[order], tree) for tree in (batch, thoughts)))
    assert_trees_close(found[0], expected[0], 1e-5)


def test_rows_that_fill_up_a_batch_change_nothing(case):
    judge, params, batch, thoughts, expected = case
    more = jax.tree.map(lambda x: jnp.concatenate([x, x[:2]]), (batch, thoughts))
    filled = more[0].replace(valid=jnp.arange(6) < 4)
    found = loss_and_gradient(judge, params, filled, more[1], micro_batches=3)
    assert_trees_close(found[0], expected[0], 1e-5)
    assert_trees_close(found[1], expected[1], 1e-5)


def test_gradient_equals_that_of_independent_sequences(case):
    """The prefix shared by a group against every thought with a prefix of its own."""
    judge, params, batch, thoughts, _ = case
    B, S, G, T = thoughts.thought.shape
    rng = np.random.default_rng(0)
    on_thought, on_answer = jnp.asarray(rng.normal(size=(B, S, G, T))), jnp.asarray(rng.normal(size=(B, S, G)))

    def shared(params):
        found = logps(judge, params, batch, thoughts)
        return (found.thought * on_thought).sum() + (found.answer * on_answer).sum()

    def independent(params):
        def rows(x):
            return jnp.repeat(x.reshape(B * S, 1, *x.shape[2:]), G, 0)

        single = PreferenceBatch(
            *map(rows, (batch.prefix, batch.prefix_len, batch.answer)), jnp.ones(B * S * G, bool), jnp.arange(B * S * G)
        )
        flat = given_thoughts(
            thoughts.thought.reshape(B * S * G, 1, 1, T), thoughts.thought_len.reshape(B * S * G, 1, 1)
        )
        found = logps(judge, params, single, flat)
        weight = on_thought.reshape(found.thought.shape)
        return (found.thought * weight).sum() + (found.answer * on_answer.reshape(found.answer.shape)).sum()

    value, expected = jax.jit(jax.value_and_grad(independent))(params)
    found_value, found = jax.jit(jax.value_and_grad(shared))(params)
    assert float(found_value) == pytest.approx(float(value), rel=1e-5)
    assert_trees_close(found, expected, 1e-5)
