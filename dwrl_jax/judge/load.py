"""Load a judge that can score, from a run's workdir, an export, or any Hugging Face folder or hub id."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from dwrl_jax import objectives
from dwrl_jax.core import sharding
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.names import ARCHITECTURE, BEST, CARD, CHECKPOINTS
from dwrl_jax.core.terminal import say
from dwrl_jax.dialogue import Dialogue, make_dialogue
from dwrl_jax.dialogue.tokenizers import check_vocabulary, end_ids, load_tokenizer
from dwrl_jax.judge.card import JudgeCard, read_card
from dwrl_jax.judge.judge import Judge, question_kind
from dwrl_jax.models import frozen, hf, orbax_files
from dwrl_jax.models.families import model_config, read_config
from dwrl_jax.models.places import abstract_params, abstract_trained, widest_mesh
from dwrl_jax.models.transformer import Decoder, ModelConfig, axis_names


@dataclasses.dataclass(frozen=True)
class LoadedJudge:
    """A judge with its weights. `start` are the weights of the model that its training started from, or None.

    A judge needs `start` only if it reads that model's thoughts.
    """

    judge: Judge
    params: Any
    start: Any
    card: JudgeCard
    dialogue: Dialogue
    mesh: jax.sharding.Mesh
    name: str  # where the weights come from


def load(
    model: str | Path,
    *,
    checkpoint: str = "last",
    card: JudgeCard | None = None,
    start: str | Path | None = None,
    mesh: Mapping[str, int] | None = None,
) -> LoadedJudge:
    """The judge in a folder or of a hub id.

    `checkpoint` chooses a checkpoint of a workdir: "last", "best" or a step. `card` replaces the folder's judge.json.
    Without a card and a judge.json, a language model is asked as `JudgeCard()` says, and a reward model gives its
    reward. `start` is the folder of the starting model, for a judge that reads the starting model's thoughts, and for a
    workdir of adapters whose model is no longer where it was. `mesh`
    gives the sizes of `sharding.AXES`; without it the weights are split over all devices. UserError if the model
    cannot be a judge.
    """
    workdir = Path(model).expanduser()
    trained = (workdir / ARCHITECTURE).is_dir()
    folder = workdir / ARCHITECTURE if trained else hf.resolve(str(model))
    given = card is None and (folder / CARD).is_file()
    if trained and card is None and not given:
        raise UserError(f"{folder}: no {CARD}; go on with the run once, by its own command, and it is written")
    card = read_card(folder / CARD) if given else card
    hf_config = read_config(folder) if trained else _described(folder)
    tokenizer = load_tokenizer(folder if trained else hf.tokenizer_of(folder))
    outputs = model_config(hf_config).value_head
    card = card or (JudgeCard(kind="reward", thoughts="none") if outputs else JudgeCard())
    _check(folder, card, outputs)
    shape = model_config(hf_config, dtype=card.dtype)
    check_vocabulary(tokenizer, shape.vocab_size)
    places = _make_mesh(mesh, shape)
    texts = dataclasses.replace(card.texts, kind=question_kind(card.kind))
    dialogue = make_dialogue(tokenizer, texts, end_ids(folder))
    name = str(folder)
    if trained:
        step = orbax_files.choose(workdir / CHECKPOINTS, checkpoint, BEST)
        orbax_files.check(step)
        name, params = str(step), _trained(workdir, step, shape, places, start)
    else:
        params = _from_folder(folder, shape, places)
    return LoadedJudge(
        judge=make_judge(card, shape, dialogue),
        params=params,
        start=_start(card, start, shape, places, workdir if trained else None),
        card=card,
        dialogue=dialogue,
        mesh=places,
        name=name if start is None else f"{name}, thoughts of {start}",
    )


def make_judge(card: JudgeCard, shape: ModelConfig, dialogue: Dialogue) -> Judge:
    """The judge of a card. Only an embedding needs `value_scores`: its score compares a response with another."""
    value_scores = None
    if card.kind == "embedding":
        objective = objectives.load(card.objective)
        value_scores = functools.partial(objective.value_scores, hyper=objective.hyper(**card.hyper))
    return Judge(
        model=Decoder(shape),
        question=dialogue.question_ids,
        answers=dialogue.answer_ids,
        pad=dialogue.pad_id,
        kind=card.kind,
        temperature=card.temperature,
        readout=card.readout,
        chunk=card.chunk,
        value_scores=value_scores,
        stops=dialogue.stop_ids,
    )


def _check(folder: Path, card: JudgeCard, outputs: int) -> None:
    if (card.kind in objectives.VALUE_KINDS) != (outputs > 0):
        has = f"a value head with {outputs} outputs" if outputs else "no value head"
        raise UserError(f"{folder}: a judge of kind {card.kind!r} cannot be made of a model with {has}")
    if card.kind == "reward" and outputs != 1:
        raise UserError(f"{folder}: {outputs} outputs; a reward has a single output, and an embedding needs its {CARD}")
    if card.kind == "embedding" and card.objective not in objectives.names():
        raise UserError(f"{folder}: {CARD} must name the objective that compares embeddings, not {card.objective!r}")


def _described(folder: Path) -> dict:
    """config.json of a folder's model in plain form. What was chosen in reading the folder is printed."""
    model = hf.describe(folder)
    for note in model.notes:
        say(f"note: {note}")
    return model.hf_config


def _from_folder(folder: Path, shape: ModelConfig, mesh: jax.sharding.Mesh):
    return hf.load_params(folder, shape, shardings=sharding.shardings(mesh, axis_names(shape)))


def _trained(workdir: Path, step: Path, shape: ModelConfig, mesh: jax.sharding.Mesh, start: str | Path | None):
    """The parameters of a checkpoint. Adapters are merged into their model, which `start` or the workdir names."""
    kept = frozen.read(workdir / ARCHITECTURE)
    if kept is None:
        return orbax_files.load_params(step, abstract_params(shape, mesh))
    adapters = orbax_files.load_params(step, abstract_trained(shape, kept.settings, mesh))
    return frozen.merge(kept, frozen.folder_of(kept, workdir, start), adapters, shape, mesh)


def _start(
    card: JudgeCard, start: str | Path | None, shape: ModelConfig, mesh: jax.sharding.Mesh, workdir: Path | None
):
    if card.thoughts != "start":
        return None
    kept = workdir and frozen.read(workdir / ARCHITECTURE)
    if kept:
        folder, kept_shape = frozen.folder_of(kept, workdir, start), frozen.shape_of(shape, kept.settings)
        if kept_shape.quantised:
            return frozen.whole_start(folder, shape, kept.settings, mesh)
        return _from_folder(folder, kept_shape, mesh)
    if start is None:
        raise UserError(
            "this judge reads thoughts of the model that its training started from: give its folder, --start"
        )
    return _from_folder(hf.resolve(str(start)), shape, mesh)


def _make_mesh(sizes: Mapping[str, int] | None, shape: ModelConfig) -> jax.sharding.Mesh:
    if sizes is None:
        return widest_mesh(shape)
    mesh = sharding.make_mesh({**dict.fromkeys(sharding.AXES, 1), **sizes})
    sharding.shardings(mesh, axis_names(shape))
    return mesh
