"""The decoder of all families, as pure functions (Flax Linen, `init` / `apply`).

Letters: P prefixes (rows), G branches per prefix, T new tokens, D width, N query heads, K key/value heads,
H head size, F feed-forward width, V vocabulary. The only entry is `Decoder.__call__`. Its inputs are new tokens, their
positions and the regions of earlier keys and values. Its outputs are hidden states and the keys and values of the new
tokens. The same call serves for a prefix pass, for a teacher-forced pass over prefixes with their branches, and for
one step of decoding.
"""

import dataclasses
import functools
import operator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from dwrl_jax.core import sharding
from dwrl_jax.models import quantised, rope
from dwrl_jax.models.attention import KEPT, Region, Window, as_region
from dwrl_jax.models.attention.backends import attend
from dwrl_jax.models.experts import Experts
from dwrl_jax.models.parameters import norm, partitioned

EVERYTHING = 2**30  # a window that no text fills
ACTIVATIONS = {"silu": nn.silu, "gelu_tanh": functools.partial(nn.gelu, approximate=True)}


def _of_fused_attention(primitive, *_, **__) -> bool:
    """Whether these are the results of cuDNN's attention, which cost more to compute again than to keep."""
    return primitive.name.startswith("dot_product_attention_fwd")


NARROW = ("q", "k", "v", "o", "down")  # products of a layer that are no wider than the model


def _keeps(policy):
    """A remat policy that keeps the results of attention too."""
    ours = jax.checkpoint_policies.save_only_these_names(KEPT)
    return functools.reduce(jax.checkpoint_policies.save_from_both_policies, [policy, ours, _of_fused_attention])


