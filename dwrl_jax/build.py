"""From a config to the parts of a run. With the entry points, the only files that read the config."""

import dataclasses
import functools
import importlib
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from dwrl_jax import data, dialogue, hosts, loop, objectives, records, sharding, tokenizers, train_step, world
from dwrl_jax.errors import UserError
from dwrl_jax.gpm import Judge, reward
from dwrl_jax.models import hf
from dwrl_jax.models.hf_config import NUMERICS, model_config, read_config, with_value_head
from dwrl_jax.models.presets import PRESETS, shrink
from dwrl_jax.models.transformer import Decoder, ModelConfig, axis_names
from dwrl_jax.pairs import Pair, read_pairs
from dwrl_jax.programs import Recipe
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
        return tokenizers.with_template(world.make_tokenizer())
    return tokenizers.load_tokenizer(config.model.tokenizer or folder)


def small_config(config: ConfigDict, tokenizer) -> dict:
    """config.json of the small model that model.preset names; UserError for a name that there is not."""
    name = config.model.preset
    if name not in PRESETS:
        raise UserError(f"model.preset={name!r}: choose one of {', '.join(PRESETS)}")
    return shrink(PRESETS[name], 1 + max(tokenizer.get_vocab().values()))


def build(config: ConfigDict, workdir: Path, folder: Path) -> tuple[loop.Run, Held | None, dict[str, str]]:
    """The parts of a run, its held-out pairs, and what is to be said about the data by "train" and "eval"."""
    tokenizer = load_tokenizer(config, folder)
    objective, _ = load_objective(config)
    numerics = {name: config.model[name] for name in NUMERICS}
    shape = model_config(architecture(config, folder, tokenizer), **numerics)
    talk = make_talk(config, tokenizer, is_pairwise(objective), bare=shape.value_head)
    check_lengths(config, shape, talk)
    supervised = objective.THOUGHTS == "written"
    source, train_note = training_source(config, talk, workdir / "skipped_train.txt", supervised)
    if source.examples(0, 1)[0].thoughts is None and supervised:
        raise UserError(f"objective.name={config.objective.name!r} needs written thoughts; data.train has none")
    held, eval_note = held_out(config, talk, workdir / "skipped_eval.txt") if config.eval.pairs else (None, "none")
    parts = recipe(config, shape, talk.question_ids, talk.answer_ids, talk.pad_id)
    run = loop.Run(
        **vars(parts),
        workdir=workdir,
        steps=config.optim.steps,
        load_params=lambda: load_start(config, folder, shape, parts.mesh),
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
        packing=config.optim.packing,
        profile=config.profile,
    )
    return run, held, {"train": train_note, "eval": eval_note}


def recipe(config: ConfigDict, shape: ModelConfig, question, answers, pad: int, devices=None) -> Recipe:
    """What the programs are made of, for the ids of the second question, of both answers and of padding."""
    objective, hyper = load_objective(config)
    phases, value_scores = objective.phases(hyper), reward
    if hasattr(objective, "value_scores"):
        value_scores = functools.partial(objective.value_scores, hyper=hyper)
    optim = train_step.OptimizerOptions(
        **{field.name: config.optim[field.name] for field in dataclasses.fields(train_step.OptimizerOptions)}
    )
    return Recipe(
        seed=config.seed,
        judge=Judge(
            model=Decoder(shape),
            question=question,
            answers=answers,
            pad=pad,
            temperature=config.sampler.temperature,
            readout="value" if shape.value_head else config.score.readout,
            chunk=config.score.chunk,
            value_scores=value_scores,
        ),
        mesh=make_mesh(config, shape, devices),
        sampler=SamplerOptions(
            config.sampler.group_size,
            config.sampler.max_thought,
            config.sampler.top_k,
            config.sampler.top_p,
            verdicts=objective.VERDICTS,
            batch_size=config.sampler.batch_size,
        ),
        thoughts=objective.THOUGHTS,
        pairwise=is_pairwise(objective),
        votes=tuple(config.eval.votes),
        phases=phases,
        optimizer=train_step.make_optimizer(optim, config.optim.steps, len(phases)),
        micro_batches=config.optim.micro_batches,
        needs_reference=getattr(hyper, "kl", 0.0) > 0,
        empty_thought=getattr(objective, "EMPTY_THOUGHT", False),
        margins=config.objective.bradley_terry != "regular",
    )


def architecture(config: ConfigDict, folder: Path, tokenizer) -> dict:
    """config.json of the model to train: the starting model's, with a value head where the objective wants one."""
    hf_config = read_config(folder)
    wanted, given = value_outputs(config), model_config(hf_config).value_head
    if given and given != wanted:
        like = f"preference_embedding with objective.planes={given / 2:g}" if given > 1 else "bt"
        raise UserError(f"{folder}: a reward model with a value head; objective.name={like} alone goes on from it")
    if wanted:
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return with_value_head(hf_config, pad, wanted)
    return hf_config


