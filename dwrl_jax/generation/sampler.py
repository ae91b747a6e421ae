"""Sampling of thoughts and their scores: one jitted program, the prefix computed once per response."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dwrl_jax.core import sharding
from dwrl_jax.core.types import PreferenceBatch, ThoughtBatch, Verdicts
from dwrl_jax.generation.forced import Judge, answer_logps, content_length, last_token
from dwrl_jax.models.attention import Region
from dwrl_jax.models.transformer import Decoder, axis_names, logits, output_table, unstack

GROWTHS, SMALLEST = 4, 32  # how the thoughts' region grows: each chunk is one more loop to compile
BLOCK = 128  # of the vocabulary, in drawing a token


@dataclasses.dataclass(frozen=True)
class SamplerOptions:
    """`top_k = 0` and `top_p = 1` leave the density whole, which is what the trainer differentiates."""

    group_size: int
    max_thought: int
    top_k: int = 0
    top_p: float = 1.0
    verdicts: bool = False  # draw an answer after each thought
    batch_size: int = 0  # pairs that a program samples at once; 0 for all


class SamplingState(NamedTuple):
    """The loop's carry. Row = one response (P of them), branch = one thought of its group (G)."""

    position: Int[Array, ""]  # index of the thought token that is sampled next
    token: Int[Array, "P G"]  # the token that is fed next: it stands just before `position`
    done: Bool[Array, "P G"]  # the thought has its end token
    thought: Int[Array, "P G T"]
    logp: Float[Array, "P G T"]
    k: tuple[Float[Array, "P G K H C"], ...]  # by layer: keys of the tokens that were fed in this chunk
    v: tuple[Float[Array, "P G K C H"], ...]


class Group(NamedTuple):
    """What a thought is drawn from, beside the parameters."""

    prefix: Region
    prefix_len: Int[Array, " P"]
    keys: Array  # [P G]


def thought_keys(key, batch: PreferenceBatch, group_size: int):
    """One key per thought [P, G], from (pair, side, sample): whatever else is in the batch does not matter.

    `key` already carries seed and step; the position in the thought is folded in where a token is drawn.
    """

    def one(pair, side, sample):
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, pair), side), sample)

    over_samples = jax.vmap(one, (None, None, 0))
    over_sides = jax.vmap(over_samples, (None, 0, None))
    over_pairs = jax.vmap(over_sides, (0, None, None))
    keys = over_pairs(batch.pair_id, jnp.arange(batch.prefix.shape[1]), jnp.arange(group_size))
    return keys.reshape(-1, group_size)


def truncate(scaled: Float[Array, "*rows V"], top_k: int, top_p: float) -> Float[Array, "*rows V"]:
    """Logits with everything outside the `top_k` largest and the `top_p` nucleus at minus infinity."""
    if top_k:
        threshold = jax.lax.top_k(scaled, top_k)[0][..., -1:]
        scaled = jnp.where(scaled < threshold, -jnp.inf, scaled)
    if top_p < 1.0:
        ordered = jnp.sort(scaled, -1, descending=True)
        probability = jax.nn.softmax(ordered, -1)
        before = jnp.cumsum(probability, -1) - probability  # mass in front of each token
        threshold = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), -1, keepdims=True)
        scaled = jnp.where(scaled < threshold, -jnp.inf, scaled)
    return scaled


def categorical(keys: Array, scaled: Float[Array, "P G V"]) -> Int[Array, "P G"]:
    """A token from softmax(scaled) for each key: first its block of the vocabulary, then its place in the block.

    Two uniform numbers instead of one per token of the vocabulary, which on a CPU took a fifth of a step.
    """
    weights = jnp.exp(scaled - scaled.max(-1, keepdims=True))
    multiple = BLOCK * sharding.axis_size(sharding.TENSOR)
    weights = jnp.pad(weights, ((0, 0), (0, 0), (0, -weights.shape[-1] % multiple)))
    weights = weights.reshape(*keys.shape, -1, BLOCK)
    weights = sharding.constrain(weights, sharding.ROWS, None, sharding.TENSOR, None)
    uniform = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (2,))))(keys)

    def invert(weights, uniform):
        """The first index at which the cumulative weight is above its share; one of weight zero never is."""
        cumulative = jnp.cumsum(weights, -1)
        return (cumulative <= uniform[..., None] * cumulative[..., -1:]).sum(-1)

    block = invert(weights.sum(-1), uniform[..., 0])
    inside = jnp.take_along_axis(weights, block[..., None, None], -2)[..., 0, :]
    return block * BLOCK + invert(inside, uniform[..., 1])


