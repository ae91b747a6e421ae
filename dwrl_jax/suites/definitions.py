"""The suites of `dwrl_jax.reproduce`: their methods, configs and seeds. Data alone."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Arm:
    """One line of a table: an objective, and the keys and values of --config.KEY that differ from its config."""

    objective: str
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Suite:
    """Arms side by side. `seeded` are the keys that get the seed of a cell.

    Every arm trains on as many pairs as the `reference`. For each of the `budgets`, "generated_tokens" or "seconds", an
    arm that uses less or more of it than the reference has a second run, which uses as much.
    """

    configs: tuple[str, ...]  # files of configs/, with a variant behind a comma: "tiny,world=long"
    arms: Mapping[str, Arm]
    seeds: tuple[int, ...]
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    seeded: tuple[str, ...] = ("seed",)
    budgets: tuple[str, ...] = ()
    reference: str = "dwrl"


METHODS = (
    "dwrl",
    "dwrl_no_misalignment",
    "grpo_point",
    "grpo_pair",
    "rm_r1",
    "irpm",
    "irpm_auc",
    "bvpo",
    "preference_embedding",
    "oprm",
    "bt",
    "bt_token",
    "bt_prefilled",
    "gram",
)
WORLD = ("seed", "world.seed", "base.seed", "base.world.seed")  # data, world and base model: all anew
RATES = (3e-5, 1e-4, 3e-4, 1e-3)
RATES_IN_WORLDS = (1.5e-5, 5e-5, 1.5e-4, 4.5e-4)
FASTER = {"optim.learning_rate": 3e-4}  # DWRL's in the tables of README.md and docs/findings.md, from before "causes"


WORLDS = ("tiny", *(f"tiny,world={name}" for name in ("long", "shortcut", "noisy", "few")))
HARDEST = ("tiny,world=shortcut", "tiny,world=long")
# each method's rate, the best one of `worlds_rates` (docs/worlds.md)
IN_WORLDS = {
    "dwrl": 1.5e-4,
    "dwrl_no_misalignment": 5e-5,
    "grpo_point": 5e-5,
    "grpo_pair": 5e-5,
    "irpm": 1.5e-4,
    "bvpo": 1.5e-4,
    "bt": 5e-5,
    "bt_prefilled": 1.5e-5,
}
EIGHT_VOTES = {"eval.votes": (1, 8)}


def _in_worlds(name: str, rate: float, **more) -> Arm:
    """A method at a rate, with eight votes if it writes thoughts: of IN_WORLDS all but `bt` do."""
    return Arm(name, {"optim.learning_rate": rate} | (EIGHT_VOTES if name != "bt" else {}) | more)


LORA = {"lora.rank": 16, "lora.alpha": 32.0, "lora.base": "float32"}
LORA_METHODS = ("dwrl", "bt", "grpo_point")
FULL = {"dwrl": FASTER}  # of full training, where it is not that of the config
LORA_RATES = {"dwrl": 3e-4, "bt": 1e-3, "grpo_point": 3e-4}


def _lora_rates() -> dict[str, Arm]:
    rates = (3e-4, 1e-3, 3e-3, 1e-2)
    return {
        f"{name}+lora@{rate:g}": Arm(name, {"optim.learning_rate": rate} | LORA)
        for name in LORA_METHODS
        for rate in rates
    }


CHOICES = {
    "dwrl": Arm("dwrl", FASTER),
    "updates=joint": Arm("dwrl", FASTER | {"objective.updates": "joint"}),
    "baseline=none": Arm("dwrl", FASTER | {"objective.baseline": "none"}),
    "baseline=leave_one_out": Arm("dwrl", FASTER | {"objective.baseline": "leave_one_out"}),
    "kl=0.01": Arm("dwrl", FASTER | {"objective.kl": 0.01}),
    "group_size=2": Arm("dwrl", FASTER | {"sampler.group_size": 2}),
    "group_size=16": Arm("dwrl", FASTER | {"sampler.group_size": 16}),
    "readout=choices": Arm("dwrl", FASTER | {"score.readout": "choices"}),
    "max_thought=6": Arm("dwrl", FASTER | {"sampler.max_thought": 6}),
    "max_thought=12": Arm("dwrl", FASTER | {"sampler.max_thought": 12}),
}

# DWRL at 6e-4, where it collapses: each arm takes away one possible cause
SEPARATE = {"optim.moments": "separate"}
CAUSES = {
    "as it is": Arm("dwrl"),
    "half the rate": Arm("dwrl", {"optim.learning_rate": 3e-4}),
    "a quarter of the rate": Arm("dwrl", {"optim.learning_rate": 1.5e-4}),
    # two steps of Adam: each with moments of its own, or a single one
    "separate moments": Arm("dwrl", SEPARATE),
    "joint update": Arm("dwrl", {"objective.updates": "joint"}),
    # which of the two steps it is; the moments are separate, so that neither gradient is in the other's step
    "thoughts slower": Arm("dwrl", SEPARATE | {"optim.learning_rate": 1.5e-4, "objective.score_rate": 4.0}),
    "thoughts untrained": Arm("dwrl", SEPARATE | {"optim.learning_rate": 6e-10, "objective.score_rate": 1e6}),
    "scores slower": Arm("dwrl", SEPARATE | {"objective.score_rate": 0.25}),
    "scores slower, shared moments": Arm("dwrl", {"objective.score_rate": 0.25}),
    # the level of log p
    "centring": Arm("dwrl", {"objective.centring": 0.02}),
    # probability that leaks from the answers to other words
    "readout=choices": Arm("dwrl", {"score.readout": "choices"}),
    # thoughts that leave those of the start, and the first steps
    "kl=0.03": Arm("dwrl", {"objective.kl": 0.03}),
    "warmup=50": Arm("dwrl", {"optim.warmup": 50}),
}

SUITES = {
    # learning rates, on worlds that are not those of the table
    "tiny_rates": Suite(
        ("tiny",),
        {f"{name}@{rate:g}": Arm(name, {"optim.learning_rate": rate}) for name in METHODS for rate in RATES},
        (101, 102),
        seeded=WORLD,
        reference=f"dwrl@{RATES[2]:g}",
    ),
    "tiny": Suite(
        ("tiny",),
        {name: Arm(name) for name in METHODS}
        | {"dwrl": Arm("dwrl", FASTER), "dwrl_margins": Arm("dwrl", FASTER | {"objective.bradley_terry": "scaled"})},
        seeds=(11, 12, 13, 14, 15),
        seeded=WORLD,
        budgets=("generated_tokens", "seconds"),
    ),
    # one choice of DWRL at a time, on worlds that are not those of the table
    "tiny_choices": Suite(("tiny",), CHOICES, (101, 102), seeded=WORLD),
    # worlds that tell methods apart, and each method's rate on the two hardest together, from other seeds
    "worlds_rates": Suite(
        HARDEST,
        {f"{name}@{rate:g}": _in_worlds(name, rate) for name in IN_WORLDS for rate in RATES_IN_WORLDS},
        (201, 202),
        settings={"eval.pairs": 500},
        seeded=WORLD,
        reference=f"dwrl@{RATES_IN_WORLDS[2]:g}",
    ),
    "worlds": Suite(
        WORLDS,
        {name: _in_worlds(name, rate) for name, rate in IN_WORLDS.items()}
        | {
            "dwrl_faster": _in_worlds("dwrl", 2 * IN_WORLDS["dwrl"]),
            "dwrl_paper": _in_worlds("dwrl", IN_WORLDS["dwrl"], **{"objective.baseline": "none"}),
        },
        (21, 22, 23, 24, 25),
        seeded=WORLD,
    ),
    # what holds DWRL on all worlds, from the seeds of the rates
    "worlds_choices": Suite(
        WORLDS,
        {"dwrl": Arm("dwrl", {"objective.centring": 0.0})}
        | {f"centring={size:g}": Arm("dwrl", {"objective.centring": size}) for size in (0.02, 0.005, 0.08)},
        (201, 202),
        settings={"eval.pairs": 500} | EIGHT_VOTES,
        seeded=WORLD,
    ),
    # why DWRL collapses; no seed is one of `worlds`
    "causes": Suite(
        HARDEST,
        CAUSES,
        (11, 12, 77),
        settings={"optim.learning_rate": 6e-4, "eval.pairs": 500} | EIGHT_VOTES,
        seeded=WORLD,
        reference="as it is",
    ),
    # adapters beside full training, at equal steps; their rates come from other worlds
    "tiny_lora_rates": Suite(("tiny",), _lora_rates(), (101, 102), seeded=WORLD, reference="dwrl+lora@0.003"),
    "tiny_lora": Suite(
        ("tiny",),
        {
            name + suffix: Arm(name, {"optim.learning_rate": LORA_RATES[name]} | LORA if suffix else FULL.get(name, {}))
            for name in LORA_METHODS
            for suffix in ("", "+lora")
        },
        seeds=(11, 12, 13),
        seeded=WORLD,
    ),
    "hh": Suite(
        ("qwen3b", "qwen7b", "llama3b", "llama8b"),
        {name: Arm(name) for name in METHODS},
        seeds=(0, 1, 2, 3, 4),
        budgets=("generated_tokens", "seconds"),
    ),
}
