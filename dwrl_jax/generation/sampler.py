"""Sampling of thoughts: one jitted program; a prefix is computed once, its keys and values read where they lie."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dwrl_jax.core import sharding
from dwrl_jax.generation.draw import draw, truncate
from dwrl_jax.generation.writer import Writer, content_length, last_token
from dwrl_jax.models.attention import Region
from dwrl_jax.models.transformer import Decoder, axis_names, logits, output_table, unstack

GROWTHS, SMALLEST = 4, 32  # how the thoughts' region grows: each chunk is one more loop to compile


@dataclasses.dataclass(frozen=True)
class SamplerOptions:
    """Lengths in tokens. `top_k = 0` and `top_p = 1` leave the density whole, which is what the trainer differentiates.

    `batch_size` pairs are sampled at a time, all of a batch where it is 0.
    """

    group_size: int
    max_thought: int
    top_k: int = 0
    top_p: float = 1.0
    batch_size: int = 0


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


class Cache(NamedTuple):
    """Keys and values of rows and their thoughts, and what a further turn needs beside them."""

    writer: Writer  # its decoder has every layer apart, as `params` do
    params: dict
    prefix: Region
    prefix_len: Int[Array, " P"]
    written: Region
    opened: Int[Array, "P G 1+T"]  # the last prefix token and the thought


class Sample(NamedTuple):
    """Thoughts [P, G] as they were drawn; `logp` in nats under the writer, zero past `length`."""

    thought: Int[Array, "P G T"]
    length: Int[Array, "P G"]  # counts the end token where there is one
    logp: Float[Array, "P G T"]
    ended: Bool[Array, "P G"]  # the thought has its end token


def write(
    writer: Writer,
    options: SamplerOptions,
    params,
    prefix: Int[Array, "P L"],
    prefix_len: Int[Array, " P"],
    keys: Array,
) -> tuple[Sample, Cache]:
    """Thoughts for each row, one for each of its `keys` [P, G], in one pass over the prefix.

    Log-probabilities are those of the untruncated density at the writer's temperature, so they equal the
    teacher-forced ones whatever top_k and top_p are.
    """
    rows, G, T = *keys.shape, options.max_thought
    last = last_token(prefix, prefix_len)
    region = _prefix_region(writer, params, prefix, prefix_len)
    unstacked = dataclasses.replace(writer.model.config, scanned=False)
    params = sharding.lay_out(unstack(params, unstacked), axis_names(unstacked), sharding.DECODE)
    writer = dataclasses.replace(writer, model=Decoder(unstacked))
    state, written = _write(writer, options, params, Group(region, prefix_len, keys), last)

    is_end = state.thought == writer.end
    ended = is_end.any(-1)
    length = jnp.where(ended, is_end.argmax(-1) + 1, T)
    written = written._replace(length=content_length(writer.end, state.thought, length))
    opened = jnp.concatenate([jnp.broadcast_to(last[:, None, None], (rows, G, 1)), state.thought], -1)
    cache = Cache(writer, params, region, prefix_len, written, opened)
    return Sample(state.thought, length, state.logp, ended), cache


def follow(cache: Cache, following: tuple[int, ...]) -> Float[Array, "P G D"]:
    """The hidden state of the last of the tokens that follow each thought; `following` begins with the end token.

    The last content token of a thought is fed again in front of them: where a thought was cut off, its keys and
    values were never computed.
    """
    length = cache.written.length
    final = jnp.take_along_axis(cache.opened, length[..., None], -1)
    behind = jnp.broadcast_to(jnp.asarray(following), (*length.shape, len(following)))
    tokens = jnp.concatenate([final, behind], -1)
    start = (cache.prefix_len - 1)[:, None] + length
    positions = start[..., None] + jnp.arange(tokens.shape[-1])
    hidden, _ = cache.writer.model.apply(cache.params, tokens, positions, (cache.prefix, cache.written))
    return hidden[:, :, -1]


def _prefix_region(writer, params, prefix: Int[Array, "P L"], prefix_len: Int[Array, " P"]) -> Region:
    """Keys and values of all prefix tokens but the last of each row, by layer."""
    positions = jnp.broadcast_to(jnp.arange(prefix.shape[1]), prefix.shape)
    _, k_v = writer.model.apply(params, prefix[:, None], positions[:, None])
    return Region(*(tuple(map(_spread, x)) for x in k_v), prefix_len[:, None] - 1)


def _spread(x: Float[Array, "P G K _ _"]) -> Float[Array, "P G K _ _"]:
    """Keys or values over the mesh."""
    return sharding.constrain(x, sharding.ROWS, None, sharding.TENSOR, None, None)


def chunks(max_thought: int) -> list[int]:
    """Sizes of the parts in which the thoughts' region grows: at most GROWTHS, hardly below SMALLEST tokens."""
    count = min(max(max_thought // SMALLEST, 1), GROWTHS)
    ends = [max_thought * i // count for i in range(count + 1)]
    return [end - start for start, end in zip(ends, ends[1:])]


def _write(writer, options, params, group: Group, last) -> tuple[SamplingState, Region]:
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
        thought=jnp.full((rows, G, T), writer.pad, jnp.int32),
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
            functools.partial(_step, writer, options, params, group, start, (written,) if written else ()),
            state,
        )
        written = _joined(written, Region(state.k, state.v))
        start += size
    state = state._replace(k=written.k, v=written.v)
    if few:
        finish = functools.partial(_finish, writer, options, params, group)
        state = jax.lax.cond(state.done.all() | (state.position == T), lambda s: s, finish, state)
    return state, Region(state.k, state.v)


def _step(writer, options, params, group: Group, start: int, written: tuple[Region, ...], state) -> SamplingState:
    """One more token of every thought. The state's keys and values begin at thought token `start`."""
    t = state.position
    own = Region(state.k, state.v, jnp.full((len(group.prefix_len), 1), t - start))
    positions = jnp.broadcast_to((group.prefix_len - 1 + t)[:, None, None], (*state.token.shape, 1))
    hidden, (k, v) = writer.model.apply(params, state.token[..., None], positions, (group.prefix, *written, own))
    scaled = logits(hidden[:, :, 0], output_table(params)) / writer.temperature
    token, logp = draw(group.keys, t, scaled, truncate(scaled, options.top_k, options.top_p))
    token, logp = jnp.where(state.done, writer.pad, token), jnp.where(state.done, 0.0, logp)
    put = jax.lax.dynamic_update_slice_in_dim
    return SamplingState(
        position=t + 1,
        token=token,
        done=state.done | (token == writer.end),
        thought=put(state.thought, token[..., None], t, 2),
        logp=put(state.logp, logp[..., None], t, 2),
        k=tuple(put(old, new, t - start, 4) for old, new in zip(state.k, k)),
        v=tuple(put(old, new, t - start, 3) for old, new in zip(state.v, v)),
    )


def _finish(writer, options, params, group: Group, state: SamplingState) -> SamplingState:
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
        functools.partial(_step, writer, options, params, alone, 0, ()),
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
