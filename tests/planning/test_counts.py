"""Counts of a plan: parameters, FLOPs and bytes are those of the arrays and of the traced programs."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwrl_jax.core import sharding
from dwrl_jax.judge.judge import logps
from dwrl_jax.models.attention import few_bits
from dwrl_jax.models.families import model_config
from dwrl_jax.models.families.presets import published
from dwrl_jax.models.transformer import REMAT_POLICIES, Decoder, axis_names
from dwrl_jax.models.unstacked import matrices_in_few_bits, unstack
from dwrl_jax.planning import counts
from tests.planning.recipes import make_recipe
from tests.small import given_thoughts, make_batch


@pytest.mark.parametrize(
    "hub_id, parameters",
    [
        ("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
    ],
)
def test_published_shapes_have_the_published_numbers_of_parameters(hub_id, parameters):
    assert counts.parameters(model_config(published(hub_id))) == parameters


def product_flops(jaxpr) -> int:
    """FLOPs of all matrix products of a traced function, loops by their turns."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * int(np.prod([shape[i] for i in contracted]))
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            total += times * product_flops(inner) if hasattr(inner, "eqns") else 0
    return total


def test_flops_of_a_pass_are_those_of_its_products():
    """All scores are made here, also masked ones: so each token sees as many keys as its row has."""
    recipe = make_recipe(chunk=33, question=(3, 4, 5))
    shape, batch = recipe.judge.model.config, make_batch(pairs=3, length=12)
    sizes = counts.Sizes(rows=6, prefix=12, group=2, thought=11, question=3)
    thoughts = given_thoughts(np.ones((3, 2, 2, 11)), np.full((3, 2, 2), 11))
    params = nn.meta.unbox(axis_names(shape))
    traced = jax.make_jaxpr(lambda params: logps(recipe.judge, params, batch, thoughts).thought.sum())(params)
    prefixes = counts.forward(shape, 6 * 12, 12, 0)
    branches = counts.forward(shape, 12 * sizes.branch, 12 + sizes.branch, 12 * (11 + 1))
    assert product_flops(traced.jaxpr) == prefixes + branches
    halved = counts.update_flops(shape, sizes, phases=1) / 3
    assert 0.9 < halved / (prefixes + branches) < 1, "the masked half is not counted"


def test_remat_makes_again_what_it_says():
    """By products of one layer's gradient: "dots" makes attention again, "narrow" gate and up too, "full" all."""
    shape = dataclasses.replace(make_recipe().judge.model.config, layers=1)
    tokens = jnp.ones((2, 1, 12), jnp.int32)
    params = nn.meta.unbox(axis_names(shape))

    def flops(remat):
        model = Decoder(dataclasses.replace(shape, remat=remat))
        return product_flops(jax.make_jaxpr(jax.grad(lambda p: model.apply(p, tokens, tokens)[0].sum()))(params).jaxpr)

    once = {remat: flops(remat) for remat in REMAT_POLICIES}
    token = 2 * 24  # FLOPs of a weight over all tokens
    wide, whole = 2 * shape.hidden_size * shape.mlp_size, counts.layer_weights(shape)
    assert once["narrow"] - once["dots"] == token * wide
    assert once["full"] - once["narrow"] == token * (whole - wide - shape.mlp_size * shape.hidden_size)
    assert 0 < once["dots"] - once["none"] <= 24 * 4 * shape.heads * shape.head_dim * 12, "attention"
    shares = [counts.passes(dataclasses.replace(shape, remat=remat)) - 3 for remat in ("dots", "narrow", "full")]
    assert shares == pytest.approx([0, wide / whole, 1]), "all of a layer, though its last product is not made again"


@pytest.mark.parametrize(("cache", "weights"), [("", ""), ("int8", ""), ("float8", "int8")])
def test_bytes_in_decoding_are_those_of_the_arrays(cache, weights):
    """Keys and values of a token, and the weights as the sampler lays them out; a scale of a head or output each."""
    shape = dataclasses.replace(make_recipe().judge.model.config, dtype="bfloat16")
    share = counts.Share(rows=1, tensor=1, devices=1, cache=cache, weights=weights)
    key = jax.ShapeDtypeStruct((1, 1, shape.kv_heads, shape.head_dim, 1), jnp.bfloat16)
    keys = jax.eval_shape(lambda x: few_bits.encode(x, cache, 3) if cache else x, key)
    assert counts.token_bytes(shape, share) == 2 * shape.layers * nbytes(keys)
    alone = dataclasses.replace(shape, scanned=False)

    def laid_out(params):
        params = unstack(params, alone)
        return matrices_in_few_bits(params, alone, weights)[0] if weights else params

    arrays = jax.eval_shape(laid_out, nn.meta.unbox(axis_names(shape)))
    norms = 2 * sum(x.size for path, x in jax.tree_util.tree_leaves_with_path(arrays) if path[-1].key == "scale")
    assert counts.decode_weights(shape, share) == nbytes(arrays) - norms, "norms are float32, and counted in bfloat16"


def nbytes(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_weights_of_a_device_where_heads_have_copies(tensor):
    shape = make_recipe().judge.model.config
    boxed = axis_names(shape)
    places = sharding.shardings(jax.sharding.AbstractMesh((1, 1, tensor), sharding.AXES), boxed)
    parts = jax.tree.map(lambda x, place: int(np.prod(place.shard_shape(x.shape))), nn.meta.unbox(boxed), places)
    leaves = jax.tree_util.tree_leaves_with_path(parts)
    small = sum(size for path, size in leaves if path[-1].key in ("scale", "bias"))
    matrices = sum(size for path, size in leaves) - small
    assert counts.copies_of_heads(shape, tensor) == (2 if tensor == 4 else 1), "two key/value heads"
    assert matrices <= counts.on_device(shape, counts.parameters(shape), tensor) <= matrices + small
