"""From a config to the parts of a run. With the entry points, the only files that read the config."""

import dataclasses
import importlib
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from dwrl_jax import data, dialogue, hosts, loop, sharding, train_step, world
from dwrl_jax.errors import UserError
from dwrl_jax.gpm import Judge
from dwrl_jax.models import hf
from dwrl_jax.models.hf_config import NUMERICS, model_config, read_config
from dwrl_jax.models.presets import PRESETS, shrink
from dwrl_jax.models.transformer import Decoder, ModelConfig, axis_names
from dwrl_jax.pairs import Pair, read_pairs
from dwrl_jax.sampler import SamplerOptions


class Held(NamedTuple):
    """Held-out pairs in a fixed order, the beginning of them for the curve, and their world if they have one."""

    pairs: list[Pair]
    batches: data.Batches
    curve: data.Batches | None
    world: world.World | None


def load_tokenizer(config: ConfigDict, folder: Path):
    """The tokenizer named by the config, or the model's own: for a `preset` that is the built-in world's."""
    if config.model.preset and not (config.model.path or config.model.tokenizer):
        return dialogue.with_template(world.make_tokenizer())
    return dialogue.load_tokenizer(config.model.tokenizer or folder)


def small_config(config: ConfigDict, tokenizer) -> dict:
    """config.json of the small model that model.preset names; UserError for a name that there is not."""
    name = config.model.preset
    if name not in PRESETS:
        raise UserError(f"model.preset={name!r}: choose one of {', '.join(PRESETS)}")
    return shrink(PRESETS[name], 1 + max(tokenizer.get_vocab().values()))


def build(config: ConfigDict, workdir: Path, folder: Path) -> tuple[loop.Run, Held | None, dict[str, str]]:
    """The parts of a run, its held-out pairs, and what is to be said about the data by "train" and "eval"."""
    tokenizer = load_tokenizer(config, folder)
    hf_config = read_config(folder)
    numerics = {name: config.model[name] for name in NUMERICS}
    shape = model_config(hf_config, **numerics)
    talk = make_talk(config, tokenizer)
    check_lengths(config, shape, talk)
    objective, _ = load_objective(config)
    supervised = not objective.SAMPLES_THOUGHTS
    source, train_note = training_source(config, talk, workdir / "skipped_train.txt", supervised)
    if source.examples(0, 1)[0].thoughts is None and supervised:
        raise UserError(f"objective.name={config.objective.name!r} needs written thoughts; data.train has none")
    held, eval_note = held_out(config, talk, workdir / "skipped_eval.txt") if config.eval.pairs else (None, "none")
    parts = recipe(config, shape, talk.question_ids, talk.answer_ids, talk.pad_id)
    run = loop.Run(
        **vars(parts),
        workdir=workdir,
        steps=config.optim.steps,
        load_params=lambda: hf.load_params(folder, shape, shardings=sharding.shardings(parts.mesh, axis_names(shape))),
        batches=batches(config, source, talk, batch_size=config.data.batch_size),
        describe=lambda pair_id: find_pair(source, pair_id),
        describe_held_out=lambda pair_id: find_pair(held.batches.source, pair_id),
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
        eval_batches=held.batches if held else None,
        curve_batches=held.curve if held else None,
        eval_every=config.eval.every,
        thoughts_every=config.log.thoughts_every,
        thought_pairs=config.log.thought_pairs,
        checkpoint_every=config.checkpoint.every,
        packing=config.optim.packing,
        profile=config.profile,
    )
    return run, held, {"train": train_note, "eval": eval_note}


def recipe(config: ConfigDict, shape: ModelConfig, question, answers, pad: int, devices=None) -> loop.Recipe:
    """What the programs are made of, for the ids of the second question, of both answers and of padding."""
    objective, hyper = load_objective(config)
    phases = objective.phases(hyper)
    optim = train_step.OptimizerOptions(
        **{field.name: config.optim[field.name] for field in dataclasses.fields(train_step.OptimizerOptions)}
    )
    return loop.Recipe(
        seed=config.seed,
        judge=Judge(
            model=Decoder(shape),
            question=question,
            answers=answers,
            pad=pad,
            temperature=config.sampler.temperature,
            readout=config.score.readout,
            chunk=config.score.chunk,
        ),
        mesh=make_mesh(config, shape, devices),
        sampler=SamplerOptions(
            config.sampler.group_size, config.sampler.max_thought, config.sampler.top_k, config.sampler.top_p
        ),
        samples_thoughts=objective.SAMPLES_THOUGHTS,
        votes=tuple(config.eval.votes),
        phases=phases,
        optimizer=train_step.make_optimizer(optim, config.optim.steps, len(phases)),
        micro_batches=config.optim.micro_batches,
        needs_reference=getattr(hyper, "kl", 0.0) > 0,
    )


def make_talk(config: ConfigDict, tokenizer) -> dialogue.Dialogue:
    """The config's dialogue in the tokenizer's tokens."""
    return dialogue.make_dialogue(
        tokenizer,
        judge_question=config.dialogue.judge_question,
        answer_question=config.dialogue.answer_question,
        answers=config.dialogue.answers,
        system=config.dialogue.system or None,
        date=config.dialogue.date,
    )


