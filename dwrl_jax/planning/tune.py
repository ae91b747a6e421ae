"""The choice of mesh, micro-batches, remat and sampling parts with the least bound on a step's time that fits.

All choices are counted from shapes (counted.py). The best few are compiled, as a plan is, and the compiled programs
decide.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import jax
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from dwrl_jax.core import sharding
from dwrl_jax.core.errors import UserError
from dwrl_jax.models.transformer import REMAT_POLICIES, ModelConfig, axis_names
from dwrl_jax.planning import chips, compiled, counted, counts, memory, work
from dwrl_jax.planning.counted import Choice, Job
from dwrl_jax.planning.model import model_of
from dwrl_jax.training import assemble as build
from dwrl_jax.training.config import check
from dwrl_jax.training.programs import abstract_start, abstract_state

COMPILED = 2  # choices that are compiled, and more only while none of them fits
MOST_COMPILED = 4


@dataclasses.dataclass(frozen=True)
class Counted:
    """A choice with its counted figures, and those of each phase of a step.

    `lapse` is the time of a step in which nothing overlaps.
    """

    choice: Choice
    used: float
    seconds: float
    lapse: float
    phases: dict[str, dict] = dataclasses.field(repr=False)

    @property
    def rank(self) -> tuple:
        """Least bound first; among equals the least time without overlap, then the least memory."""
        return round(self.seconds, 3), self.lapse, self.used


def tune(config: ConfigDict, topology: str, say=lambda text: None) -> dict:
    """The counted frontier and the compiled best choices, as --json writes them. Bytes are those of one device.

    UserError for an impossible config, for a topology without published speeds, and where no choice fits.
    """
    check(config)
    jax.config.update("jax_platforms", "cpu")
    chip, devices = chips.topology(topology)
    if chip.flops is None:
        raise UserError(f"--topology={topology}: --tune needs a chip's published speeds; give a TPU topology")
    shape, tokens, assumed = model_of(config, topology)
    job = job_of(config, shape, tokens)
    found = sorted(count_all(chip, job, len(devices)), key=lambda each: each.rank)
    fitting = [each for each in found if each.used <= chip.memory]
    if not fitting:
        least = min((each.used for each in found), default=0) / 2**30
        raise UserError(f"--topology={topology}: no choice fits; the least that one needs is {least:.1f} GiB, counted")
    say(f"counted {len(found)} choices, of which {len(fitting)} fit")
    programs, tried = {}, []
    for each in fitting[:MOST_COMPILED]:
        if len(tried) >= COMPILED and any(plan["fits"] for plan in tried):
            break
        tried.append(compile_choice(config, shape, tokens, devices, chip, each, programs, say))
    best = min((plan for plan in tried if plan["fits"]), key=lambda plan: plan["step_seconds"], default=None)
    return {
        "topology": topology,
        "devices": len(devices),
        "chip": dataclasses.asdict(chip),
        "hbm_bytes": chip.memory,
        "counted": len(found),
        "fitting": len(fitting),
        "frontier": [described(each) for each in frontier(found)],
        "compiled": tried,
        "best": best,
        "assumed": assumed,
    }


def job_of(config: ConfigDict, shape: ModelConfig, tokens: tuple) -> Job:
    """The step that a choice is made for, from a config; its mesh and its splits are not read."""
    loose = ConfigDict(config.to_dict())
    one = {"mesh.data": 1, "mesh.fsdp": 1, "mesh.tensor": 1, "optim.micro_batches": 1, "sampler.batch_size": 0}
    loose.update_from_flattened_dict(one | {"sampler.spread": False})
    recipe = build.recipe(loose, shape, *tokens, jax.devices("cpu")[:1])
    sizes = memory.sizes(loose, recipe)
    votes = max(recipe.votes) if config.eval.pairs and memory.decodes(recipe, "evaluation") else 0
    first_moment = 2 if config.optim.moment_dtype == "bfloat16" else 4
    copies = len(recipe.phases) if config.optim.moments == "separate" else 1
    beside = {}
    if recipe.lora:
        adapters, frozen = abstract_state(recipe).params, compiled.shard_bytes(abstract_start(recipe))
        numbers = sum(x.size for x in jax.tree.leaves(adapters))
        beside = {"adapters": numbers, "passed": counts.passed(shape, adapters), "frozen": frozen}
    return Job(
        model=shape,
        pairs=config.data.batch_size,
        prefix=sizes.prefix,
        group=sizes.group,
        thought=sizes.thought,
        question=sizes.question,
        phases=len(recipe.phases),
        empty_thought=recipe.thoughts.empty_thought,
        samples=recipe.thoughts.samples,
        keeps_start=recipe.keeps_start,
        cache=recipe.thoughts.sampler.cache,
        weights=recipe.thoughts.sampler.weights,
        moments=(first_moment + 4) * copies,
        evaluated=config.eval.batch_size if config.eval.pairs else 0,
        votes=votes,
        **beside,
    )


def count_all(chip: chips.Chip, job: Job, devices: int) -> Iterator[Counted]:
    """Every choice that the model and the batch allow. A step's two parts are counted apart."""
    boxed = axis_names(job.model)
    for mesh in meshes(boxed, devices):
        samplings = [(split, counted.sampling(chip, job, split)) for split in sampler_choices(job, mesh, boxed)]
        updates = [(split, counted.update(chip, job, split)) for split in update_choices(job, mesh)]
        for (sampler, drawn), (update, learnt) in itertools.product(samplings, updates):
            choice = dataclasses.replace(update, sampled=sampler.sampled, spread=sampler.spread)
            parts = (drawn, learnt) if job.samples else (learnt,)
            phases = {name: phase for part in parts for name, phase in part.phases.items()}
            yield Counted(
                choice,
                used=max(part.used for part in parts),
                seconds=sum(part.seconds for part in parts),
                lapse=sum(sum(phase["times"].values()) for phase in phases.values()),
                phases=phases,
            )


