"""Low-rank adapters beside frozen weights (LoRA, arXiv 2106.09685): W + scale * A B.

An adapter is a pair of arrays {"left", "right"} for a matrix of the decoder, in our order of the matrix's axes: left
[L, inputs..., rank] and right [L, rank, outputs...] in the L layers; those of E experts are left [L, E, D, rank] and
right [L, E, rank, F]. All adapters are a Flax collection of their own,
beside "params", so that every pass of the decoder takes both alike. A pass over many tokens computes x A B beside x W:
it makes neither a second copy of W nor W's gradient. The sampler merges once for each batch (`unstacked.unstack`).
The tables, [V, D], are merged at each pass: left [V, rank], right [rank, D].

Frozen weights may be kept in few bits (`quantised`).

Why not qwix: its provider rewrites the layers of a model when they are called, and the frozen copy, the merging for the
sampler, the export to PEFT and the sharding would still have to be written here.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from dwrl_jax.core.errors import UserError
from dwrl_jax.models import unstacked
from dwrl_jax.models.hf.table import Weight, weight_table
from dwrl_jax.models.settings import LoraSettings
from dwrl_jax.models.transformer import ModelConfig, axis_names

GROUPS = {"attention": ("q_proj", "k_proj", "v_proj", "o_proj"), "feed_forward": ("gate_proj", "up_proj", "down_proj")}
EXPERTS = "experts"
TABLES = ("embed_tokens", "lm_head")


def module_of(weight: Weight) -> str:
    """The last word of a matrix's name in transformers, such as q_proj."""
    return weight.key.split(".")[-2]


def chosen(config: ModelConfig, targets: tuple[str, ...]) -> list[Weight]:
    """The matrices that the targets name, in the order of `weight_table`. UserError for a target without a matrix."""
    known = (*GROUPS, EXPERTS, *sum(GROUPS.values(), ()), *TABLES)
    named = [(weight, _targets_of(weight)) for weight in weight_table(config)]
    for target in targets:
        if target not in known:
            raise UserError(f"lora.targets: {target!r} is no target; choose of {', '.join(known)}")
        if not any(target in names for _, names in named):
            why = ""
            if target == "lm_head" and config.tied:
                why = ", whose head is its embedding: give embed_tokens"
            elif config.experts and target in ("feed_forward", *GROUPS["feed_forward"]):
                why = ", whose feed-forward is a mixture of experts: give experts"
            raise UserError(f"lora.targets: {target!r} matches no matrix of this model that takes an adapter{why}")
    return [weight for weight, names in named if names.intersection(targets)]


def _targets_of(weight: Weight) -> set[str]:
    """The targets that name a parameter: none for one that is no matrix, or a value head, which is trained whole."""
    if len(weight.groups) != 2 or weight.path == ("value_head",):
        return set()
    if weight.by_expert:
        return {EXPERTS}
    module = module_of(weight)
    return {module, *(group for group, modules in GROUPS.items() if module in modules)}


def check(config: ModelConfig, settings: LoraSettings) -> None:
    """UserError for targets without a matrix, and for a dropout that adapters of experts do not have."""
    matrices = chosen(config, settings.targets)
    if settings.dropout and any(weight.by_expert for weight in matrices):
        raise UserError(f"lora.dropout={settings.dropout}: adapters of experts have none; leave it at 0")


def adapter_axes(config: ModelConfig, settings: LoraSettings):
    """Shapes of all adapters, float32. Each carries the logical names of its axes, as those of `axis_names` do."""
    tree, boxes = {}, axis_names(dataclasses.replace(config, quantised=""))["params"]
    for weight in chosen(config, settings.targets):
        box = boxes
        for name in weight.path:
            box = box[name]
        copies = weight.stacked + weight.by_expert
        inputs = copies + (len(weight.groups[1]) if weight.stacked else 1)
        left = (*box.value.shape[:inputs], settings.rank), (*box.names[:inputs], "rank")
        right = (
            (*box.value.shape[:copies], settings.rank, *box.value.shape[inputs:]),
            (*box.names[:copies], "rank", *box.names[inputs:]),
        )
        pair = {"left": left, "right": right}
        _put(
            tree,
            weight.module,
            {
                name: nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)
                for name, (shape, names) in pair.items()
            },
        )
    return tree