@hosts.by_first
def keep_architecture(kept: Path, folder: Path, tokenizer) -> None:
    """The small files of the starting model, so that an export needs nothing but the workdir."""
    partial = kept.with_name(f".{kept.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in ("config.json", "generation_config.json"):
        if (folder / name).exists():
            shutil.copy(folder / name, partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(kept, ignore_errors=True)
    os.replace(partial, kept)


def make_mesh(config: ConfigDict, shape: ModelConfig, devices=None) -> jax.sharding.Mesh:
    """The mesh of a run; UserError where the model or a batch cannot be spread over it."""
    mesh = sharding.make_mesh(config.mesh, devices)
    sharding.shardings(mesh, axis_names(shape))
    rows = {
        "data.batch_size / optim.micro_batches, two responses a pair,": config.data.batch_size
        // config.optim.micro_batches,
        "eval.batch_size, two responses a pair,": config.eval.batch_size,
    }
    for what, pairs in rows.items():
        sharding.check_divides(mesh, sharding.ROWS, 2 * pairs, what)
    return mesh


def check_lengths(config: ConfigDict, shape: ModelConfig, talk: dialogue.Dialogue) -> None:
    """UserError where the tokenizer or the longest dialogue does not fit the model."""
    largest = max(talk.tokenizer.get_vocab().values())
    if largest >= shape.vocab_size:
        raise UserError(
            f"the tokenizer has token ids up to {largest}, but the model's vocabulary ends at "
            f"{shape.vocab_size - 1}: set model.tokenizer to the model's own"
        )
    longest = config.data.buckets[-1] + config.sampler.max_thought + len(talk.question_ids) + 1
    if longest > shape.max_position:
        raise UserError(
            f"data.buckets and sampler.max_thought allow {longest} tokens, more than the model's "
            f"{shape.max_position}: lower one of them"
        )


def load_objective(config: ConfigDict):
    """The objective's module and its hyper-parameters, those keys of config.objective that it knows."""
    name = config.objective.name
    try:
        module = importlib.import_module(f"dwrl_jax.objectives.{name}")
    except ModuleNotFoundError as error:
        folder = Path(__file__).with_name("objectives")
        known = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
        raise UserError(f"objective.name={name!r}: choose one of {', '.join(known)}") from error
    fields = [field.name for field in dataclasses.fields(module.Hyper)]
    return module, module.Hyper(**{field: config.objective[field] for field in fields})


def batches(config: ConfigDict, source, talk, *, batch_size: int, shuffle: bool = True) -> data.Batches:
    return data.make_batches(
        source,
        batch_size=batch_size,
        buckets=config.data.buckets,
        pad_id=talk.pad_id,
        seed=config.seed,
        shuffle=shuffle,
        window=config.data.window,
        max_thought=config.sampler.max_thought,
    )


def training_source(config: ConfigDict, talk: dialogue.Dialogue, skipped: Path, supervised: bool):
    """Examples to train on, and a note about them. "world" and "world:demonstrations" have no end."""
    name = config.data.train
    if name in ("world", "world:demonstrations"):
        made = world.make_world(config.world.seed)
        count = config.optim.steps * config.data.batch_size
        split = "demonstrations" if name.endswith("demonstrations") else "train"
        clean = round(config.world.clean_share * count)
        source = world.WorldSource(made, split, talk, config.data.buckets[-1], clean)
        return source, f"{count} pairs of the built-in world, {split}"
    return tokenised(config, talk, name, config.data.train_split, skipped, supervised)


def held_out(config: ConfigDict, talk: dialogue.Dialogue, skipped: Path) -> tuple[Held, str]:
    """Held-out pairs, and a note about them. Of more than eval.pairs a fixed random part is taken."""
    made = None
    if config.data.eval == "world":
        made = world.make_world(config.world.seed)
        pairs = [world.pair(made, "eval", index) for index in range(config.eval.pairs)]
        examples, _ = data.tokenise(pairs, talk, config.data.buckets[-1], strict=True)
        note = f"{len(examples)} pairs of the built-in world, eval"
    else:
        examples, note = tokenised(config, talk, config.data.eval, config.data.eval_split, skipped, False)
        if len(examples) > config.eval.pairs:
            examples = some(examples, config.eval.pairs)
            note += f"; {len(examples)} of them drawn"
    curve = some(examples, config.eval.curve_pairs) if config.eval.curve_pairs else None

    def in_order(source):
        return batches(config, source, talk, batch_size=config.eval.batch_size, shuffle=False)

    curve_batches = in_order(curve) if curve else None
    return Held([row.pair for row in examples.rows], in_order(examples), curve_batches, made), note


def some(examples: data.Examples, count: int) -> data.Examples:
    """At most `count` examples, drawn at random but always the same, in their old order: files are often sorted."""
    drawn = np.random.default_rng(0).permutation(len(examples))[:count]
    return data.Examples(tuple(examples.rows[i] for i in sorted(drawn)))


def tokenised(
    config: ConfigDict, talk: dialogue.Dialogue, name: str, split: str, skipped: Path, supervised: bool
) -> tuple[data.Examples, str]:
    """Examples of a file or data set, and a note about them; rows that were left out are listed in `skipped`.

    Written thoughts and verdicts are for supervised training: elsewhere the target is the good answer.
    """
    pairs, malformed = read_pairs(name, split=split, strict=config.data.strict)
    if not supervised:
        pairs = [dataclasses.replace(pair, thoughts=None, verdicts=None) for pair in pairs]
    examples, fit = data.tokenise(pairs, talk, config.data.buckets[-1], strict=config.data.strict)
    left_out = malformed.rows + fit.skipped.rows
    hosts.by_first(skipped.write_text)("".join(f"{where}: {reason}\n" for where, reason in left_out))
    return examples, f"{name}: {len(pairs)} pairs read, {malformed.summary()}; {fit.summary()}"


def find_pair(source, pair_id: int) -> Pair:
    """The pair of an id, which in a finite source is not its row where other rows were left out."""
    if not hasattr(source, "__len__"):
        return source.examples(pair_id, pair_id + 1)[0].pair
    return next(row.pair for row in source.rows if row.pair_id == pair_id)
