"""From a config to the parts of a run. This file, sources.py, starting.py and the entry points read the config."""

import dataclasses
import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from dwrl_jax import dialogue, objectives
from dwrl_jax.core import files, hosts, sharding
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.names import ARCHITECTURE
from dwrl_jax.data import world
from dwrl_jax.dialogue import tokenizers
from dwrl_jax.generation.sampler import SamplerOptions
from dwrl_jax.judge.card import JudgeCard
from dwrl_jax.judge.judge import Judge, question_kind
from dwrl_jax.judge.thoughts import ThoughtPlan
from dwrl_jax.models import frozen, hf, lora
from dwrl_jax.models.families import NUMERICS, model_config, with_value_head
from dwrl_jax.models.families.presets import PRESETS, shrink
from dwrl_jax.models.transformer import Decoder, ModelConfig, axis_names
from dwrl_jax.training.optimizer import make_optimizer
from dwrl_jax.training.parts import Run
from dwrl_jax.training.programs import Recipe
from dwrl_jax.training.settings import OptimSettings
from dwrl_jax.training.sources import Held, Needs, batches, find_pair, held_out, make_talk, training_source
from dwrl_jax.training.starting import load_start, lora_settings


def load_tokenizer(config: ConfigDict, folder: Path):
    """The tokenizer named by the config, or the model's own: for a `preset` that is the built-in world's."""
    if config.model.preset and not (config.model.path or config.model.tokenizer):
        return tokenizers.with_template(world.make_tokenizer())
    return tokenizers.load_tokenizer(config.model.tokenizer or hf.tokenizer_of(folder))


def small_config(config: ConfigDict, tokenizer) -> dict:
    """config.json of the small model that model.preset names. UserError for an unknown name."""
    name = config.model.preset
    if name not in PRESETS:
        raise UserError(f"model.preset={name!r}: choose one of {', '.join(PRESETS)}")
    return shrink(PRESETS[name], 1 + max(tokenizer.get_vocab().values()))


class Start(NamedTuple):
    """The model that a run starts from."""

    hf_config: dict  # config.json of the model to train
    tokenizer: Any
    folder: Callable[[], Path]  # fetches or makes the starting model, which a run that goes on rarely needs
    ends: tuple[int, ...]  # the end tokens that the model's folder names


def build(config: ConfigDict, workdir: Path, start: Start) -> tuple[Run, Held | None, dict[str, str]]:
    """The parts of a run, its held-out pairs, and the notes about its data, by "train" and "eval"."""
    tokenizer = start.tokenizer
    objective, hyper = load_objective(config)
    shape = model_config(start.hf_config, **numerics(config))
    talk = make_talk(config, tokenizer, question_kind(judge_kind(config)), start.ends)
    check_lengths(config, shape, talk)
    supervised = objective.thoughts == "written"
    source, train_note = training_source(config, talk, workdir, Needs(supervised, objective.uses_margins(hyper)))
    if source.examples(0, 1)[0].thoughts is None and supervised:
        raise UserError(f"objective.name={config.objective.name!r} needs written thoughts; data.train has none")
    held, eval_note = held_out(config, talk, workdir) if config.eval.pairs else (None, "none")
    parts = recipe(config, shape, talk.question_ids, talk.answer_ids, talk.pad_id, talk.stop_ids)
    run = Run(
        **vars(parts),
        workdir=workdir,
        steps=config.optim.steps,
        load_params=lambda: load_start(config, start.folder(), shape, parts.mesh, frozen.read(workdir / ARCHITECTURE)),
        batches=batches(config, source, talk, batch_size=config.data.batch_size, margins=parts.margins),
        describe=lambda pair_id: find_pair(source, pair_id),
        describe_held_out=lambda pair_id: find_pair(held.batches.source, pair_id),
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
        eval_batches=held.batches if held else None,
        curve_batches=held.curve if held else None,
        eval_every=config.eval.every,
        thoughts_every=config.log.thoughts_every,
        thought_pairs=config.log.thought_pairs,
        checkpoint_every=config.checkpoint.every,
        checkpoints_kept=config.checkpoint.keep,
        most_skipped=config.optim.most_skipped,
        packing=config.optim.packing,
        profile=config.profile,
    )
    return run, held, {"train": train_note, "eval": eval_note}


