"""Memory of each device while each program runs, and the largest sizes that fit."""

import math

from ml_collections import ConfigDict

from dwrl_jax.core import sharding
from dwrl_jax.models.experts import SPLIT
from dwrl_jax.planning import chips, counts
from dwrl_jax.planning.compiled import Program, shard_bytes
from dwrl_jax.training.programs import Recipe, abstract_start, abstract_state


def wanted(config: ConfigDict, recipe: Recipe) -> dict[str, tuple[str, int]]:
    """The programs to compile, by name: their kind and their number of pairs.

    "evaluation" is left out where it is the program that samples in training. "other" is a second update: it shows
    `largest` how memory grows.
    """
    pairs, evaluated = config.data.batch_size, config.eval.batch_size
    sampled = recipe.thoughts.sampler.group_size, pairs
    programs = {}
    if recipe.thoughts.samples:
        programs["sample"] = "sample", pairs
    if config.eval.pairs and not ("sample" in programs and sampled == (max(recipe.votes), evaluated)):
        programs["evaluation"] = "evaluation", evaluated
    return programs | {"update": ("update", pairs), "other": ("update", other_pairs(config, recipe))}


def at_once(config: ConfigDict, pairs: int) -> int:
    """How many of `pairs` pairs are sampled at a time."""
    return min(config.sampler.batch_size or pairs, pairs)


def unit(recipe: Recipe) -> int:
    """The smallest number of pairs whose rows can be shared out evenly over the devices."""
    parts = _row_parts(recipe)
    return parts // math.gcd(parts, 2)


def other_pairs(config: ConfigDict, recipe: Recipe) -> int:
    """Pairs of the second update: half as many, or twice as many where half cannot be shared out."""
    pairs = config.data.batch_size // recipe.micro_batches
    return recipe.micro_batches * (pairs // 2 if pairs % (2 * unit(recipe)) == 0 else 2 * pairs)


def sizes(config: ConfigDict, recipe: Recipe, name: str = "sample") -> counts.Sizes:
    """Sizes of a step, or of a batch of the "evaluation"."""
    pairs, group = _pairs(config, name), recipe.thoughts.sampler.group_size if recipe.thoughts.samples else 1
    if name == "evaluation":
        group = max(recipe.votes)
    return counts.Sizes(
        rows=2 * pairs,
        prefix=config.data.buckets[-1],
        group=0 if recipe.judge.has_value_head else group,
        thought=1 if recipe.thoughts.source == "none" else recipe.thoughts.sampler.max_thought,
        question=len(recipe.judge.question),
    )


def share(config: ConfigDict, recipe: Recipe, name: str = "sample") -> counts.Share:
    """A device's part of a step, or of a batch of the "evaluation"."""
    pairs = _pairs(config, name)
    return counts.Share(
        rows=2 * pairs // _row_parts(recipe),
        tensor=recipe.mesh.shape[sharding.TENSOR],
        devices=recipe.mesh.size,
        parts=pairs // at_once(config, pairs),
        experts=recipe.mesh.shape[SPLIT],
        spread=recipe.mesh.shape["fsdp"] if recipe.thoughts.sampler.spread else 1,
        cache=recipe.thoughts.sampler.cache,
        weights=recipe.thoughts.sampler.weights,
    )


def memory(config: ConfigDict, recipe: Recipe, programs: dict[str, Program]) -> dict[str, dict[str, int]]:
    """Bytes on each device while each program runs, by term. "temporaries" has all that is not counted from shapes.

    Parameters, optimizer and a kept starting model are in memory all the time: a run evaluates between its steps. With
    adapters the parameters are the frozen weights, which are the starting model too.
    """
    state = abstract_state(recipe)
    trained, optimizer = shard_bytes(state.params), shard_bytes(state.opt_state)
    parameters = shard_bytes(abstract_start(recipe)) if recipe.lora else trained
    kept = {"parameters": parameters, "optimizer": optimizer}
    if recipe.lora:
        kept["adapters"] = trained
    elif recipe.keeps_start:
        kept["starting_model"] = parameters
    terms = {}
    for name in (name for name in programs if name != "other"):
        counted = {}
        if decodes(recipe, name):
            part = share(config, recipe, name)
            counted["decode_weights"] = round(counts.decode_weights(recipe.judge.model.config, part))
            regions = counts.region_bytes(recipe.judge.model.config, sizes(config, recipe, name), part)
            counted["kv_regions"] = round(regions)
        models = 2 if recipe.thoughts.source == "start" and not recipe.lora else 1
        arguments = parameters + optimizer if name == "update" else models * parameters
        arguments += trained if recipe.lora else 0
        rest = programs[name].used - arguments - sum(counted.values())
        terms[name] = kept | counted | {"temporaries": rest}
    return terms


def largest(
    chip: chips.Chip, config: ConfigDict, recipe: Recipe, programs: dict[str, Program], total: dict[str, int]
) -> dict[str, int | None]:
    """Largest sizes that fit, in pairs, with memory taken as affine in rows.

    Two compiled updates give the largest micro-batch. A second sampler would take as long to compile as all the rest.
    So "batch_pairs" and "evaluation_pairs", the pairs sampled at a time, come from a single program each: only
    parameters, code and weights laid out for decoding count as fixed. The result is "at least" that many pairs where
    the plan's number fits, and "at most" that many where it does not.
    """
    room = {name: chip.memory - total[name] + programs[name].used for name in total}
    fitting = {}
    for name, key in (("sample", "batch_pairs"), ("evaluation", "evaluation_pairs")):
        if name not in programs:
            continue
        program, pairs = programs[name], _pairs(config, name)
        fixed = program.arguments + program.code
        if decodes(recipe, name):
            fixed += round(counts.decode_weights(recipe.judge.model.config, share(config, recipe, name)))
            pairs = at_once(config, pairs)
        fitting[key] = largest_size([(0, fixed), (pairs, program.used)], room[name], unit(recipe))
    pairs = config.data.batch_size, other_pairs(config, recipe)
    points = [(n // recipe.micro_batches, programs[name].used) for n, name in zip(pairs, ("update", "other"))]
    return fitting | {"micro_batch_pairs": largest_size(points, room["update"], unit(recipe))}


def largest_size(points: list[tuple[int, int]], room: int, unit: int) -> int | None:
    """The largest multiple of `unit` whose program needs at most `room` bytes, on the line through two (size, bytes).

    None where a larger size costs nothing.
    """
    (size, used), (other, others) = points
    slope = (used - others) / (size - other)
    if slope <= 0:
        return None
    return max(math.floor((size + (room - used) / slope) / unit) * unit, 0)


def _pairs(config: ConfigDict, name: str) -> int:
    return config.eval.batch_size if name == "evaluation" else config.data.batch_size


def decodes(recipe: Recipe, name: str) -> bool:
    """Whether a program writes thoughts. The evaluation of a judge without thoughts is teacher forcing."""
    return name == "sample" or (name == "evaluation" and recipe.thoughts.source != "none")


def _row_parts(recipe: Recipe) -> int:
    """Parts of a batch's rows that lie on different devices."""
    return math.prod(recipe.mesh.shape[axis] for axis in sharding.ROWS)
