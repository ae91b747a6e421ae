"""From a config to the pairs of a run: dialogue, source, tokens and batches."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from dwrl_jax import dialogue
from dwrl_jax.core import files, hosts
from dwrl_jax.core.errors import UserError
from dwrl_jax.data import token_file, world
from dwrl_jax.data.batches import Batches, make_batches
from dwrl_jax.data.containers import identity
from dwrl_jax.data.examples import Examples, tokenise
from dwrl_jax.data.pairs import Pair, drawn, read_pairs


class Held(NamedTuple):
    """Held-out pairs, their batches in a fixed order, the batches of the curve, and the built-in world if used."""

    pairs: list[Pair]
    batches: Batches
    curve: Batches | None
    world: world.World | None


def make_talk(config: ConfigDict, tokenizer, kind: str, ends: tuple[int, ...] = ()) -> dialogue.Dialogue:
    """The config's dialogue with this kind of question. `ends` are the end tokens that the model folder names."""
    judge_question, answer_question, answers = (config.dialogue[key] for key in dialogue.KEYS[kind])
    texts = dialogue.Texts(
        judge_question=judge_question,
        answer_question=answer_question,
        answers=answers,
        system=config.dialogue.system,
        date=config.dialogue.date,
        turn=config.dialogue.turn if kind == "label" else None,
        kind=kind,
        layout=config.dialogue.layout,
        template_arguments=json.loads(config.dialogue.template_arguments or "{}"),
    )
    return dialogue.make_dialogue(tokenizer, texts, ends)


def batches(
    config: ConfigDict, source, talk, *, batch_size: int, shuffle: bool = True, margins: bool = False
) -> Batches:
    return make_batches(
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


def training_source(config: ConfigDict, talk: dialogue.Dialogue, workdir: Path, supervised: bool):
    """Examples to train on, and a note about them. The sources "world" and "world:demonstrations" have no end."""
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
    return tokenised(config, talk, "train", workdir, supervised)


def with_comparisons(config: ConfigDict, source: world.WorldSource) -> world.WorldSource:
    """The source with a share of pairwise dialogues. UserError where both kinds do not end with the same tokens."""
    talk, pairwise = source.dialogue, make_talk(config, source.dialogue.tokenizer, "label")
    if (pairwise.question_ids, pairwise.answer_ids) != (talk.question_ids, talk.answer_ids):
        raise UserError(
            "world.pairwise_share: both kinds of dialogue must end alike; set dialogue.label_question and "
            "dialogue.labels to dialogue.answer_question and dialogue.answers"
        )
    return dataclasses.replace(source, pairwise=pairwise, pairwise_share=config.world.pairwise_share)


def held_out(config: ConfigDict, talk: dialogue.Dialogue, workdir: Path) -> tuple[Held, str]:
    """Held-out pairs, at most eval.pairs of them, and a note about them."""
    made = None
    if config.data.eval == "world":
        made = world.make_world(config.world.seed)
        pairs = [world.pair(made, "eval", index) for index in range(config.eval.pairs)]
        examples, _ = tokenise(pairs, talk, config.data.buckets[-1], strict=True)
        note = f"{len(examples)} pairs of the built-in world, eval"
    else:
        examples, note = tokenised(config, talk, "eval", workdir)
    curve = part_of(examples, config.eval.curve_pairs) if config.eval.curve_pairs else None

    def in_order(source):
        return batches(config, source, talk, batch_size=config.eval.batch_size, shuffle=False)

    curve_batches = in_order(curve) if curve else None
    return Held([row.pair for row in examples.rows], in_order(examples), curve_batches, made), note


def part_of(examples: Examples, count: int) -> Examples:
    """At most `count` examples in their order: a random draw, always the same."""
    return Examples(tuple(examples.rows[i] for i in drawn(len(examples), count, seed=0)))


def tokenised(
    config: ConfigDict, talk: dialogue.Dialogue, part: str, workdir: Path, supervised: bool = False
) -> tuple[Examples, str]:
    """Examples of the file or data set `data.train` or `data.eval`, and a note about them.

    The workdir keeps them. They are made again only when the file, the texts, the tokenizer, the longest prefix or the
    draw changes. The first process decides, and then each process tokenises its share.
    """
    path = workdir / "tokens" / f"{part}.npz"
    key = _key(config, talk, part, supervised) if hosts.first() else None
    kept = token_file.read(path, key) if hosts.first() else None
    if not hosts.of_first(kept is not None):
        made = _tokenise(config, talk, part, workdir, supervised)
        hosts.attempt(token_file.write, path, key, *made)
        return made
    kept = kept or token_file.read(path)
    if kept is None:
        raise UserError(f"{path} cannot be read here, but by the first process: all need the same workdir")
    return kept


def _draw(config: ConfigDict, part: str) -> dict[str, int]:
    """The number of drawn pairs (0 for all) and the seed of the draw. Held-out pairs are the same for every run."""
    if part == "train":
        return {"count": config.data.pairs, "seed": config.seed}
    return {"count": config.eval.pairs, "seed": 0}


def _key(config: ConfigDict, talk: dialogue.Dialogue, part: str, supervised: bool) -> str:
    name, limit = config.data[part], config.data.buckets[-1]
    choices = [config.data[f"{part}_split"], config.data.strict, limit, supervised, _draw(config, part)]
    return token_file.key_of(identity(name), choices, dialogue.fingerprint(talk))


def _tokenise(
    config: ConfigDict, talk: dialogue.Dialogue, part: str, workdir: Path, supervised: bool
) -> tuple[Examples, str]:
    """The same, made anew. Rows that were left out are listed in workdir/skipped_PART.txt.

    Only supervised training uses written thoughts and verdicts: elsewhere the target is the good answer.
    """
    name, split, strict = config.data[part], config.data[f"{part}_split"], config.data.strict
    draw = _draw(config, part)
    pairs, malformed = read_pairs(name, split=split, strict=strict, **draw)
    if not supervised:
        pairs = [dataclasses.replace(pair, thoughts=None, verdicts=None) for pair in pairs]
    examples, fit = tokenise(pairs, talk, config.data.buckets[-1], strict=strict, together=True)
    left_out = malformed.rows + fit.skipped.rows
    list_of_rows = "".join(f"{where}: {reason}\n" for where, reason in left_out)
    hosts.attempt(files.write_text, workdir / f"skipped_{part}.txt", list_of_rows)
    how = f" by seed {draw['seed']}" if malformed.undrawn else ""
    return examples, f"{name}: {len(pairs)} pairs read{how}, {malformed.summary()}; {fit.summary()}"


def find_pair(source, pair_id: int) -> Pair:
    """The pair of an id. In a finite source the id is not the row's number where other rows were left out."""
    if not hasattr(source, "__len__"):
        return source.examples(pair_id, pair_id + 1)[0].pair
    return next(row.pair for row in source.rows if row.pair_id == pair_id)
