"""Sampling of thoughts, in a single jitted program. A prefix is computed once for all thoughts and is never copied."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dwrl_jax.core import sharding
from dwrl_jax.generation.draw import draw, truncate
from dwrl_jax.generation.writer import Writer, content_length, last_token
from dwrl_jax.models import rope
from dwrl_jax.models.attention import Region
from dwrl_jax.models.attention.few_bits import encode
from dwrl_jax.models.transformer import Decoder, axis_names, logits, output_table
from dwrl_jax.models.unstacked import matrices_in_few_bits, unstack, within_loop

GROWTHS, SMALLEST = 4, 32  # most sizes of a region, and tokens between them; each size is one more loop to compile


@dataclasses.dataclass(frozen=True)
class SamplerOptions:
    """Options of the sampler; lengths are in tokens.

    With `top_k = 0` and `top_p = 1` the sampled density is not truncated and equals the one that the trainer
    differentiates. `batch_size` pairs are sampled at a time; 0 means all pairs of a batch. `spread` splits the
    feed-forward over the mesh axis fsdp too (`ModelConfig.spread`). `cache` is the type of keys and values ("int8",
    "float8") and `weights` that of the layers' matrices ("int8"); "" is the type of the computation. With either the
    sampled density is another one than the trainer's, and `Sample.logp` is its logarithm.
    """

    group_size: int
    max_thought: int
    top_k: int = 0
    top_p: float = 1.0
    batch_size: int = 0
    spread: bool = False
    cache: str = ""
    weights: str = ""


class SamplingState(NamedTuple):
    """The state of the loop. Each of P rows is a response, and each of its G branches is a thought of its group."""

    position: Int[Array, ""]  # index of the thought token that is sampled next
    token: Int[Array, "P G"]  # the input token of the next step, directly before `position`
    done: Bool[Array, "P G"]  # the thought has stopped
    thought: Int[Array, "P G T"]
    logp: Float[Array, "P G T"]
    k: tuple[Float[Array, "P G K H C"], ...]  # for each layer the keys of the input tokens, with room for C of them
    v: tuple[Float[Array, "P G K C H"], ...]  # and their values


class Group(NamedTuple):
    """Everything except the parameters that determines the thoughts: prefixes and keys."""

    prefix: Region
    prefix_len: Int[Array, " P"]
    keys: Array  # [P G]
    waves: tuple[Array, Array]  # [P T H/2], behind a leading axis of the kinds of rope: `rope.waves_of` each turn


class Cache(NamedTuple):
    """Keys and values of rows and their thoughts, and everything else that a further turn needs."""

    writer: Writer  # its decoder is not scanned; `params` are unstacked too
    params: dict
    prefix: Region
    prefix_len: Int[Array, " P"]
    written: Region
    opened: Int[Array, "P G 1+T"]  # the last prefix token and the thought


class Sample(NamedTuple):
    """The drawn thoughts [P, G]. `logp` is in nats under the writer, and zero past `length`."""

    thought: Int[Array, "P G T"]
    length: Int[Array, "P G"]  # number of tokens, including the end token if there is one
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
    """A thought for each of the `keys` [P, G], with a single pass over the prefix of each row.

    Log-probabilities are those of the density at the writer's temperature without truncation. So they equal the
    teacher-forced log-probabilities for every top_k and top_p.
    """
    rows, G, T = *keys.shape, options.max_thought
    last = last_token(prefix, prefix_len)
    region = _prefix_region(writer, options, params, prefix, prefix_len)
    unstacked = dataclasses.replace(writer.model.config, scanned=False, spread=options.spread)
    params = unstack(params, unstacked)
    if options.weights:
        params, unstacked = matrices_in_few_bits(params, unstacked, options.weights)
    rules = sharding.DECODE_SPREAD if options.spread else sharding.DECODE
    params |= sharding.lay_out({"params": params["params"]}, axis_names(unstacked), rules)
    writer = dataclasses.replace(writer, model=Decoder(unstacked))
    group = Group(region, prefix_len, keys, _waves(writer, options, prefix_len))
    state, written = _write(writer, options, params, group, last)

    stops = writer.stopped_by(state.thought)
    stopped = stops.any(-1)
    length = jnp.where(stopped, stops.argmax(-1) + 1, T)
    ended = jnp.take_along_axis(state.thought, length[..., None] - 1, -1)[..., 0] == writer.end
    written = written._replace(length=content_length(writer, state.thought, length))
    opened = jnp.concatenate([jnp.broadcast_to(last[:, None, None], (rows, G, 1)), state.thought], -1)
    cache = Cache(writer, params, region, prefix_len, written, opened)
    return Sample(state.thought, length, state.logp, ended), cache


def follow(cache: Cache, following: tuple[int, ...]) -> Float[Array, "P G D"]:
    """The hidden state at the last token of `following`, after each thought. `following` begins with the end token.

    The last content token of each thought is an input again, before `following`. If a thought was cut off, the keys
    and values of this token have not been computed yet.
    """
    length = cache.written.length
    final = jnp.take_along_axis(cache.opened, length[..., None], -1)
    behind = jnp.broadcast_to(jnp.asarray(following), (*length.shape, len(following)))
    tokens = jnp.concatenate([final, behind], -1)
    start = (cache.prefix_len - 1)[:, None] + length
    positions = start[..., None] + jnp.arange(tokens.shape[-1])
    hidden, _ = cache.writer.model.apply(cache.params, tokens, positions, (cache.prefix, cache.written))
    return hidden[:, :, -1]


def without_thought(cache: Cache) -> Cache:
    """The same rows, each with a single thought that is empty. Nothing of the prefixes is computed again."""
    rows = len(cache.prefix_len)
    first = jax.tree.map(lambda x: x[:, :1], cache.written[:2])
    written = Region(*first, jnp.zeros((rows, 1), jnp.int32))
    return cache._replace(written=written, opened=cache.opened[:, :1])


def _prefix_region(writer, options, params, prefix: Int[Array, "P L"], prefix_len: Int[Array, " P"]) -> Region:
    """For each layer, the keys and values of all prefix tokens of each row except the last."""
    positions = jnp.broadcast_to(jnp.arange(prefix.shape[1]), prefix.shape)
    _, k_v = writer.model.apply(params, prefix[:, None], positions[:, None])
    return Region(*jax.tree.map(_spread, _kept(options, *k_v)), prefix_len[:, None] - 1)


def _kept(options: SamplerOptions, k, v) -> tuple[tuple, tuple]:
    """The keys [P G K H T] and values [P G K T H] of each layer, as the loop keeps them."""
    if not options.cache:
        return tuple(k), tuple(v)
    return tuple(encode(x, options.cache, 3) for x in k), tuple(encode(x, options.cache, 4) for x in v)


def _spread(x: Float[Array, "P G K _ _"]) -> Float[Array, "P G K _ _"]:
    """Keys or values, their codes or their scales, split over the mesh."""
    return sharding.constrain(x, sharding.ROWS, None, sharding.TENSOR, None, None)


def room(max_thought: int) -> list[int]:
    """The sizes, in tokens, of the region of thoughts as it grows: at most GROWTHS, each larger by about SMALLEST."""
    count = min(max(max_thought // SMALLEST, 1), GROWTHS)
    return [max_thought * i // count for i in range(1, count + 1)]


def _write(writer, options, params, group: Group, last) -> tuple[SamplingState, Region]:
    """Draw a token at each step until every thought has ended or is full. Returns the state and the written region.

    The region of the thoughts grows a few times, and each of its sizes has a loop of its own: a token reads no more of
    it than there is. If on every device the unfinished thoughts are no more than the rows, `_finish` completes them
    without the others.
    """
    rows, G, T = *group.keys.shape, options.max_thought
    parts = sharding.rows_parts(rows)
    few = rows // parts if G > 1 else 0

    def many(done):
        return (~done).reshape(parts, -1).sum(1).max() > few

    state = SamplingState(
        position=jnp.int32(0),
        token=jnp.broadcast_to(last[:, None], (rows, G)),
        done=jnp.zeros((rows, G), bool),
        thought=jnp.full((rows, G, T), writer.pad, jnp.int32),
        logp=jnp.zeros((rows, G, T), jnp.float32),
        k=(),
        v=(),
    )
    start = 0
    for end in room(T):
        state = _larger(state, *_empty(writer, options, group, end - start))
        state = jax.lax.while_loop(
            lambda s, end=end: (s.position < end) & many(s.done),
            functools.partial(_step, writer, options, params, group),
            state,
        )
        start = end
    if few:
        finish = functools.partial(_finish, writer, options, params, group)
        state = jax.lax.cond(state.done.all() | (state.position == T), lambda s: s, finish, state)
    return state, Region(state.k, state.v)


def _waves(writer, options, prefix_len: Int[Array, " P"]) -> tuple[Array, Array]:
    """`rope.waves_of` each turn, made before the loop.

    In the loop XLA would make them from the turn's number, again for every head of every layer.
    """
    return rope.waves_of(writer.model.config, (prefix_len - 1)[:, None] + jnp.arange(options.max_thought))


def _empty(writer, options, group: Group, size: int) -> tuple[tuple, tuple]:
    """Keys and values of `size` tokens of each thought, as the loop keeps them, all zero."""
    kv_heads, head_dim, _ = group.prefix.k[0].shape[2:]
    keys, values = (
        [jax.ShapeDtypeStruct((*group.keys.shape, kv_heads, *shape), writer.model.config.dtype)] * len(group.prefix.k)
        for shape in ((head_dim, size), (size, head_dim))
    )
    empty = jax.eval_shape(functools.partial(_kept, options), keys, values)
    return jax.tree.map(lambda x: _spread(jnp.zeros(x.shape, x.dtype)), empty)


def _larger(state: SamplingState, k: tuple, v: tuple) -> SamplingState:
    """The state with these keys and values behind its own."""
    if not state.k:
        return state._replace(k=k, v=v)
    ends = ((state.k, k, 4), (state.v, v, 3))
    k, v = (jax.tree.map(lambda *x, axis=axis: jnp.concatenate(x, axis), *two) for *two, axis in ends)
    return state._replace(k=k, v=v)


def _step(writer, options, params, group: Group, state: SamplingState) -> SamplingState:
    """Draw one more token of every thought."""
    t = state.position
    params = within_loop(params, t)
    written = Region(state.k, state.v, jnp.full((len(group.prefix_len), 1), t))
    positions = jnp.broadcast_to((group.prefix_len - 1 + t)[:, None, None], (*state.token.shape, 1))
    waves = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, t, 1, -2), group.waves)
    regions = (group.prefix, written)
    hidden, (k, v) = writer.model.apply(params, state.token[..., None], positions, regions, waves=waves)
    scaled = logits(hidden[:, :, 0], output_table(params), writer.model.config.logit_cap) / writer.temperature
    token, logp = draw(group.keys, t, scaled, truncate(scaled, options.top_k, options.top_p))
    token, logp = jnp.where(state.done, writer.pad, token), jnp.where(state.done, 0.0, logp)
    put = jax.lax.dynamic_update_slice_in_dim
    k, v = _kept(options, k, v)
    at = _after(t, token)
    return SamplingState(
        position=t + 1,
        token=token,
        done=state.done | writer.stopped_by(token),
        thought=put(state.thought, token[..., None], t, 2),
        logp=put(state.logp, logp[..., None], t, 2),
        k=jax.tree.map(lambda old, new: put(old, new, at, 4), state.k, k),
        v=jax.tree.map(lambda old, new: put(old, new, at, 3), state.v, v),
    )


def _after(index: Int[Array, ""], token: Int[Array, "P G"]) -> Int[Array, ""]:
    """The index itself, which waits for the drawn tokens.

    Keys and values that are put there are written in place then, for nothing reads the old ones any more. Otherwise
    XLA copies them all, twice in each layer. Not on a mesh, where each device would wait for the others' tokens.
    """
    if sharding.axis_size(*sharding.AXES) > 1:
        return index
    return index + (token[0, 0] < 0).astype(index.dtype)  # never true, but only we know


def _finish(writer, options, params, group: Group, state: SamplingState) -> SamplingState:
    """Complete the last thoughts, each in a row of its own with a copy of its prefix.

    There are no more such thoughts than rows, so no more prefixes are needed than before, and a step costs 1 / G as
    much. A thought stays on its device.
    """
    rows, G = group.keys.shape
    parts = sharding.rows_parts(rows)
    order = jnp.argsort(state.done.reshape(parts, -1), stable=True)[:, : rows // parts]  # unfinished thoughts first

    def pick(x, index):
        """The entries of each device's part of the leading axis, by their index in the part."""
        picked = jax.vmap(lambda x, i: x[i])(x.reshape(parts, -1, *x.shape[1:]), index)
        return picked.reshape(rows, *x.shape[1:])

    def take(x):
        return pick(x.reshape(-1, 1, *x.shape[2:]), order)

    def of_row(x):
        return pick(x, order // G)

    prefix, prefix_len = jax.tree.map(of_row, (group.prefix, group.prefix_len))
    alone = Group(prefix, prefix_len, take(group.keys), _waves(writer, options, prefix_len))
    left = SamplingState(state.position, *jax.tree.map(take, state[1:]))
    left = jax.lax.while_loop(
        lambda s: (s.position < options.max_thought) & ~s.done.all(),
        functools.partial(_step, writer, options, params, alone),
        left,
    )

    def give_back(whole, part):
        flat, part = (x.reshape(parts, -1, *whole.shape[2:]) for x in (whole, part))
        return jax.vmap(lambda x, i, new: x.at[i].set(new))(flat, order, part).reshape(whole.shape)

    return SamplingState(left.position, *jax.tree.map(give_back, state[1:], left[1:]))