def numerics(config: ConfigDict) -> dict[str, str]:
    """The fields of `ModelConfig` that the config gives. Frozen weights have a type of their own."""
    given = {name: config.model[name] for name in NUMERICS}
    settings = lora_settings(config)
    return given | settings.numerics if settings else given


def check_weights(config: ConfigDict) -> None:
    """UserError for bfloat16 weights: they keep 8 bits, and an update smaller than the last bit is lost."""
    if config.model.param_dtype != "float32":
        raise UserError(
            f"model.param_dtype={config.model.param_dtype!r}: updates of these weights would be rounded away; "
            "set it to 'float32', with model.dtype='bfloat16' to compute in that type"
        )


def recipe(config: ConfigDict, shape: ModelConfig, question, answers, pad: int, stops=(), devices=None) -> Recipe:
    """The recipe of the programs, from the ids of the second question, the answers, padding and other end tokens."""
    check_weights(config)
    objective, hyper = load_objective(config)
    settings = lora_settings(config)
    if settings:
        lora.check(shape, settings)  # bad targets end the run before its model is read
        frozen.check_kept(shape)
    phases, value_scores = objective.phases(hyper), objective.value_scores
    return Recipe(
        seed=config.seed,
        judge=Judge(
            model=Decoder(shape),
            question=question,
            answers=answers,
            pad=pad,
            temperature=config.sampler.temperature,
            kind=judge_kind(config),
            readout=config.score.readout,
            chunk=config.score.chunk,
            value_scores=value_scores and functools.partial(value_scores, hyper=hyper),
            stops=stops,
        ),
        mesh=make_mesh(config, shape, devices),
        thoughts=ThoughtPlan(
            objective.thoughts,
            SamplerOptions(
                config.sampler.group_size,
                config.sampler.max_thought,
                config.sampler.top_k,
                config.sampler.top_p,
                config.sampler.batch_size,
                _spread(config, shape),
                config.sampler.cache,
                _weights(config, shape),
            ),
            objective.verdicts,
            objective.empty_thought,
        ),
        votes=tuple(config.eval.votes),
        phases=phases,
        optimizer=make_optimizer(OptimSettings(**config.optim), len(phases), getattr(hyper, "score_rate", 1.0)),
        micro_batches=config.optim.micro_batches,
        needs_reference=getattr(hyper, "kl", 0.0) > 0,
        margins=objective.uses_margins(hyper),
        lora=settings,
    )


def _spread(config: ConfigDict, shape: ModelConfig) -> bool:
    """Whether decoding spreads the feed-forward. UserError where the model has none that could be spread."""
    if config.sampler.spread and (shape.experts or shape.quantised):
        kind = (
            "experts lie over the mesh axis fsdp already" if shape.experts else "weights in few bits stay as they lie"
        )
        raise UserError(f"sampler.spread=True: {kind}; give --config.sampler.spread=False")
    return config.sampler.spread


def _weights(config: ConfigDict, shape: ModelConfig) -> str:
    """The type of the matrices in decoding. UserError where the model's cannot be kept so."""
    if config.sampler.weights and (shape.experts or shape.quantised):
        kind = "experts are not kept in few bits" if shape.experts else f"they are {shape.quantised} already"
        raise UserError(f"sampler.weights={config.sampler.weights!r}: {kind}; leave it empty")
    return config.sampler.weights


def architecture(config: ConfigDict, folder: Path, hf_config: dict, tokenizer) -> dict:
    """config.json of the model to train: `hf_config` of the start, with a value head where the objective needs it.

    The tokenizer of a model with a value head gets a pad token that stands in no conversation (`set_pad_token`).
    """
    wanted, given = value_outputs(config), model_config(hf_config).value_head
    if given and given != wanted:
        like = f"preference_embedding with objective.planes={given / 2:g}" if given > 1 else "bt"
        raise UserError(f"{folder}: a reward model with a value head; objective.name={like} alone goes on from it")
    if wanted:
        pad = tokenizers.set_pad_token(tokenizer, model_config(hf_config).vocab_size)
        return with_value_head(hf_config, pad, wanted)
    return hf_config


def value_outputs(config: ConfigDict) -> int:
    """The number of outputs of the objective's value head; 0 without a value head."""
    objective, hyper = load_objective(config)
    return objective.value_outputs(hyper) if objective.value_outputs else 0


