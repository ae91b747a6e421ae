"""The plan of a run: its programs, compiled for devices that need not be there, beside a chip's published figures.

No weights are read and nothing is downloaded.
"""

import dataclasses

import jax
from ml_collections import ConfigDict

from dwrl_jax.planning import chips, memory, work
from dwrl_jax.planning.compiled import Program, compile_all
from dwrl_jax.planning.model import model_of
from dwrl_jax.training import assemble as build
from dwrl_jax.training.config import check


def make_plan(config: ConfigDict, topology: str, say=lambda text: None) -> dict:
    """The plan of a run, as --json writes it. Bytes are those of one device.

    `say` takes lines about progress. UserError for an impossible config or topology.
    """
    check(config)
    if topology != "gpu":
        jax.config.update("jax_platforms", "cpu")  # an attached TPU may be busy, and libtpu without one complains
    chip, devices = chips.topology(topology)
    shape, tokens, assumed = model_of(config, topology)
    recipe = build.recipe(config, shape, *tokens, devices)
    programs = compile_all(recipe, config.data.buckets[-1], memory.wanted(config, recipe), say)
    needed = memory.memory(config, recipe, programs)
    total = {name: sum(terms.values()) for name, terms in needed.items()}
    phases = work.phases(chip, config, recipe, programs)
    evaluation = None
    if config.eval.pairs:
        pairs = config.eval.batch_size
        at_once = pairs if recipe.thoughts.source == "none" else memory.at_once(config, pairs)
        evaluation = {"pairs": pairs, "pairs_at_once": at_once, "votes": max(recipe.votes)}
    return {
        "fits": max(total.values()) <= chip.memory,
        "hbm_bytes": chip.memory,
        "per_device": needed | {"total": max(total.values())},
        "programs": {name: _described(programs[name]) | {"total_bytes": total[name]} for name in needed},
        "phases": phases,
        "step_flops": sum(phase["flops"] for phase in phases.values()) * len(devices),
        "step_seconds": sum(phase["seconds"] for phase in phases.values()) if chip.flops else None,
        "largest": memory.largest(chip, config, recipe, programs, total),
        "topology": topology,
        "chip": dataclasses.asdict(chip),
        "devices": len(devices),
        "mesh": dict(recipe.mesh.shape),
        "pairs": config.data.batch_size,
        "micro_batches": recipe.micro_batches,
        "pairs_sampled_at_once": memory.at_once(config, config.data.batch_size),
        "evaluation": evaluation,
        "assumed": assumed,
    }


def _described(program: Program) -> dict:
    traffic = program.traffic
    return {
        "compile_seconds": round(program.seconds, 1),
        "refused": traffic is None,
        "argument_bytes": program.arguments,
        "temporary_bytes": program.temporaries,
        "alias_bytes": program.alias,
        "collective_bytes": traffic and traffic.once,
        "collective_bytes_per_token": traffic and traffic.turn,
    }
