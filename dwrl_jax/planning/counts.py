"""FLOPs and bytes of a step, counted from shapes. Compilers count the body of a loop once, so they cannot be asked.

FLOPs are those that the mathematics needs: a multiply-add is two, and the masked half of a causal pass is not counted.
`c` is a model's shape, with the letters of transformer.py; `s` and `share` are `Sizes` and `Share`.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from dwrl_jax.core import sharding
from dwrl_jax.models.transformer import ModelConfig, axis_names
from dwrl_jax.models.unstacked import in_few_bits


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a step: `rows` responses, each with `group` thoughts. The other fields are in tokens."""

    rows: int
    prefix: int
    group: int
    thought: int
    question: int

    @property
    def branches(self) -> int:
        return self.rows * self.group

    @property
    def branch(self) -> int:
        return 1 + self.thought + self.question


@dataclasses.dataclass(frozen=True)
class Share:
    """A device's part of a step: `rows` rows, and 1 / `tensor` of the heads and of the feed-forward.

    Its rows are sampled in `parts`, one part after the other. It holds 1 / `experts` of the experts, and in decoding
    1 / (`tensor` `spread`) of the feed-forward. `cache` and `weights` are the types of the sampler's options.
    """

    rows: int
    tensor: int
    devices: int
    parts: int = 1
    experts: int = 1
    spread: int = 1
    cache: str = ""
    weights: str = ""


def layer_weights(c: ModelConfig) -> int:
    """Weights of one layer's products with a token: of all experts only the token's."""
    return c.hidden_size * (c.head_dim * (2 * c.heads + 2 * c.kv_heads) + 3 * mlp_width(c) + c.experts)


def mlp_width(c: ModelConfig) -> int:
    """The feed-forward width that a token passes through."""
    return c.experts_per_token * c.expert_size if c.experts else c.mlp_size


def expert_weights(c: ModelConfig) -> int:
    """Weights of all experts of all layers."""
    return c.layers * c.experts * 3 * c.hidden_size * c.expert_size


def copies_of_heads(c: ModelConfig, tensor: int) -> int:
    """How many of `tensor` devices have the same key/value head."""
    return sharding.copies_of(c.kv_heads, {sharding.TENSOR: tensor})


def on_device(c: ModelConfig, weights: float, tensor: int, size: float = 1.0) -> float:
    """A device's part of `weights`, which are numbers, or bytes where a key/value weight has `size` of them.

    The weights of key/value heads are whole on it where the heads have copies.
    """
    if copies_of_heads(c, tensor) == 1:
        return weights / tensor
    whole = size * c.layers * 2 * c.hidden_size * c.kv_heads * c.head_dim
    return (weights - whole) / tensor + whole


def passed(c: ModelConfig, adapters) -> float:
    """Numbers of a tree of adapters that a token passes through: of those of all experts only its experts' part."""

    def part(path):
        return c.experts_per_token / c.experts if "experts" in (entry.key for entry in path) else 1

    return sum(x.size * part(path) for path, x in jax.tree_util.tree_leaves_with_path(adapters))


def feed_forward_weights(c: ModelConfig) -> int:
    """Weights of the feed-forwards of all layers; 0 for experts."""
    return 0 if c.experts else c.layers * 3 * c.hidden_size * c.mlp_size


def parameters(c: ModelConfig) -> int:
    return sum(x.size for _, x in _weights(dataclasses.replace(c, quantised="", remat="none")))


@functools.cache
def _weights(c: ModelConfig) -> list[tuple]:
    """Paths and shapes of all parameters."""
    return jax.tree_util.tree_leaves_with_path(nn.meta.unbox(axis_names(c)))


def forward(c: ModelConfig, tokens: float, keys: float, heads: float) -> float:
    """FLOPs of a forward pass over `tokens` that see `keys` each; `heads` of them pass through the lm-head.

    Per token and layer 2 per weight, 4 N H per key (scores and mixing); 2 D V per token through the lm-head.
    """
    layers = c.layers * tokens * (2 * layer_weights(c) + 4 * c.heads * c.head_dim * keys)
    return layers + 2 * heads * c.hidden_size * c.vocab_size


def passes(c: ModelConfig) -> float:
    """An update in forward passes: forward, two backward, and again the part whose results are not kept."""
    wide = (3 if c.experts else 2) * c.hidden_size * mlp_width(c) / layer_weights(c)  # gate and up, or whole experts
    return 3 + {"none": 0.0, "dots": 0.0, "narrow": wide, "full": 1.0}[c.remat]


def prefix_flops(c: ModelConfig, s: Sizes) -> float:
    """Keys and values of the prefixes, before the first thought."""
    return forward(c, s.rows * s.prefix, s.prefix / 2, 0)


