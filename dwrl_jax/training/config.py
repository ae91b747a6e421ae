"""The config of a training run: its sections, the checks across keys, and the pieces of a config file.

A config file defines `get_config(objective, smoke)` under `@variants`: a few assignments on top of `base_config`.
"""

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from dwrl_jax import objectives
from dwrl_jax.core import settings
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.settings import MeshSettings
from dwrl_jax.data.settings import DataSettings, WorldSettings
from dwrl_jax.dialogue.settings import DialogueSettings
from dwrl_jax.evaluation.settings import EvalSettings
from dwrl_jax.generation.settings import SamplerSettings
from dwrl_jax.judge.settings import ScoreSettings
from dwrl_jax.models.settings import LoraSettings, ModelSettings
from dwrl_jax.settings import config as configuration
from dwrl_jax.settings.config import flat
from dwrl_jax.training.settings import OptimSettings, RunSettings
from dwrl_jax.workdir.settings import CheckpointSettings, LogSettings

SECTIONS = {
    "": RunSettings,
    "model": ModelSettings,
    "mesh": MeshSettings,
    "dialogue": DialogueSettings,
    "data": DataSettings,
    "world": WorldSettings,
    "sampler": SamplerSettings,
    "score": ScoreSettings,
    "lora": LoraSettings,
    "optim": OptimSettings,
    "eval": EvalSettings,
    "log": LogSettings,
    "checkpoint": CheckpointSettings,
}  # and `objective`: its name and the hyper-parameters of that objective


def sections(objective: str) -> dict[str, type]:
    """All sections of a run, by name. The section of the objective is the `Hyper` of its file."""
    return SECTIONS | {"objective": objectives.load(objective).hyper}


def base_config(objective: str = "dwrl") -> ConfigDict:
    """All defaults, locked: an unknown key is an error. Lengths are in tokens, batch sizes in pairs.

    `config.base` is None or the whole config of a run that first makes this run's starting model.
    """
    config = configuration.to_config(sections(objective))
    with config.unlocked():
        config.objective = ConfigDict({"name": objective} | config.get("objective", ConfigDict()).to_dict())
        config.base = placeholder(ConfigDict)
    return config.lock()


def with_objective(config: ConfigDict, name: str) -> ConfigDict:
    """The config with the section of an objective, and with the values that its kind of judge needs."""
    objective = objectives.load(name)
    with config.unlocked():
        config.objective = base_config(name).objective
    if objective.thoughts == "none":
        config.sampler.group_size, config.sampler.max_thought, config.eval.votes = 1, 1, (1,)
    if objective.judges[0] == "label":
        config.score.readout = "choices"
    return config.lock()


def variants(get_config: Callable[..., ConfigDict]) -> Callable[..., ConfigDict]:
    """Let --config=FILE:OBJECTIVE,smoke call get_config(objective="OBJECTIVE", smoke=True).

    A further parameter of `get_config` is named: --config=FILE:OBJECTIVE,world=long,smoke.
    """
    further = [name for name in inspect.signature(get_config).parameters if name not in ("objective", "smoke")]

    @functools.wraps(get_config)
    def from_text(variant: str = ""):
        return get_config(**read_variant(variant, further))

    return from_text


def read_variant(variant: str, further: Sequence[str] = ()) -> dict[str, str | bool]:
    """The arguments of `get_config` from "[OBJECTIVE][,NAME=VALUE][,smoke]", with names that are in `further`.

    The objective is dwrl where none is named. UserError for a variant that does not exist.
    """
    words, known = variant.split(","), objectives.names()
    chosen: dict[str, str | bool] = {"objective": "dwrl", "smoke": words[-1] == "smoke"}
    words = words[: len(words) - chosen["smoke"]]
    while words and (named := words[-1].partition("="))[0] in further and named[1] and named[0] not in chosen:
        chosen[named[0]] = named[2]
        words.pop()
    chosen["objective"] = ",".join(words) or "dwrl"
    if chosen["objective"] not in known:
        more = "".join(f",{name}=..." for name in further)
        raise UserError(f"--config=...:{variant}: no such variant; give one of {', '.join(known)}, or NAME{more},smoke")
    return chosen


def accelerator_run(
    hub_id: str,
    *,
    tensor: int,
    micro_batches: int,
    data: int = 1,
    remat: str = "full",
    sampled: int = 0,
    spread: bool = False,
) -> ConfigDict:
    """Full fine-tuning of a published model on HH-RLHF with the paper's numbers of pairs (20,000 and 1,000).

    Learning rate, group size and lengths are (ours): the paper's are not known. `tensor` is the number of parts of the
    heads, `data` that of the copies of the weights, and `sampled` the number of pairs sampled at a time. They,
    `micro_batches`, `remat` and `spread` follow the plan in the config's docstring; fewer devices need others.
    """
    config = base_config()
    config.model.path = hub_id
    config.model.dtype = "bfloat16"
    config.model.remat = remat
    config.data.train = config.data.eval = "Anthropic/hh-rlhf"
    config.data.pairs = 20_000
    config.data.batch_size = 64
    config.optim.steps = 312  # one pass over them
    config.optim.micro_batches = micro_batches
    config.sampler.batch_size = sampled
    config.sampler.spread = spread
    config.mesh.data, config.mesh.tensor = data, tensor
    config.eval.every = 52
    return config