REMAT_POLICIES = {  # from the fastest to the smallest
    "none": None,
    "dots": _keeps(jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims),
    "narrow": _keeps(jax.checkpoint_policies.save_only_these_names(*NARROW)),
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and numerics of a decoder. `param_dtype` is the type of the weights, `dtype` that of the computation."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_size: int
    rope_theta: float
    rope_scaling: rope.Llama3 | rope.Linear | rope.Yarn | None
    norm_eps: float
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    max_position: int
    o_bias: bool = False
    mlp_bias: bool = False
    windows: tuple[int, ...] = ()  # of each layer: how many tokens a query sees, itself included; 0 for all
    layer_ropes: tuple[str, ...] = ()  # of each layer: "model" (rope_theta and rope_scaling), "local" or "none"
    local_rope_theta: float = 0.0  # the base of "local" layers, whose rope is not rescaled
    norms: str = "pre"  # before attention and feed-forward ("pre"), after them ("post"), or "both"
    norm_offset: float = 0.0  # norms multiply by offset + scale
    qk_norm_of_all: bool = False  # norms of queries and keys span all heads, not each head
    query_scale: float = 1.0  # multiplies queries, beside 1 / sqrt(head_dim)
    activation: str = "silu"  # of the feed-forward's gate: a name in ACTIVATIONS
    embed_scale: float = 1.0  # multiplies the embeddings of tokens
    logit_cap: float = 0.0  # logits are cap tanh(logits / cap); 0 for no cap
    experts: int = 0  # number of experts of the feed-forward; 0 for a single one of `mlp_size`
    experts_per_token: int = 0
    expert_size: int = 0  # feed-forward width of an expert
    norm_experts: bool = False  # the weights of a token's experts sum to 1
    balance: float = 0.0  # weight of the load-balance loss of experts
    dtype: str = "float32"
    param_dtype: str = "float32"
    quantised: str = ""  # how matrices of layers are kept, "int8" or "nf4"; empty for `param_dtype`
    remat: str = "none"
    attention: str = "auto"  # the backend of `attend`
    value_head: int = 0  # number of outputs of a value head, which replaces the lm-head; 0 for a language model
    spread: bool = False  # the feed-forward lies over "fsdp" too; a device computes its part for all rows of that axis
    scanned: bool = True  # True: weights are stacked and layers share a program; False: see `unstacked`


class Prefix(NamedTuple):
    """Tokens in front of all branches of their row. The branches see the first `length` of them."""

    tokens: Int[Array, "P L"]
    length: Int[Array, " P"]


class Layer(nn.Module):
    """Attention over regions and new tokens, then the gated feed-forward network, with norms before or after each.

    The tokens of a row are its `prefix_size` prefix tokens, if any, and after them the tokens of its G branches.
    """

    config: ModelConfig
    prefix_size: int
    branches: int

    def before(self, part, x):
        """The input of a part of the layer."""
        return x if self.config.norms == "post" else norm(self.config, f"{part}_norm", "embed")(x)

    def after(self, part, x):
        """The output of a part of the layer, as it is added to the layer's input."""
        return x if self.config.norms == "pre" else norm(self.config, f"{part}_post_norm", "embed")(x)

    def dense(self, name, features, axes, *, inputs=1, bias=False):
        if self.config.quantised:
            features = features if isinstance(features, tuple) else (features,)
            product = quantised.Dense(self.config, features, axes, inputs, bias, name=name)
        else:
            product = nn.DenseGeneral(
                features,
                axis=tuple(range(-inputs, 0)),
                use_bias=bias,
                dtype=self.config.dtype,
                param_dtype=self.config.param_dtype,
                kernel_init=partitioned(*axes),
                bias_init=partitioned(*axes[inputs:], init=nn.initializers.zeros),
                name=name,
            )
        change = self.get_variable("lora", name)

        def whole(x):
            made = product(x) if change is None else product(x) + low_rank(x, change, inputs, self.config.dtype)
            return checkpoint_name(made, name)

        return whole

    @nn.compact
    def __call__(
        self, x: Float[Array, "P M D"], keys_values, window, kind, lengths, prefix_length, waves, segments, positions
    ):
        c = self.config
        P, M = x.shape[:2]
        tokens = x.reshape(-1, c.hidden_size)  # XLA's matrix products are fastest with a single token axis

        def heads(name, count, tokens):
            axis = "heads" if name == "q" else "kv_heads"
            projected = self.dense(name, (count, c.head_dim), ("embed", axis, "head_dim"), bias=c.qkv_bias)
            return projected(tokens).reshape(P, M, count, c.head_dim)

        h = self.before("attention", tokens)
        q, k, v = heads("q", c.heads, h), heads("k", c.kv_heads, h), heads("v", c.kv_heads, h)
        if c.qk_norm:
            all_heads = (("heads",), ("kv_heads",)) if c.qk_norm_of_all else ((), ())
            q, k = (norm(c, f"{x}_norm", *a, "head_dim")(y) for x, a, y in zip("qk", all_heads, (q, k)))
        waves = waves if kind is None else jax.tree.map(operator.itemgetter(kind), waves)
        q, k = rope.rotate(q, waves), rope.rotate(k, waves)
        q = q if c.query_scale == 1.0 else q * jnp.asarray(c.query_scale, q.dtype)
        copies = sharding.copies_of(c.kv_heads)
        if copies > 1:  # query heads n to n + N / (K copies) - 1 share a copy, so all of a copy's stand on its device
            k, v = (jnp.repeat(x, copies, 2) for x in (k, v))
            k, v = (sharding.constrain(x, sharding.ROWS, None, sharding.TENSOR, None) for x in (k, v))
        regions = tuple(Region(*kv, length) for kv, length in zip(keys_values, lengths))
        window = None if window is None else Window(window, positions)
        mixed, new = self.attend(q, k, v, regions, prefix_length, segments, window)
        output = self.dense("o", c.hidden_size, ("heads", "head_dim", "embed"), inputs=2, bias=c.o_bias)
        tokens = tokens + self.after("attention", output(mixed))
        tokens = tokens + self.after("mlp", self.feed_forward(self.before("mlp", tokens), (P, M), prefix_length))
        return sharding.constrain(tokens.reshape(x.shape), sharding.ROWS, None, None), new

    def feed_forward(self, h, shape, prefix_length):
        c = self.config
        if c.experts:
            counted = jnp.ones(shape, bool)
            if self.prefix_size:  # padding of prefixes
                counted = (jnp.arange(shape[1]) < prefix_length[:, None]) | (jnp.arange(shape[1]) >= self.prefix_size)
            return Experts(c, name="experts")(h, counted.reshape(-1))
        h = sharding.constrain(h, "data", None) if c.spread else h
        gate = self.dense("gate", c.mlp_size, ("embed", "mlp"), bias=c.mlp_bias)(h)
        up = self.dense("up", c.mlp_size, ("embed", "mlp"), bias=c.mlp_bias)(h)
        down = self.dense("down", c.hidden_size, ("mlp", "embed"), bias=c.mlp_bias)
        inner = ACTIVATIONS[c.activation](gate) * up
        if not c.spread or self.is_initializing():
            return down(inner)
        weights = self.get_variable("params", "down")  # the sampler, which alone spreads, has added adapters to them
        kernel = weights["kernel"]
        if c.quantised:
            shape, names = (c.mlp_size, c.hidden_size), ("mlp", "embed")
            kernel = quantised.restored(c.quantised, shape, names, c.dtype, kernel)
        return sharding.split_product(inner, kernel) + weights.get("bias", 0)

    def attend(self, q, k, v, regions, prefix_length, segments, window):
        """Mixed values [P * M, N, H], and the keys and values of the branches' tokens."""
        size, P, N, H = self.prefix_size, *q.shape[:1], *q.shape[2:]

        def of_branches(x):
            return x[:, size:].reshape(P, self.branches, -1, *x.shape[2:])

        def near(positions):
            return None if window is None else window._replace(positions=positions(window.positions))

        mixed = []
        if size:
            before = [x[:, :size][:, None] for x in (q, k, v)]
            mine = near(lambda x: x[:, None, :size])
            mixed.append(attend(*before, (), window=mine, backend=self.config.attention).reshape(P, size, N, H))
            regions = (as_region(*before[1:], prefix_length[:, None]), *regions)
        k, v = of_branches(k), of_branches(v)
        branches = attend(of_branches(q), k, v, regions, segments, near(of_branches), backend=self.config.attention)
        mixed.append(branches.reshape(P, -1, N, H))
        return jnp.concatenate(mixed, 1).reshape(-1, N, H), as_region(k, v)[:2]


class Decoder(nn.Module):
    """The decoder up to its last norm. The product of its output with `output_table` gives the logits."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "P G T"],
        positions: Int[Array, "P G T"],
        regions: tuple[Region, ...] = (),
        prefix: Prefix | None = None,
        segments: Int[Array, "P G T"] | None = None,
        waves: tuple[Array, Array] | None = None,
    ) -> tuple[Float[Array, "P G T D"], tuple[Array, Array]]:
        """Hidden states of the new tokens, and their keys and values in the layout of a Region.

        `regions` were computed by earlier calls. `prefix` is computed in this call, together with the new tokens,
        from position 0 on. A branch may hold several texts; `segments` gives the text of each new token, and a new
        token sees only the new tokens of its own text. `waves` are `rope.waves_of` the positions, for a caller that has
        them already.
        """
        c = self.config
        P, G, T = tokens.shape
        ids, positions = tokens.reshape(P, -1), positions.reshape(P, -1)
        size, prefix_length = 0, None
        if prefix is not None:
            size, prefix_length = prefix.tokens.shape[1], prefix.length
            ids = jnp.concatenate([prefix.tokens, ids], 1)
            positions = jnp.concatenate([jnp.broadcast_to(jnp.arange(size), (P, size)), positions], 1)
        embed = nn.Embed(
            c.vocab_size,
            c.hidden_size,
            param_dtype=c.param_dtype,
            embedding_init=partitioned("vocab", "embed"),
            name="embed",
        )
        if c.value_head:
            self.param(
                "value_head", partitioned("value", "embed"), (c.value_head, c.hidden_size), jnp.dtype(c.param_dtype)
            )
        elif not c.tied:
            shape = (c.vocab_size, c.hidden_size)
            self.param("lm_head", partitioned("vocab", "embed"), shape, jnp.dtype(c.param_dtype))
        waves, kinds = rope.waves_of(c, positions) if waves is None else waves, rope.kinds_of(c)
        ropes = [kinds.index(kind) for kind in c.layer_ropes] if kinds else None
        windows = acting_windows(c, size + T + sum(r.v[0].shape[-2] for r in regions))
        shared = tuple(r.length for r in regions), prefix_length, waves, segments, positions if any(windows) else None
        table = sharding.constrain(embed.embedding, sharding.TENSOR, None).astype(c.dtype)
        x = sharding.constrain(jnp.take(table, ids, axis=0), sharding.ROWS, None, None)
        x = x if c.embed_scale == 1.0 else x * jnp.asarray(c.embed_scale, x.dtype)
        if c.scanned:
            by_layer = jnp.array([window or EVERYTHING for window in windows]) if any(windows) else None
            by_rope = None if ropes is None else jnp.array(ropes)
            x, new = self.stack(size, G)(x, tuple((r.k, r.v) for r in regions), by_layer, by_rope, *shared)
        else:
            new = []
            for i in range(c.layers):
                layer = Layer(c, size, G, name=f"layer_{i}")
                kind = None if ropes is None else ropes[i]
                x, k_v = layer(x, tuple((r.k[i], r.v[i]) for r in regions), windows[i] or None, kind, *shared)
                new.append(k_v)
            new = tuple(zip(*new))
        return norm(c, "norm", "embed")(x[:, size:]).reshape(P, G, T, -1), new

    def stack(self, prefix_size: int, branches: int):
        """All layers as a single program, run in a loop over stacked weights."""
        policy = REMAT_POLICIES[self.config.remat]
        layer = Layer if policy is None else nn.remat(Layer, policy=policy, prevent_cse=False)
        scan = nn.scan(
            layer,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, 0, *[nn.broadcast] * 5),
            length=self.config.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scan(self.config, prefix_size, branches, name="layers")


def acting_windows(config: ModelConfig, tokens: int) -> list[int]:
    """The window of each layer, 0 where it hides no token of a text of so many tokens."""
    return [size if 0 < size < tokens else 0 for size in config.windows or (0,) * config.layers]


def low_rank(x, change, inputs: int, dtype):
    """x left right, the change of a product by an adapter. `inputs` axes of `x` are those of the product.

    `change` has left [inputs..., rank] and right [rank, outputs...]. With a `key` it also has the share of the numbers
    of `x` that are set to zero, its `dropout`.
    """
    if "key" in change:
        kept = 1 - change["dropout"]
        x = jnp.where(jax.random.bernoulli(change["key"], kept, x.shape), x / kept, 0)
    left, right = change["left"].astype(dtype), change["right"].astype(dtype)
    inner = jnp.tensordot(x.astype(dtype), left, inputs)
    # remat="dots" keeps products without batch axes. This one is as large as the layer's own, and cheap to make again:
    # with a batch axis of one it is not kept.
    return jax.lax.dot_general(inner[None], right[None], (((inner.ndim,), (1,)), ((0,), (0,))))[0]


def axis_names(config: ModelConfig):
    """Shapes of the parameters. Each carries the logical names of its axes."""

    def init():
        token = jnp.zeros((sharding.axis_size(*sharding.ROWS), 1, 1), jnp.int32)  # the current mesh divides it
        return Decoder(config).init(jax.random.key(0), token, token)

    return jax.eval_shape(init)


def output_table(params) -> Float[Array, "V D"]:
    """The lm-head, or the embedding if the two are tied. Its rows' dot products with a hidden state are the logits."""
    tree = params["params"]
    return tree["lm_head"] if "lm_head" in tree else tree["embed"]["embedding"]


def logits(hidden: Float[Array, "*rows D"], table: Float[Array, "V D"], cap: float = 0.0) -> Float[Array, "*rows V"]:
    """logits = hidden table^T, in float32; cap tanh(logits / cap) with a `cap`, which is ModelConfig's `logit_cap`.

    The gradients are products in the type of `hidden` as well, summed in float32. XLA would make them from float32
    copies of the table and of [rows, V] numbers, at half the speed of an accelerator.
    """
    plain = _logits(hidden, table.astype(hidden.dtype))
    return cap * jnp.tanh(plain / cap) if cap else plain


@jax.custom_vjp
def _logits(hidden, table):
    return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)


def _logits_forward(hidden, table):
    return _logits(hidden, table), (hidden, table)


def _logits_backward(kept, d_logits):
    hidden, table = kept
    d = d_logits.astype(hidden.dtype)
    d_hidden = jnp.einsum("...v,vd->...d", d, table, preferred_element_type=jnp.float32)
    d_table = jnp.einsum("...v,...d->vd", d, hidden, preferred_element_type=jnp.float32)
    return d_hidden.astype(hidden.dtype), d_table.astype(table.dtype)


_logits.defvjp(_logits_forward, _logits_backward)
