"""Parameters as decoding reads them: each layer has arrays of its own, in the types that the loop over tokens reads."""

import dataclasses
import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from dwrl_jax.core import sharding
from dwrl_jax.models import quantised
from dwrl_jax.models.transformer import ModelConfig, axis_names


def merged(weights, changes):
    """Weights with the changes of adapters: matrix + left right, summed in float32, in the matrix's type."""

    def put(weight, change):
        sum_ = weight.astype(jnp.float32) + jnp.tensordot(change["left"], change["right"], 1)
        return sum_.astype(weight.dtype)

    def put_all(name, change):
        if name != "experts":
            return {"kernel": put(weights[name]["kernel"], change)}
        return {matrix: jax.vmap(put)(weights[name][matrix], pair) for matrix, pair in change.items()}

    return weights | {name: weights[name] | put_all(name, change) for name, change in changes.items()}


def in_few_bits(path) -> bool:
    """Whether a leaf of the tree of parameters is a part of a matrix that is kept in few bits."""
    return "kernel" in (entry.key for entry in path[:-1])


def unstack(params, config: ModelConfig):
    """Parameters for `scanned=False`: each layer has its own arrays, and matrices have the computation's dtype.

    A loop over tokens then reads each weight in place and does not copy it out of the stack at every turn. Adapters
    are merged into the matrices, one layer at a time, so that such a loop costs no more with them. Matrices in few bits
    stay so, and their adapters, whole on every device, stay beside them.
    """

    def cast(path, x):
        return x if path[-1].key == "scale" or in_few_bits(path) else x.astype(config.dtype)

    tree = dict(jax.tree_util.tree_map_with_path(cast, params["params"]))
    stacked, changes = tree.pop("layers"), params.get("lora", {}).get("layers", {})

    def layer(i):
        weights, change = jax.tree.map(operator.itemgetter(i), (stacked, changes))
        return (weights, change) if config.quantised else (merged(weights, change), {})

    layers = {f"layer_{i}": layer(i) for i in range(config.layers)}
    alone = {"params": tree | {name: weights for name, (weights, _) in layers.items()}}
    if config.quantised and changes:
        beside = {name: change for name, (_, change) in layers.items()}
        alone["lora"] = jax.tree.map(lambda x: sharding.constrain(x, *(None,) * x.ndim), beside)
    return alone


def matrices_in_few_bits(params, config: ModelConfig, kind: str):
    """`unstack`ed parameters with the matrices of all layers in few bits, and the config that reads them."""
    layers = {name for name in params["params"] if name.startswith("layer_")}
    boxes = axis_names(config)["params"]

    def part(name, parameters, boxes):
        if name != "kernel":
            return parameters
        return quantised.quantised(parameters, kind, boxes.names)

    def layer(parameters, boxes):
        return {
            module: {name: part(name, x, boxes[module][name]) for name, x in parameters[module].items()}
            for module in parameters
        }

    tree = {name: layer(x, boxes[name]) if name in layers else x for name, x in params["params"].items()}
    return {"params": tree}, dataclasses.replace(config, quantised=kind)


def within_loop(params, turn: Int[Array, ""]):
    """The parameters themselves, for the turn of a loop, counted from 0.

    Matrices in few bits depend on the turn, so that compilers do not restore those of all layers ahead of the loop.
    """

    def bound(path, x):
        codes = in_few_bits(path) and path[-1].key == "codes"
        return x ^ (turn < 0).astype(x.dtype) if codes else x  # never true, but only we know

    return jax.tree_util.tree_map_with_path(bound, params)
