"""The work of a step: FLOPs, bytes of memory and bytes sent, and the shortest time that they allow."""

import dataclasses

import jax
from ml_collections import ConfigDict

from dwrl_jax.planning import chips, counts, memory
from dwrl_jax.planning.compiled import Program, shard_bytes
from dwrl_jax.training.programs import Recipe, abstract_state


def phases(chip: chips.Chip, config: ConfigDict, recipe: Recipe, programs: dict[str, Program]) -> dict[str, dict]:
    """FLOPs, bytes of memory and bytes sent by each device in each part of a step, and which of them is its bound."""
    shape, updates = recipe.judge.model.config, len(recipe.phases)
    sizes, share = memory.sizes(config, recipe), memory.share(config, recipe)
    updated = dataclasses.replace(sizes, group=sizes.group + recipe.thoughts.empty_thought)
    trained = abstract_state(recipe)
    state = shard_bytes(trained)
    adapters = sum(x.size for x in jax.tree.leaves(trained.params)) if recipe.lora else None
    passed = counts.passed(shape, trained.params) if recipe.lora else None
    update, sample = programs["update"].traffic, programs["sample"].traffic if "sample" in programs else None
    work = {
        "prefixes": (
            counts.prefix_flops(shape, sizes),
            counts.prefix_reads(shape, sizes, share),
            sample and sample.total(0),
        ),
        "thoughts": (
            counts.thought_flops(shape, sizes),
            counts.thought_reads(shape, sizes, share),
            sample and sample.total(sizes.thought) - sample.total(0),
        ),
        "update": (
            counts.update_flops(shape, updated, updates, passed),
            counts.update_reads(shape, updated, share, updates, recipe.micro_batches, state, adapters),
            update and update.total(0),
        ),
    }
    names = list(work) if recipe.thoughts.samples else ["update"]
    return {name: roofline(chip, work[name][0] / share.devices, *work[name][1:]) for name in names}


def roofline(chip: chips.Chip, flops: float, memory: float, sent: float | None) -> dict:
    """Compute, memory and links each need a time, and the longest of the three is the bound."""
    amounts = {"flops": flops, "memory_bytes": memory, "sent_bytes": sent}
    if chip.flops is None:
        return amounts | {"seconds": None, "bound": None}
    times = {
        "compute": flops / chip.flops,
        "memory": memory / chip.memory_speed,
        "links": (sent or 0) / chip.link_speed,
    }
    bound = max(times, key=times.get)
    return amounts | {"times": times, "seconds": times[bound], "bound": bound}
