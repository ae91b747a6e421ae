"""What a run would need: python -m dwrl_jax.plan --config=configs/qwen7b.py --topology=v5e:8x8 [--json=FILE]

Compiles the run's own sampling and update programs for devices that need not be there, and sets memory, work and
traffic against the chip's published figures. Reads no weights and downloads nothing. Exit code 0: it fits, 1: it
does not, 2: bad input.
"""

import concurrent.futures
import dataclasses
import math
import os
import sys
from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

from dwrl_jax.core import files, sharding
from dwrl_jax.core.errors import UserError, exit_cleanly
from dwrl_jax.judge.judge import question_kind
from dwrl_jax.models.families import NUMERICS, model_config, read_config, with_value_head
from dwrl_jax.models.families.presets import published
from dwrl_jax.models.transformer import ModelConfig
from dwrl_jax.planning import chips, counts
from dwrl_jax.planning.compiled import Program, compile_program, shard_bytes
from dwrl_jax.planning.text import table
from dwrl_jax.settings import config as configuration
from dwrl_jax.settings.commandline import parse_flags
from dwrl_jax.training import assemble as build
from dwrl_jax.training import sources
from dwrl_jax.training.programs import Recipe, abstract_state

QUESTION = 24  # tokens of the second question where no tokenizer is at hand: about those of our default questions


@exit_cleanly
def main() -> None:
    logging.set_verbosity(logging.ERROR)
    config, flags = parse_flags(None, {"topology": "v5e:8x8"}, ("json",))
    if flags["json"] and not Path(flags["json"]).parent.is_dir():
        raise UserError(f"--json={flags['json']}: its folder is not there; make it first")
    plan = make_plan(config, flags["topology"], lambda text: print(text, file=sys.stderr, flush=True))
    print(table(plan))
    if flags["json"]:
        files.write_json(Path(flags["json"]), plan, indent=1)
    sys.exit(0 if plan["fits"] else 1)


def make_plan(config: ConfigDict, topology: str, say=lambda text: None) -> dict:
    """The plan of a run, as --json writes it. Bytes are those of one device.

    `say` hears of progress. UserError for a config or a topology that cannot be.
    """
    configuration.check(config)
    if topology != "gpu":
        jax.config.update("jax_platforms", "cpu")  # an attached TPU may be busy, and libtpu without one complains
    chip, devices = chips.topology(topology)
    shape, tokens, assumed = _model(config, topology)
    recipe = build.recipe(config, shape, *tokens, devices)
    programs = _compile_all(recipe, config, say)
    memory = _memory(config, recipe, programs)
    total = {name: sum(terms.values()) for name, terms in memory.items()}
    phases = _phases(chip, config, recipe, programs)
    return {
        "fits": max(total.values()) <= chip.memory,
        "hbm_bytes": chip.memory,
        "per_device": memory | {"total": max(total.values())},
        "programs": {name: _described(programs[name]) | {"total_bytes": total[name]} for name in memory},
        "phases": phases,
        "step_flops": sum(phase["flops"] for phase in phases.values()) * len(devices),
        "step_seconds": sum(phase["seconds"] for phase in phases.values()) if chip.flops else None,
        "largest": _largest(chip, config, recipe, programs, total),
        "topology": topology,
        "chip": dataclasses.asdict(chip),
        "devices": len(devices),
        "mesh": dict(recipe.mesh.shape),
        "pairs": config.data.batch_size,
        "micro_batches": recipe.micro_batches,
        "pairs_sampled_at_once": _at_once(config),
        "assumed": assumed,
    }