def thought_flops(c: ModelConfig, s: Sizes) -> float:
    """Every thought at full length, and the second questions."""
    thoughts = forward(c, s.branches * s.thought, s.prefix + s.thought / 2, s.branches * s.thought)
    return thoughts + forward(c, s.branches * (1 + s.question), s.prefix + s.thought, s.branches)


def update_flops(c: ModelConfig, s: Sizes, phases: int, adapters: float | None = None) -> float:
    """`phases` gradients: a forward pass, two backward passes and, by remat, the forward pass again.

    A pass computes each prefix once, and its branches beside it. With `adapters`, so many as `passed`, the weights are
    frozen, and one of the two backward passes, that to the weights, is made for the adapters alone.
    """
    branches = forward(c, s.branches * s.branch, s.prefix + s.branch / 2, s.branches * (s.thought + 1))
    whole = prefix_flops(c, s) + branches
    if adapters is None:
        return phases * passes(c) * whole
    beside = 2 * adapters * (s.rows * s.prefix + s.branches * s.branch)
    return phases * ((passes(c) - 1) * whole + passes(c) * beside)


def token_bytes(c: ModelConfig, share: Share) -> float:
    """Bytes of a token's keys and values in all layers on a device. In few bits each head has a float32 scale."""
    size = c.head_dim + 4 if share.cache else c.head_dim * jnp.dtype(c.dtype).itemsize
    return 2 * c.layers * c.kv_heads * copies_of_heads(c, share.tensor) / share.tensor * size


def region_bytes(c: ModelConfig, s: Sizes, share: Share) -> float:
    """Bytes of a device's keys and values at the end of sampling: prefixes, and branches at full length."""
    return share.rows / share.parts * (s.prefix + s.group * s.thought) * token_bytes(c, share)


def decode_weights(c: ModelConfig, share: Share) -> float:
    """Bytes of a device's copy of the weights in the layout for decoding, in which experts stay split.

    Matrices in few bits stay so, and a spread feed-forward is split once more.
    """
    quantised = c.quantised or share.weights
    size, leaves = jnp.dtype(c.dtype).itemsize, _weights(dataclasses.replace(c, remat="none", quantised=quantised))
    whole = sum(x.size * (x.dtype.itemsize if in_few_bits(path) else size) for path, x in leaves)
    elsewhere = size * expert_weights(c) * (1 - 1 / share.experts)
    matrix = 1 if share.weights else size
    elsewhere += matrix * feed_forward_weights(c) * (1 - 1 / share.spread)
    return on_device(c, whole - elsewhere, share.tensor, matrix)


def gathered_weights(c: ModelConfig, share: Share) -> float:
    """Bytes of all weights that a device holds, one layer after the other, in a pass over prefixes or an update."""
    return decode_weights(c, dataclasses.replace(share, spread=1, weights=""))


def prefix_reads(c: ModelConfig, s: Sizes, share: Share) -> float:
    """Fewest bytes that a device reads and writes before the first thought: weights, and activations once."""
    return share.parts * gathered_weights(c, share) + _activations(c, share.rows * s.prefix, share.tensor)


def thought_reads(c: ModelConfig, s: Sizes, share: Share) -> float:
    """Fewest bytes that a device reads in decoding.

    Every token reads all weights, and the keys and values so far: of the thoughts' own on average half.
    """
    regions = share.rows * (s.prefix + s.group * s.thought / 2) * token_bytes(c, share)
    return s.thought * (share.parts * decode_weights(c, share) + regions)


def update_reads(
    c: ModelConfig,
    s: Sizes,
    share: Share,
    phases: int,
    micro_batches: int,
    state: int,
    adapters: int | None = None,
) -> float:
    """Fewest bytes that a device reads and writes in an update.

    Every pass over a micro-batch reads the gathered weights, and activations once. The sum of gradients, in float32,
    is read and written. The optimizer reads and writes the `state` bytes of the training state. `adapters` is their
    number where weights are frozen.
    """
    activations = _activations(c, share.rows * (s.prefix + s.group * s.branch), share.tensor)
    trained = on_device(c, parameters(c), share.tensor) * share.tensor if adapters is None else adapters
    sums = 8 * trained / share.devices
    per_micro_batch = (passes(c) - (adapters is not None)) * gathered_weights(c, share) + sums
    return phases * (passes(c) * activations + micro_batches * per_micro_batch + 2 * state)


def _activations(c: ModelConfig, tokens: float, tensor: int) -> float:
    """Bytes of activations of all layers, written and read once: the input twice, the heads, the feed-forward."""
    split = (2 * c.heads + 2 * c.kv_heads * copies_of_heads(c, tensor)) * c.head_dim + 3 * mlp_width(c)
    return 2 * c.layers * tokens * (2 * c.hidden_size + split / tensor) * jnp.dtype(c.dtype).itemsize
