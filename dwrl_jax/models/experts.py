"""A mixture of experts: each token's feed-forward is a weighted sum of a few of many small ones.

Letters: M tokens, D width, E experts, F width of an expert, A experts of a token. The tokens, once for each of their
experts, are sorted by expert, and one grouped product serves all experts. No token is dropped, however many choose the
same expert. On a mesh each device of the axis "fsdp" holds E / fsdp whole experts: it gathers the tokens of the axis,
computes its experts for them, and the results are summed and shared out again.

A matrix W [E, D, F] with an adapter (`lora`) is a triple (W, left [E, D, rank], right [E, rank, F]). Its product with a
row is x W + x left right, so neither the sum of the matrices nor the gradient of W is made.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from dwrl_jax.core import sharding
from dwrl_jax.models.parameters import partitioned

SPLIT = "fsdp"  # the mesh axis of experts
BLOCK = 64  # largest number of rows of a block on a CPU


class Experts(nn.Module):
    """sum_a p_a down_a(silu(gate_a(x)) up_a(x)) over a token's A most probable experts, p = softmax(router(x)).

    `counted` are the tokens of the load-balance loss, of which the config's `balance` is the weight.
    """

    config: object  # a ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "M D"], counted: Bool[Array, " M"]) -> Float[Array, "M D"]:
        c = self.config
        E, D, F = c.experts, c.hidden_size, c.expert_size

        def weight(name, shape, *axes):
            return self.param(name, partitioned(*axes), shape, jnp.dtype(c.param_dtype)).astype(c.dtype)

        def matrix(name, shape, *axes):
            plain, adapter = weight(name, shape, *axes), self.get_variable("lora", name)
            return plain if adapter is None else (plain, *(adapter[side].astype(c.dtype) for side in ("left", "right")))

        router = weight("router", (D, E), "router_embed", None)
        gate, up = (matrix(name, (E, D, F), "expert", None, "mlp") for name in ("gate", "up"))
        down = matrix("down", (E, F, D), "expert", "mlp", None)
        weights, chosen, probabilities = route(x, router, c.experts_per_token, c.norm_experts)
        mesh, run = sharding.set_mesh(), mixed
        if mesh is not None:
            rows = PartitionSpec(sharding.ROWS)
            specs = rows, rows, rows, _places(gate, 1), _places(up, 1), _places(down, 0)
            spread = functools.partial(mixed, spread=True)
            run = jax.shard_map(spread, in_specs=specs, out_specs=rows, check_vma=False)
        out = run(x, weights, chosen, gate, up, down)
        return with_loss(out, c.balance / c.layers * imbalance(probabilities, chosen, counted)) if c.balance else out


def imbalance(
    probabilities: Float[Array, "M E"], chosen: Int[Array, "M A"], counted: Bool[Array, " M"]
) -> Float[Array, ""]:
    """E sum_e f_e P_e: f_e is the mean number of times that a token chooses e, P_e e's mean probability.

    It is A where all experts have the same load (Switch Transformer, arXiv 2101.03961, Eq. 4 to 6). Tokens that are
    not `counted` have no part in the means.
    """
    E = probabilities.shape[1]
    share = counted / jnp.maximum(counted.sum(), 1)
    times = jnp.zeros(E).at[chosen].add(jnp.broadcast_to(share[:, None], chosen.shape))
    return E * (times * (share @ probabilities)).sum()


@jax.custom_vjp
def with_loss(x: Array, loss: Float[Array, ""]) -> Array:
    """`x` itself. The gradient of anything that is computed from it has the gradient of `loss` added (DeepSeek-V2)."""
    return x


with_loss.defvjp(lambda x, loss: (x, None), lambda _, d_x: (d_x, jnp.float32(1.0)))


def route(
    x: Float[Array, "M D"], router: Float[Array, "D E"], chosen_each: int, normalised: bool
) -> tuple[Float[Array, "M A"], Int[Array, "M A"], Float[Array, "M E"]]:
    """The weights and numbers of each token's experts, and all probabilities. The weights sum to 1 if `normalised`."""
    probabilities = jax.nn.softmax(jnp.matmul(x, router, preferred_element_type=jnp.float32), -1)
    weights, chosen = jax.lax.top_k(probabilities, chosen_each)
    return weights / weights.sum(-1, keepdims=True) if normalised else weights, chosen, probabilities


def mixed(x, weights, chosen, gate, up, down, *, spread: bool = False):
    """The weighted sum of each token's `chosen` experts, on a mesh if `spread`."""
    held = len(jax.tree.leaves(gate)[0])
    if spread:
        x, weights, chosen = (jax.lax.all_gather(a, SPLIT, tiled=True) for a in (x, weights, chosen))
        chosen = chosen - jax.lax.axis_index(SPLIT) * held
    # rows of experts on other devices stand behind all others
    here = jnp.where((chosen >= 0) & (chosen < held), chosen, held).reshape(-1)
    order = jnp.argsort(here, stable=True)
    sizes = jnp.bincount(here, length=held + 1)[:-1].astype(jnp.int32)
    token = order // chosen.shape[1]
    rows = x[token]
    inner = nn.silu(_product(rows, gate, sizes)) * _product(rows, up, sizes)
    outputs = _product(inner, down, sizes).astype(jnp.float32) * weights.reshape(-1)[order, None]
    total = jnp.zeros(x.shape, jnp.float32).at[token].add(outputs)
    if spread:
        total = jax.lax.psum_scatter(jax.lax.psum(total, sharding.TENSOR), SPLIT, tiled=True)
    return total.astype(x.dtype)