def _model(config: ConfigDict, topology: str) -> tuple[ModelConfig, tuple, list[str]]:
    """The model's shape; the ids of the second question, both answers and padding; and what had to be assumed."""
    kind = build.judge_kind(config)
    hf_config, tokenizer, assumed = _architecture(config)
    if outputs := build.value_outputs(config):
        hf_config = with_value_head(hf_config, 0, outputs)
    numerics = {name: config.model[name] for name in NUMERICS}
    if numerics["attention"] == "auto" and topology.partition(":")[0] in chips.TPUS:
        numerics["attention"] = "splash"  # what "auto" is where a TPU is attached
    shape = model_config(hf_config, **numerics)
    if tokenizer is None:
        answers = tuple(range(1, 1 + len(config.dialogue.scores))) if kind == "score" else (1, 2)
        return shape, (tuple(range(QUESTION)), answers, 0), [*assumed, f"the second question has {QUESTION} tokens"]
    talk = sources.make_talk(config, tokenizer, question_kind(kind))
    build.check_lengths(config, shape, talk)
    return shape, (talk.question_ids, talk.answer_ids, talk.pad_id), assumed


def _architecture(config: ConfigDict):
    """config.json, the tokenizer where it is on this machine, and what had to be assumed."""
    if config.model.path:
        folder = Path(config.model.path).expanduser()
        local = folder.is_dir()
        hf_config = read_config(folder) if local else published(config.model.path)
        tokenizer = Path(config.model.tokenizer or folder).expanduser()
        found = (tokenizer / "tokenizer.json").is_file()
        assumed = [] if local else [f"{config.model.path} has the shape published for it (models/families/presets.py)"]
        return hf_config, build.load_tokenizer(config, folder) if found else None, assumed
    if config.base is not None:
        return _architecture(config.base)
    tokenizer = build.load_tokenizer(config, Path())
    return build.small_config(config, tokenizer), tokenizer, []


def _at_once(config: ConfigDict) -> int:
    """Pairs that are sampled at a time."""
    return min(config.sampler.batch_size or config.data.batch_size, config.data.batch_size)


def _unit(recipe: Recipe) -> int:
    """Pairs that give each device one row, or the fewest that rows can be shared out of."""
    parts = math.prod(recipe.mesh.shape[axis] for axis in sharding.ROWS)
    return parts // math.gcd(parts, 2)