def value_outputs(config: ConfigDict) -> int:
    """How many outputs the objective wants of a value head; 0 for none."""
    objective, hyper = load_objective(config)
    return objective.value_outputs(hyper) if hasattr(objective, "value_outputs") else 0


def load_start(config: ConfigDict, folder: Path, shape: ModelConfig, mesh: jax.sharding.Mesh):
    """The starting model's parameters; a language model gets a fresh value head where `shape` has one."""
    places = sharding.shardings(mesh, axis_names(shape))
    given = dataclasses.replace(shape, value_head=model_config(read_config(folder)).value_head)
    if given == shape:
        return hf.load_params(folder, shape, shardings=places)
    params = hf.load_params(folder, given, shardings=sharding.shardings(mesh, axis_names(given)))
    return hf.with_value_head(params, shape, config.seed, config.objective.head_init, shardings=places)


def make_talk(config: ConfigDict, tokenizer, pairwise: bool, bare: bool = False) -> dialogue.Dialogue:
    """The config's dialogue about one response, or the one about two; `bare` has no question behind it."""
    names = (
        ("pair_question", "label_question", "labels") if pairwise else ("judge_question", "answer_question", "answers")
    )
    judge_question, answer_question, answers = (config.dialogue[name] for name in names)
    talk = dialogue.make_dialogue(
        tokenizer,
        judge_question=judge_question,
        answer_question=answer_question,
        answers=answers,
        system=config.dialogue.system or None,
        date=config.dialogue.date,
        turn=config.dialogue.turn if pairwise else None,
    )
    return dataclasses.replace(talk, bare=bare)


@hosts.by_first
def keep_architecture(kept: Path, hf_config: dict, folder: Path, tokenizer) -> None:
    """The small files of the model to train, so that an export needs nothing but the workdir; `hf_config` is its
    config.json, the others are the starting model's."""
    partial = kept.with_name(f".{kept.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    records.write_json(partial / "config.json", hf_config)
    if (folder / "generation_config.json").exists():
        shutil.copy(folder / "generation_config.json", partial)
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
    if config.sampler.batch_size:
        rows["sampler.batch_size, two responses a pair,"] = config.sampler.batch_size
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
    if name not in objectives.names():
        raise UserError(f"objective.name={name!r}: choose one of {', '.join(objectives.names())}")
    module = importlib.import_module(f"dwrl_jax.objectives.{name}")
    if module.THOUGHTS == "none" and (config.sampler.group_size, *config.eval.votes) != (1, 1):
        raise UserError(
            f"objective.name={name!r} judges without thoughts: give sampler.group_size=1 and eval.votes=(1,), "
            f"as --config=FILE:{name} does"
        )
    if is_pairwise(module) and config.score.readout != "choices":
        raise UserError(
            f"score.readout={config.score.readout!r}: {name} needs 'choices', where the two labels of a comparison "
            "have probability 1 together"
        )
    fields = [field.name for field in dataclasses.fields(module.Hyper)]
    if config.objective.bradley_terry != "regular" and "bradley_terry" not in fields:
        raise UserError(
            f"objective.bradley_terry={config.objective.bradley_terry!r}: {name} makes nothing of margins; set it to "
            "'regular'"
        )
    return module, module.Hyper(**{field: config.objective[field] for field in fields})


def is_pairwise(objective) -> bool:
    """Whether the sides of an objective are the two orders of a pair's responses, shown together."""
    return getattr(objective, "PAIRWISE", False)


def batches(
    config: ConfigDict, source, talk, *, batch_size: int, shuffle: bool = True, margins: bool = False
) -> data.Batches:
    return data.make_batches(
        source,
        batch_size=batch_size,
        buckets=config.data.buckets,
        pad_id=talk.pad_id,
        seed=config.seed,
        shuffle=shuffle,
        window=config.data.window,
        max_thought=config.sampler.max_thought,
        margins=margins,
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
        if split == "demonstrations" and config.world.pairwise_share:
            source = with_comparisons(config, source)
        return source, f"{count} pairs of the built-in world, {split}"
    return tokenised(config, talk, name, config.data.train_split, skipped, supervised)


def with_comparisons(config: ConfigDict, source: world.WorldSource) -> world.WorldSource:
    """The source with a share of pairwise dialogues; UserError where they are not closed by the same tokens."""
    talk, pairwise = source.dialogue, make_talk(config, source.dialogue.tokenizer, pairwise=True)
    if (pairwise.question_ids, pairwise.answer_ids) != (talk.question_ids, talk.answer_ids):
        raise UserError(
            "world.pairwise_share: both kinds of dialogue must end alike; set dialogue.label_question and "
            "dialogue.labels to dialogue.answer_question and dialogue.answers"
        )
    return dataclasses.replace(source, pairwise=pairwise, pairwise_share=config.world.pairwise_share)


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