def quick_trial(config: ConfigDict, preset: str) -> ConfigDict:
    """The same run in under two minutes on two cores: a small random model, the built-in world, few steps.

    model.path, model.tokenizer and the data may be named again on the command line.
    """
    config.model.path, config.model.preset = "", preset
    config.model.dtype, config.model.remat = "float32", "none"
    config.mesh.data = config.mesh.tensor = 1
    config.sampler.batch_size, config.sampler.spread = 0, False
    config.data.train = config.data.eval = "world"
    config.data.buckets = (64, 128, 256)
    config.data.batch_size = 4
    # the built-in world's tokenizer knows only the words of that world
    config.dialogue.judge_question = "judge"
    config.dialogue.answer_question = config.dialogue.label_question = config.dialogue.score_question = "good?"
    config.dialogue.pair_question, config.dialogue.turn = "{conversation} A {first} B {second} judge", "{content}"
    config.dialogue.scores = ("a", "B", "A")
    config.sampler.group_size = 2
    config.sampler.max_thought = 8
    config.score.chunk = 128
    config.optim.steps = 2
    config.optim.micro_batches = 2
    config.eval.votes = (1, 2)
    config.eval.pairs = 16
    config.eval.curve_pairs = 8
    config.eval.batch_size = 4
    config.eval.every = 2
    return config


def check(config: ConfigDict) -> None:
    """UserError that names the first key with an impossible value."""
    name = config.objective.name
    if name not in objectives.names():
        raise UserError(f"objective.name={name!r}: choose one of {', '.join(objectives.names())}")
    if config.objective.keys() != base_config(name).objective.keys():
        raise UserError(
            f"objective.name={name!r}: this config has the keys of another objective; choose it by FILE:{name}"
        )
    configuration.check(config, sections(name))
    _check_sizes(config)
    _check_places(config)
    _check_lora(config)
    if config.base is not None:
        try:
            check(config.base)
        except UserError as error:
            raise UserError(f"base.{error}") from None


def _check_sizes(config: ConfigDict) -> None:
    batch, parts, sampled = config.data.batch_size, config.optim.micro_batches, config.sampler.batch_size
    if batch % parts:
        raise UserError(f"optim.micro_batches={parts} does not divide data.batch_size={batch}")
    for key, pairs in {"data.batch_size": batch, "eval.batch_size": config.eval.batch_size}.items():
        if sampled and pairs > sampled and pairs % sampled:
            raise UserError(f"sampler.batch_size={sampled} does not divide {key}={pairs}")
    if config.profile and config.optim.steps < 2:
        raise UserError("profile=True: the first step compiles and is not traced; give optim.steps at least 2")


def _check_places(config: ConfigDict) -> None:
    if not config.model.path and not config.model.preset and config.base is None:
        raise UserError("model.path is missing: give a Hugging Face folder or hub id")
    if not config.data.train:
        raise UserError("data.train is missing: give a file of pairs, a `datasets` name, or 'world'")
    if config.eval.pairs and not config.data.eval:
        raise UserError("data.eval is missing: give held-out pairs, or --config.eval.pairs=0 for no evaluation")


def _check_lora(config: ConfigDict) -> None:
    given = {} if config.lora.rank else dataclasses.asdict(LoraSettings())
    for key, default in given.items():
        if config.lora[key] != default:
            raise UserError(
                f"lora.{key}={config.lora[key]!r}: there are no adapters; give a rank, such as lora.rank=16"
            )


def changes(kept: dict, wanted: dict) -> dict[str, tuple]:
    """{key: (kept value, wanted value)} of the changes with which a run that began with `kept` cannot go on.

    Both are as config.json has them. A key that `kept` lacks had its default there. A key of another objective had no
    effect. With a constant schedule more steps change nothing before the old end.
    """
    described = configuration.keys(sections(wanted["objective"]["name"]))
    defaults = json.loads(json.dumps({key: setting.default for key, setting in described.items()}))
    before, after, base = defaults | flat(kept), flat(wanted), {}
    if kept.get("base") and wanted.get("base"):
        base = {f"base.{key}": pair for key, pair in changes(kept["base"], wanted["base"]).items()}
        before, after = ({k: v for k, v in each.items() if not k.startswith("base.")} for each in (before, after))
    differ = {}
    for key in sorted(before.keys() | after.keys(), key=lambda key: (key != "objective.name", key)):
        old, new = before.get(key), after.get(key)
        foreign = key.startswith("objective.") and key not in after
        free = key in described and described[key].resumable
        longer = key == "optim.steps" and wanted["optim"]["schedule"] == "constant" and old <= new
        if old != new and not (foreign or free or longer):
            differ[key] = (old, new)
    return differ | base


def describe_keys() -> str:
    """All keys of a run with default, bound and meaning, for --help. `base` has the same keys again."""
    described, owners = configuration.keys(SECTIONS), {}
    for name in objectives.names():
        for key, setting in settings.keys(objectives.load(name).hyper).items():
            owners.setdefault((key, setting), []).append(name)
    for (key, setting), names in owners.items():
        meaning = f"{setting.meaning} ({', '.join(names)})"
        described |= {f"objective.{key}": dataclasses.replace(setting, meaning=meaning)}
    star = "  * may change in a run that goes on: it changes no result by more than rounding"
    return f"{configuration.describe(described)}\n{star}"