def _other(config: ConfigDict, recipe: Recipe) -> int:
    """Pairs of another update, half or twice as large, that shows how memory grows with a micro-batch's rows."""
    pairs = config.data.batch_size // recipe.micro_batches
    return recipe.micro_batches * (pairs // 2 if pairs % (2 * _unit(recipe)) == 0 else 2 * pairs)


def _compile_all(recipe: Recipe, config: ConfigDict, say) -> dict[str, Program]:
    """All programs, as many at a time as there are processors: a compiler uses one. "other" is an update too."""
    length, pairs = config.data.buckets[-1], config.data.batch_size
    wanted = {"sample": ("sample", pairs), "update": ("update", pairs), "other": ("update", _other(config, recipe))}
    if not recipe.thoughts.samples:
        del wanted["sample"]

    def one(name, pairs):
        program = compile_program(recipe, name, length, pairs)
        fate = "" if program.traffic else ": the compiler found no room"
        say(f"compiled {name} of {pairs} pairs in {program.seconds:.0f} s{fate}")
        return program

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {name: pool.submit(one, *what) for name, what in wanted.items()}
        return {name: job.result() for name, job in jobs.items()}


def _largest(chip: chips.Chip, config: ConfigDict, recipe: Recipe, programs, total) -> dict[str, int | None]:
    """Largest sizes that fit, in pairs, with memory taken as affine in rows.

    Of a micro-batch from two compiled updates. Compiling a second sampler would take as long as all the rest, so
    of a batch by counting as fixed no more than parameters, code and weights laid out for decoding: at least that
    many pairs where the plan's own fit, at most that many where they do not.
    """
    found, room = {}, {name: chip.memory - total[name] + programs[name].used for name in total}
    if "sample" in programs:
        program, (_, share) = programs["sample"], _share(config, recipe)
        fixed = program.arguments + program.code + round(counts.decode_weights(recipe.judge.model.config, share))
        points = [(0, fixed), (_at_once(config), program.used)]
        found["batch_pairs"] = largest_size(points, room["sample"], _unit(recipe))
    pairs = config.data.batch_size, _other(config, recipe)
    points = [(n // recipe.micro_batches, programs[name].used) for n, name in zip(pairs, ("update", "other"))]
    return found | {"micro_batch_pairs": largest_size(points, room["update"], _unit(recipe))}


def largest_size(points: list[tuple[int, int]], room: int, unit: int) -> int | None:
    """The largest size, a multiple of `unit`, whose program needs at most `room` bytes; None where size costs nothing.

    From two (size, bytes), on the line through them.
    """
    (size, used), (other, others) = points
    slope = (used - others) / (size - other)
    if slope <= 0:
        return None
    return max(math.floor((size + (room - used) / slope) / unit) * unit, 0)


def _share(config: ConfigDict, recipe: Recipe) -> tuple[counts.Sizes, counts.Share]:
    options, mesh = recipe.thoughts.sampler, recipe.mesh
    rows = 2 * config.data.batch_size
    group = options.group_size if recipe.thoughts.samples else 1
    sizes = counts.Sizes(
        rows=rows,
        prefix=config.data.buckets[-1],
        group=0 if recipe.judge.has_value_head else group,
        thought=1 if recipe.thoughts.source == "none" else options.max_thought,
        question=len(recipe.judge.question),
    )
    parts = math.prod(mesh.shape[axis] for axis in sharding.ROWS)
    return sizes, counts.Share(
        rows=rows // parts,
        tensor=mesh.shape[sharding.TENSOR],
        devices=mesh.size,
        parts=config.data.batch_size // _at_once(config),
    )


def _memory(config: ConfigDict, recipe: Recipe, programs: dict[str, Program]) -> dict[str, dict[str, int]]:
    """Bytes on each device while each program runs, by term. What is not counted from shapes is left to temporaries."""
    shape, state = recipe.judge.model.config, abstract_state(recipe)
    sizes, share = _share(config, recipe)
    kept = {"parameters": shard_bytes(state.params), "optimizer": shard_bytes(state.opt_state)}
    names = ("sample", "update") if "sample" in programs else ("update",)
    found = {name: dict(kept) for name in names}
    if recipe.keeps_start:
        for terms in found.values():
            terms["starting_model"] = kept["parameters"]
    if "sample" in programs:
        own = {
            "decode_weights": round(counts.decode_weights(shape, share)),
            "kv_regions": round(counts.region_bytes(shape, sizes, share)),
        }
        models = 2 if recipe.thoughts.source == "start" else 1  # among the program's arguments
        rest = programs["sample"].used - models * kept["parameters"] - sum(own.values())
        found["sample"] |= own | {"temporaries": rest}
    found["update"]["temporaries"] = programs["update"].used - sum(kept.values())
    return found


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


def _phases(chip: chips.Chip, config: ConfigDict, recipe: Recipe, programs) -> dict[str, dict]:
    """FLOPs, bytes of memory and bytes sent by each device in each part of a step, and which of them bounds it."""
    shape, phases = recipe.judge.model.config, len(recipe.phases)
    sizes, share = _share(config, recipe)
    updated = dataclasses.replace(sizes, group=sizes.group + recipe.thoughts.empty_thought)
    state = shard_bytes(abstract_state(recipe))
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
            counts.update_flops(shape, updated, phases),
            counts.update_reads(shape, updated, share, phases, recipe.micro_batches, state),
            update and update.total(0),
        ),
    }
    names = list(work) if recipe.thoughts.samples else ["update"]
    return {name: _bound(chip, work[name][0] / share.devices, *work[name][1:]) for name in names}


def _bound(chip: chips.Chip, flops: float, memory: float, sent: float | None) -> dict:
    """A roofline: the longest of three times that would each be enough if the others took none."""
    found = {"flops": flops, "memory_bytes": memory, "sent_bytes": sent}
    if chip.flops is None:
        return found | {"seconds": None, "bound": None}
    times = {
        "compute": flops / chip.flops,
        "memory": memory / chip.memory_speed,
        "links": (sent or 0) / chip.link_speed,
    }
    bound = max(times, key=times.get)
    return found | {"times": times, "seconds": times[bound], "bound": bound}