def _places(matrix, split: int):
    """Where a matrix, with or without an adapter, lies on a mesh. Its inputs (0) or its outputs (1) are split."""
    experts = PartitionSpec(SPLIT)
    inputs, outputs = PartitionSpec(SPLIT, sharding.TENSOR), PartitionSpec(SPLIT, None, sharding.TENSOR)
    whole, left, right = (outputs, experts, outputs) if split else (inputs, inputs, experts)
    return (whole, left, right) if isinstance(matrix, tuple) else whole


def _product(rows, matrix, sizes):
    if not isinstance(matrix, tuple):
        return grouped(rows, matrix, sizes)
    plain, left, right = matrix
    return grouped(rows, plain, sizes) + grouped(grouped(rows, left, sizes), right, sizes)


@jax.custom_vjp
def grouped(rows: Float[Array, "R D"], weights: Float[Array, "E D F"], sizes: Int[Array, " E"]) -> Float[Array, "R F"]:
    """rows_e weights_e for each expert e, whose `sizes[e]` rows stand behind those of the experts before it.

    Rows behind the last expert's give zero. Accelerators use `jax.lax.ragged_dot`. On CPUs that is a product of all
    rows with all experts, so blocks of rows of a single expert are multiplied one after another.
    """
    return _grouped_forward(rows, weights, sizes)[0]


def _grouped_forward(rows, weights, sizes):
    product = jax.lax.platform_dependent(rows, weights, sizes, cpu=_in_blocks, default=jax.lax.ragged_dot)
    return _inside(product, sizes), (rows, weights, sizes)


def _grouped_backward(kept, d_product):
    rows, weights, sizes = kept
    d_product = _inside(d_product, sizes)

    def by_ragged_dot(rows, weights, sizes, d_product):
        return jax.vjp(lambda r, w: jax.lax.ragged_dot(r, w, sizes), rows, weights)[1](d_product)

    d_rows, d_weights = jax.lax.platform_dependent(
        rows, weights, sizes, d_product, cpu=_gradient_in_blocks, default=by_ragged_dot
    )
    return _inside(d_rows, sizes), d_weights, None


grouped.defvjp(_grouped_forward, _grouped_backward)


def _inside(x: Float[Array, "R F"], sizes: Int[Array, " E"]) -> Float[Array, "R F"]:
    return jnp.where((jnp.arange(len(x)) < sizes.sum())[:, None], x, 0)


def _in_blocks(rows, weights, sizes, transposed: bool = False):
    """`grouped` in blocks. A block that is not full spills into rows that a later block writes, or behind the end."""
    size, count, place = _blocks(len(rows), sizes)
    padded = jnp.pad(rows, ((0, size), (0, 0)))

    def one(i, out):
        expert, start, _ = place(i)
        weight = weights[expert].T if transposed else weights[expert]
        block = jax.lax.dynamic_slice_in_dim(padded, start, size)
        return jax.lax.dynamic_update_slice_in_dim(out, block @ weight, start, 0)

    out = jnp.zeros((len(padded), weights.shape[1 if transposed else 2]), rows.dtype)
    return jax.lax.fori_loop(0, count, one, out)[: len(rows)]


def _gradient_in_blocks(rows, weights, sizes, d_product):
    size, count, place = _blocks(len(rows), sizes)
    padded, d_padded = (jnp.pad(x, ((0, size), (0, 0))) for x in (rows, d_product))

    def one(i, d_weights):
        expert, start, filled = place(i)
        block, d_block = (jax.lax.dynamic_slice_in_dim(x, start, size) for x in (padded, d_padded))
        block = jnp.where((jnp.arange(size) < filled)[:, None], block, 0)
        return d_weights.at[expert].add(block.T @ d_block)

    d_weights = jax.lax.fori_loop(0, count, one, jnp.zeros_like(weights))
    return _in_blocks(d_product, weights, sizes, transposed=True), d_weights


def _blocks(rows: int, sizes: Int[Array, " E"]):
    """The size of blocks, their number, and a function from a block to its expert, first row and number of rows."""
    size = min(BLOCK, max(8, rows // len(sizes)))
    first_row, blocks = jnp.cumsum(sizes) - sizes, -(-sizes // size)
    ends = jnp.cumsum(blocks)

    def place(i):
        expert = jnp.searchsorted(ends, i, side="right")
        before = (i - (ends[expert] - blocks[expert])) * size
        return expert, first_row[expert] + before, sizes[expert] - before

    return size, ends[-1], place