@hosts.by_first
def keep_architecture(kept: Path, hf_config: dict, folder: Path, tokenizer) -> None:
    """Write the small files of the model to train into the workdir, so that an export needs nothing else.

    `hf_config` is its config.json; the other files are the starting model's.
    """
    partial = files.partial_of(kept)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files.write_json(partial / "config.json", hf_config)
    generation = hf.base_of(folder) / "generation_config.json"
    if generation.exists():
        shutil.copy(generation, partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(kept, ignore_errors=True)
    os.replace(partial, kept)


def judge_card(config: ConfigDict, tokenizer) -> JudgeCard:
    """All that makes a judge of the trained weights. The workdir keeps it, and an export carries it."""
    objective, hyper = load_objective(config)
    return JudgeCard(
        kind=judge_kind(config),
        texts=make_talk(config, tokenizer, question_kind(judge_kind(config))).texts,
        thoughts="policy" if objective.thoughts == "written" else objective.thoughts,
        readout=config.score.readout,
        temperature=config.sampler.temperature,
        top_k=config.sampler.top_k,
        top_p=config.sampler.top_p,
        max_thought=config.sampler.max_thought,
        buckets=tuple(config.data.buckets),
        chunk=config.score.chunk,
        dtype=config.model.dtype,
        objective=config.objective.name,
        hyper=dataclasses.asdict(hyper),
    )


def make_mesh(config: ConfigDict, shape: ModelConfig, devices=None) -> jax.sharding.Mesh:
    """The mesh of a run; UserError where the model or a batch cannot be spread over it."""
    mesh = sharding.make_mesh(config.mesh, devices)
    for rules in (sharding.TRAIN, *[sharding.DECODE_SPREAD] * _spread(config, shape)):
        sharding.shardings(mesh, axis_names(shape), rules)
    rows = {"data.batch_size / optim.micro_batches": config.data.batch_size // config.optim.micro_batches}
    if config.eval.pairs:
        rows["eval.batch_size"] = config.eval.batch_size
    if config.sampler.batch_size:
        rows["sampler.batch_size"] = config.sampler.batch_size
    for key, pairs in rows.items():
        sharding.check_divides(mesh, sharding.ROWS, 2 * pairs, f"{key}, two responses a pair,")
    return mesh


def check_lengths(config: ConfigDict, shape: ModelConfig, talk: dialogue.Dialogue) -> None:
    """UserError where the tokenizer or the longest dialogue does not fit the model."""
    tokenizers.check_vocabulary(talk.tokenizer, shape.vocab_size)
    longest = config.data.buckets[-1] + config.sampler.max_thought + len(talk.question_ids) + 1
    if longest > shape.max_position:
        raise UserError(
            f"data.buckets and sampler.max_thought allow {longest} tokens, more than the model's "
            f"{shape.max_position}: lower one of them"
        )


def load_objective(config: ConfigDict) -> tuple[objectives.Objective, object]:
    """The objective and its hyper-parameters."""
    name = config.objective.name
    if name not in objectives.names():
        raise UserError(f"objective.name={name!r}: choose one of {', '.join(objectives.names())}")
    objective = objectives.load(name)
    if objective.thoughts == "none" and (config.sampler.group_size, *config.eval.votes) != (1, 1):
        raise UserError(
            f"objective.name={name!r} judges without thoughts: give sampler.group_size=1 and eval.votes=(1,), "
            f"as --config=FILE:{name} does"
        )
    if objective.judges[0] == "label" and config.score.readout != "choices":
        raise UserError(
            f"score.readout={config.score.readout!r}: {name} needs 'choices', where the two labels of a comparison "
            "have probability 1 together"
        )
    return objective, objective.hyper(**{key: value for key, value in config.objective.items() if key != "name"})


def judge_kind(config: ConfigDict) -> str:
    """The kind of judge that is trained: `score.judge`, or the objective's usual kind where that is empty."""
    kinds = load_objective(config)[0].judges
    kind = config.score.judge or kinds[0]
    if kind not in kinds:
        raise UserError(f"score.judge={kind!r}: {config.objective.name} trains {' or '.join(kinds)}; give one of them")
    return kind