def sample(
    judge: Judge, options: SamplerOptions, params, batch: PreferenceBatch, key
) -> tuple[ThoughtBatch, Float[Array, "B S G"], Float[Array, "B S G"]]:
    """Thoughts from the policy, their log scores and the mass on the answer tokens, in one pass over the prefix.

    `key` carries seed and step. Log-probabilities are those of the untruncated density at the judge's
    temperature, so they equal the teacher-forced ones whatever top_k and top_p are.
    """
    B, S, L = batch.prefix.shape
    G, T = options.group_size, options.max_thought
    rows, prefix_len = batch.prefix.reshape(B * S, L), batch.prefix_len.reshape(-1)
    last = last_token(rows, prefix_len)
    prefix = _prefix_region(judge, params, rows, prefix_len)
    unstacked = dataclasses.replace(judge.model.config, scanned=False)
    params = sharding.lay_out(unstack(params, unstacked), axis_names(unstacked), sharding.DECODE)
    judge = dataclasses.replace(judge, model=Decoder(unstacked))
    group = Group(prefix, prefix_len, thought_keys(key, batch, G))
    state, written = _write(judge, options, params, group, last)

    is_end = state.thought == judge.end
    ended = is_end.any(-1)
    thought_len = jnp.where(ended, is_end.argmax(-1) + 1, T)
    written = written._replace(length=content_length(judge, state.thought, thought_len))
    answer = jnp.broadcast_to(batch.answer.reshape(-1, 1), (B * S, G))
    opened = jnp.concatenate([jnp.broadcast_to(last[:, None, None], (B * S, G, 1)), state.thought], -1)
    asked = _ask(judge, params, prefix, written, opened, prefix_len)
    score, mass, _ = answer_logps(judge, params, asked, answer)
    thoughts = ThoughtBatch(
        thought=state.thought.reshape(B, S, G, T),
        thought_len=thought_len.reshape(B, S, G),
        old_logp=state.logp.reshape(B, S, G, T),
        verdict=_verdicts(judge, params, asked, group.keys, T, ended.reshape(B, S, G)) if options.verdicts else None,
    )
    return thoughts, score.reshape(B, S, G), mass.reshape(B, S, G)


def _prefix_region(judge, params, prefix: Int[Array, "P L"], prefix_len: Int[Array, " P"]) -> Region:
    """Keys and values of all prefix tokens but the last of each row, by layer."""
    positions = jnp.broadcast_to(jnp.arange(prefix.shape[1]), prefix.shape)
    _, k_v = judge.model.apply(params, prefix[:, None], positions[:, None])
    return Region(*(tuple(map(_spread, x)) for x in k_v), prefix_len[:, None] - 1)


def _spread(x: Float[Array, "P G K _ _"]) -> Float[Array, "P G K _ _"]:
    """Keys or values over the mesh."""
    return sharding.constrain(x, sharding.ROWS, None, sharding.TENSOR, None, None)


def chunks(max_thought: int) -> list[int]:
    """Sizes of the parts in which the thoughts' region grows: at most GROWTHS, hardly below SMALLEST tokens."""
    count = min(max(max_thought // SMALLEST, 1), GROWTHS)
    ends = [max_thought * i // count for i in range(count + 1)]
    return [end - start for start, end in zip(ends, ends[1:])]


def _write(judge, options, params, group: Group, last) -> tuple[SamplingState, Region]:
    """Feed a token, draw the next, until every thought has ended or is full; the state and what was written.

    There is a loop for each chunk: it fills the chunk and reads in front of it only what is written already.
    Once no more than one thought per row is left, on every device, these few go on alone.
    """
    rows, G, T = *group.keys.shape, options.max_thought
    parts = sharding.rows_parts(rows)
    few = rows // parts if G > 1 else 0

    def many(done):
        return (~done).reshape(parts, -1).sum(1).max() > few

    kv_heads, head_dim, _ = group.prefix.k[0].shape[2:]
    state = SamplingState(
        position=jnp.int32(0),
        token=jnp.broadcast_to(last[:, None], (rows, G)),
        done=jnp.zeros((rows, G), bool),
        thought=jnp.full((rows, G, T), judge.pad, jnp.int32),
        logp=jnp.zeros((rows, G, T), jnp.float32),
        k=(),
        v=(),
    )
    start, written = 0, None
    for size in chunks(T):
        state = state._replace(
            k=tuple(_spread(jnp.zeros((rows, G, kv_heads, head_dim, size), k.dtype)) for k in group.prefix.k),
            v=tuple(_spread(jnp.zeros((rows, G, kv_heads, size, head_dim), v.dtype)) for v in group.prefix.v),
        )
        state = jax.lax.while_loop(
            lambda s, end=start + size: (s.position < end) & many(s.done),
            functools.partial(_step, judge, options, params, group, start, (written,) if written else ()),
            state,
        )
        written = _joined(written, Region(state.k, state.v))
        start += size
    state = state._replace(k=written.k, v=written.v)
    if few:
        finish = functools.partial(_finish, judge, options, params, group)
        state = jax.lax.cond(state.done.all() | (state.position == T), lambda s: s, finish, state)
    return state, Region(state.k, state.v)


def _step(judge, options, params, group: Group, start: int, written: tuple[Region, ...], state) -> SamplingState:
    """One more token of every thought. The state's keys and values begin at thought token `start`."""
    t = state.position
    own = Region(state.k, state.v, jnp.full((len(group.prefix_len), 1), t - start))
    positions = jnp.broadcast_to((group.prefix_len - 1 + t)[:, None, None], (*state.token.shape, 1))
    hidden, (k, v) = judge.model.apply(params, state.token[..., None], positions, (group.prefix, *written, own))
    scaled = logits(hidden[:, :, 0], output_table(params)) / judge.temperature
    token, logp = _draw(group.keys, t, scaled, truncate(scaled, options.top_k, options.top_p))
    token, logp = jnp.where(state.done, judge.pad, token), jnp.where(state.done, 0.0, logp)
    put = jax.lax.dynamic_update_slice_in_dim
    return SamplingState(
        position=t + 1,
        token=token,
        done=state.done | (token == judge.end),
        thought=put(state.thought, token[..., None], t, 2),
        logp=put(state.logp, logp[..., None], t, 2),
        k=tuple(put(old, new, t - start, 4) for old, new in zip(state.k, k)),
        v=tuple(put(old, new, t - start, 3) for old, new in zip(state.v, v)),
    )


def _draw(keys, position, scaled: Float[Array, "P G V"], shown: Float[Array, "P G V"]):
    """Tokens from softmax(shown) for each key and the position, and their log-probabilities by softmax(scaled)."""
    keys = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, position)))(keys)
    token = categorical(keys, shown)
    return token, jnp.take_along_axis(scaled, token[..., None], -1)[..., 0] - jax.nn.logsumexp(scaled, -1)