def meshes(boxed, devices: int) -> list[tuple[int, int, int]]:
    """All meshes of so many devices over which the weights, with names of their axes, can be split evenly."""
    fitting = []
    for fsdp, tensor in itertools.product(divisors(devices), repeat=2):
        sizes = devices // (fsdp * tensor), fsdp, tensor
        if devices % (fsdp * tensor) == 0 and _divides(sizes, boxed, sharding.TRAIN):
            fitting.append(sizes)
    return fitting


def _divides(sizes: tuple[int, int, int], boxed, rules) -> bool:
    try:
        sharding.shardings(AbstractMesh(sizes, sharding.AXES), boxed, rules)
    except UserError:
        return False
    return True


def sampler_choices(job: Job, mesh: tuple[int, int, int], boxed) -> list[Choice]:
    """Pairs sampled at a time, and whether the feed-forward is spread. 0 pairs stand for all, as in a config."""
    c = job.model
    can = mesh[1] > 1 and not (c.experts or c.quantised) and _divides(mesh, boxed, sharding.DECODE_SPREAD)
    at_once = [pairs for pairs in divisors(job.pairs) if _shared(pairs, mesh) and not _uneven(job.evaluated, pairs)]
    if not (_shared(job.pairs, mesh) and _shared(job.evaluated, mesh)):
        return []
    sizes = [0, *(pairs for pairs in at_once if pairs < max(job.pairs, job.evaluated))]
    return [Choice(*mesh, 1, "full", size, spread) for size in sizes for spread in ((False, True) if can else (False,))]


def update_choices(job: Job, mesh: tuple[int, int, int]) -> list[Choice]:
    parts = [count for count in divisors(job.pairs) if _shared(job.pairs // count, mesh)]
    return [Choice(*mesh, count, remat, 0, False) for count in parts for remat in REMAT_POLICIES]


def _shared(pairs: int, mesh: tuple[int, int, int]) -> bool:
    """Whether the rows of so many pairs are shared out evenly."""
    return 2 * pairs % (mesh[0] * mesh[1]) == 0


def _uneven(pairs: int, at_once: int) -> bool:
    return pairs > at_once and pairs % at_once != 0


def divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def frontier(found: list[Counted]) -> list[Counted]:
    """The choices than which no other is both faster and smaller, the fastest first. `found` is sorted by rank."""
    kept = []
    for each in found:
        if not kept or each.used < kept[-1].used:
            kept.append(each)
    return kept


def described(each: Counted) -> dict:
    figures = {"bytes": round(each.used), "step_seconds": each.seconds, "seconds_without_overlap": each.lapse}
    return dataclasses.asdict(each.choice) | figures


def with_choice(config: ConfigDict, choice: Choice) -> ConfigDict:
    """The config with the keys of the choice."""
    changed = ConfigDict(config.to_dict())
    values = dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), choice.mesh))
    values |= {"optim.micro_batches": choice.micro_batches, "model.remat": choice.remat}
    changed.update_from_flattened_dict(values | {"sampler.batch_size": choice.sampled, "sampler.spread": choice.spread})
    return changed


def compile_choice(config, shape, tokens, devices, chip, each: Counted, programs: dict, say) -> dict:
    """The compiled figures of a choice. `programs` keeps what has been compiled, for choices that share it."""
    choice = each.choice
    config, shape = with_choice(config, choice), dataclasses.replace(shape, remat=choice.remat)
    recipe = build.recipe(config, shape, *tokens, devices)
    wanted = {name: what for name, what in memory.wanted(config, recipe).items() if name != "other"}
    splits = {"update": (choice.micro_batches, choice.remat)}
    keys = {
        name: (name, choice.mesh, splits.get(kind, (choice.sampled, choice.spread)))
        for name, (kind, _) in wanted.items()
    }
    missing = {name: what for name, what in wanted.items() if keys[name] not in programs}
    made = compiled.compile_all(recipe, config.data.buckets[-1], missing, say)
    programs.update({keys[name]: program for name, program in made.items()})
    mine = {name: programs[key] for name, key in keys.items()}
    total = max(sum(terms.values()) for terms in memory.memory(config, recipe, mine).values())
    phases = work.phases(chip, config, recipe, mine)
    return described(each) | {
        "counted_bytes": round(each.used),
        "counted_seconds": each.seconds,
        "bytes": total,
        "step_seconds": sum(phase["seconds"] for phase in phases.values()),
        "fits": total <= chip.memory,
        "flags": choice.flags(),
        "phases": phases,
    }