def _put(tree: dict, path: tuple[str, ...], value) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def fresh(config: ModelConfig, settings: LoraSettings, seed: int):
    """Adapters that change nothing yet: A uniform within 1 / sqrt(inputs) as in PEFT, B zero.

    Those of a table [V, D] have B on the left, so that the random part has as many inputs as the model is wide.
    """
    shapes = nn.meta.unbox(adapter_axes(config, settings))
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)

    def draw(number, path, leaf):
        table = path[0].key != "layers"
        if (path[-1].key == "right") != table:
            return jnp.zeros(leaf.shape, leaf.dtype)
        copies = 2 if path[1].key == EXPERTS else 1
        inputs = leaf.shape[1] if table else math.prod(leaf.shape[copies:-1])
        key = jax.random.fold_in(jax.random.key(seed), number)
        return jax.random.uniform(key, leaf.shape, leaf.dtype, -1, 1) / inputs**0.5

    return tree.unflatten([draw(number, *leaf) for number, leaf in enumerate(leaves)])


def trained_axes(config: ModelConfig, settings: LoraSettings):
    """What a run with adapters trains, as boxes: the adapters, and a value head if there is one."""
    boxed = {"lora": adapter_axes(config, settings)}
    if config.value_head:
        box = axis_names(config)["params"]["value_head"]
        boxed["params"] = {"value_head": box.replace_boxed(jax.ShapeDtypeStruct(box.value.shape, jnp.float32))}
    return boxed


def begun(start, config: ModelConfig, settings: LoraSettings, seed: int):
    """What is trained, at the beginning: the adapters of `start` or fresh ones, and the value head of `start`."""
    trained = {"lora": start["lora"] if "lora" in start else fresh(config, settings, seed)}
    if config.value_head:
        trained["params"] = {"value_head": start["params"]["value_head"].astype(jnp.float32)}
    return jax.tree.map(jnp.copy, trained)


def variables(settings: LoraSettings | None, start, trained, key=None):
    """The variables of a pass: the weights of `start` with what is trained. `key` turns dropout on.

    `trained` may be `start` itself, the model that a run begins with. Without settings they are `trained`.
    """
    if settings is None:
        return trained
    params = start["params"] | trained.get("params", {})
    if "lora" not in trained:
        return {"params": params}
    scaled = jax.tree_util.tree_map_with_path(
        lambda path, x: x * settings.scale if path[-1].key == "right" else x, trained["lora"]
    )
    changes = scaled.pop("layers", {})
    for name, change in scaled.items():
        delta = change["left"] @ change["right"]
        table = params[name]
        params |= {name: {"embedding": table["embedding"] + delta} if name == "embed" else table + delta}
    if key is not None and settings.dropout:
        changes = _with_dropout(changes, settings.dropout, key)
    return {"params": params, "lora": {"layers": changes}}


def _with_dropout(changes, dropout: float, key):
    layers = len(jax.tree.leaves(changes)[0]) if changes else 0
    return {
        name: change
        | {
            "key": jax.random.split(jax.random.fold_in(key, number), layers),
            "dropout": jnp.full(layers, dropout),
        }
        for number, (name, change) in enumerate(sorted(changes.items()))
    }


def merged(tree):
    """Parameters {"params": ...} with all changes in their matrices, summed in float32, in the matrices' types."""
    params, changes = tree["params"], tree.get("lora", {}).get("layers", {})
    return {"params": params | {"layers": jax.vmap(unstacked.merged)(params["layers"], changes)}}