def _finish(judge, options, params, group: Group, state: SamplingState) -> SamplingState:
    """The last thoughts, at most one per row on average, each as a row of its own with a copy of its prefix.

    As many prefixes as there are already are enough for all of them, and a step costs a G-th. A thought stays
    among the rows of its device.
    """
    rows, G = group.keys.shape
    parts = sharding.rows_parts(rows)
    order = jnp.argsort(state.done.reshape(parts, -1), stable=True)[:, : rows // parts]  # those still writing first

    def pick(x, index):
        """Entries of each part of a leading axis."""
        found = jax.vmap(lambda x, i: x[i])(x.reshape(parts, -1, *x.shape[1:]), index)
        return found.reshape(rows, *x.shape[1:])

    def take(x):
        return pick(x.reshape(-1, 1, *x.shape[2:]), order)

    def of_row(x):
        return pick(x, order // G)

    prefix = Region(*(tuple(map(of_row, x)) for x in group.prefix[:2]), of_row(group.prefix.length))
    alone = Group(prefix, of_row(group.prefix_len), take(group.keys))
    left = SamplingState(state.position, *jax.tree.map(take, state[1:]))
    left = jax.lax.while_loop(
        lambda s: (s.position < options.max_thought) & ~s.done.all(),
        functools.partial(_step, judge, options, params, alone, 0, ()),
        left,
    )

    def give_back(whole, part):
        flat, part = (x.reshape(parts, -1, *whole.shape[2:]) for x in (whole, part))
        return jax.vmap(lambda x, i, new: x.at[i].set(new))(flat, order, part).reshape(whole.shape)

    return SamplingState(left.position, *jax.tree.map(give_back, state[1:], left[1:]))


def _joined(written: Region | None, chunk: Region) -> Region:
    if written is None:
        return chunk
    return Region(
        tuple(jnp.concatenate(pair, 4) for pair in zip(written.k, chunk.k)),
        tuple(jnp.concatenate(pair, 3) for pair in zip(written.v, chunk.v)),
    )


def _ask(judge, params, prefix, written, opened, prefix_len) -> Float[Array, "P G D"]:
    """Second turn on the cached regions: the hidden state that the answer is read from. `opened` is the last
    prefix token and the thought, [P, G, 1 + T].

    Its last content token is fed again in front of the question: where a thought was cut off its keys and
    values were never computed.
    """
    final = jnp.take_along_axis(opened, written.length[..., None], -1)
    question = jnp.broadcast_to(jnp.asarray(judge.question), (*opened.shape[:2], len(judge.question)))
    tokens = jnp.concatenate([final, question], -1)
    start = (prefix_len - 1)[:, None] + written.length
    positions = start[..., None] + jnp.arange(tokens.shape[-1])
    hidden, _ = judge.model.apply(params, tokens, positions, (prefix, written))
    return hidden[:, :, -1]


def _verdicts(
    judge, params, asked: Float[Array, "P G D"], keys, position: int, ended: Bool[Array, "B S G"]
) -> Verdicts:
    """An answer for each thought, from the whole vocabulary, at the `position` behind the longest thought."""
    scaled = logits(asked, output_table(params))
    token, logp = (x.reshape(ended.shape) for x in _draw(keys, position, scaled, scaled))
    answers = jnp.asarray(judge.answers)
    return Verdicts(token, logp, right=token == answers[:, None], well_formed=ended & jnp.isin(token, answers))
