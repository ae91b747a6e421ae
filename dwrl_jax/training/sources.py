"""From a config to the pairs of a run: dialogue, source, tokens and batches."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from dwrl_jax import dialogue
from dwrl_jax.core import files, hosts
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.names import CHECKPOINTS
from dwrl_jax.data import token_file, world
from dwrl_jax.data.batches import Batches, make_batches
from dwrl_jax.data.containers import identity
from dwrl_jax.data.examples import Examples, tokenise
from dwrl_jax.data.pairs import Pair, Skipped, drawn, read_pairs, repeats, skip

LOUD = 0.1  # share of lost rows above which a run warns


class Needs(NamedTuple):
    """The optional columns that an objective reads: written thoughts, and how much better the chosen response is."""

    thoughts: bool = False
    margins: bool = False


NOTHING = Needs()


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
        control=config.dialogue.control,
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


def training_source(config: ConfigDict, talk: dialogue.Dialogue, workdir: Path, needs: Needs):
    """Examples to train on, and a note about them. The sources "world" and "world:demonstrations" have no end."""
    name = config.data.train
    if name in ("world", "world:demonstrations"):
        made = world.make_world(config.world.seed, config.world.name)
        count = config.optim.steps * config.data.batch_size
        split = "demonstrations" if name.endswith("demonstrations") else "train"
        clean = round(config.world.clean_share * count)
        source = world.WorldSource(made, split, talk, config.data.buckets[-1], clean)
        if split == "demonstrations" and config.world.pairwise_share:
            source = with_comparisons(config, source)
        return source, f"{count} pairs of the built-in world {config.world.name!r}, {split}"
    return tokenised(config, talk, "train", workdir, needs)


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
    if config.data.eval in ("world", "world:alike"):
        made, split = world.make_world(config.world.seed, config.world.name), config.data.eval.partition(":")[2]
        pairs = [world.pair(made, split or "eval", index) for index in range(config.eval.pairs)]
        examples, _ = tokenise(pairs, talk, config.data.buckets[-1], strict=True)
        note = f"{len(examples)} pairs of the built-in world {config.world.name!r}, {split or 'eval'}"
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
    config: ConfigDict, talk: dialogue.Dialogue, part: str, workdir: Path, needs: Needs = NOTHING
) -> tuple[Examples, str]:
    """Examples of the file or data set `data.train` or `data.eval`, and a note about them.

    The workdir keeps them. They are made again only when the file, the texts, the tokenizer, the longest prefix or the
    draw changes. The first process decides, and then each process tokenises its share.
    """
    path = workdir / "tokens" / f"{part}.npz"
    key = _key(config, talk, part, needs) if hosts.first() else None
    kept = token_file.read(path, key) if hosts.first() else None
    if not hosts.of_first(kept is not None):
        made = _tokenise(config, talk, part, workdir, needs)
        hosts.attempt(_check_unchanged, config.data[part], part, workdir, made[0])
        hosts.attempt(token_file.write, path, key, *made)
        return made
    kept = kept or token_file.read(path)
    if kept is None:
        raise UserError(f"{path} cannot be read here, but by the first process: all need the same workdir")
    return kept


def _check_unchanged(name: str, part: str, workdir: Path, made: Examples) -> None:
    """UserError if a run that has begun would go on with other pairs. The time of a file alone changes nothing."""
    used = workdir / CHECKPOINTS if part == "train" else workdir / "eval" / "base.jsonl"
    kept = token_file.read(workdir / "tokens" / f"{part}.npz") if used.exists() else None
    if kept is None:
        return

    def content(row):
        return row and (row.pair_id, dataclasses.replace(row.pair, where=""))

    for old, new in itertools.zip_longest(kept[0].rows, made.rows):
        if content(old) != content(new):
            raise UserError(
                f"{name}: data.{part} was changed after the run in {workdir} began ({(new or old).pair.where} is the "
                "first other pair): put the old file back, or choose another --workdir"
            )


def _draw(config: ConfigDict, part: str) -> dict[str, int]:
    """The number of drawn pairs (0 for all) and the seed of the draw. Held-out pairs are the same for every run."""
    if part == "train":
        return {"count": config.data.pairs, "seed": config.seed}
    return {"count": config.eval.pairs, "seed": 0}


def _key(config: ConfigDict, talk: dialogue.Dialogue, part: str, needs: Needs) -> str:
    name, limit = config.data[part], config.data.buckets[-1]
    choices = [config.data[f"{part}_split"], config.data.strict, limit, needs, _draw(config, part), config.data.format]
    return token_file.key_of(identity(name), choices, dialogue.fingerprint(talk))


def _tokenise(
    config: ConfigDict, talk: dialogue.Dialogue, part: str, workdir: Path, needs: Needs
) -> tuple[Examples, str]:
    """The same, made anew. Rows that were left out are listed in workdir/skipped_PART.txt.

    Only supervised training uses written thoughts and verdicts: elsewhere the target is the good answer.
    """
    name, split, strict = config.data[part], config.data[f"{part}_split"], config.data.strict
    draw = _draw(config, part)
    pairs, reading = read_pairs(name, split=split, strict=strict, format=config.data.format, **draw)
    count, again = len(pairs), repeats(pairs)
    pairs, unfit = _with_needs(pairs, needs, strict)
    examples, fit = tokenise(pairs, talk, config.data.buckets[-1], strict=strict, together=True)
    left_out = Skipped(reading.rows + unfit.rows + fit.skipped.rows)
    list_of_rows = "".join(f"{where}: {reason}\n" for where, reason in left_out.rows)
    hosts.attempt(files.write_text, workdir / f"skipped_{part}.txt", list_of_rows)
    how = f" by seed {draw['seed']}" if reading.undrawn else ""
    note = (
        f"{name}: {count} pairs read{how}, {reading.summary()}; {fit.summary()}; {reading.remarks()}; {again.summary()}"
    )
    return examples, note + _loss(config, name, left_out, fit.kept)


def _with_needs(pairs: list[Pair], needs: Needs, strict: bool) -> tuple[list[Pair], Skipped]:
    """The pairs that have what the objective reads, without what it does not read, and the pairs that lack it.

    If no pair has it, all are returned: then the file is not of this kind, and the caller's message says so.
    """
    skipped = Skipped()
    for needed, reason, has in (
        (needs.thoughts, "no written thoughts", lambda pair: pair.thoughts is not None),
        (needs.margins, "no margin from 0 on", lambda pair: pair.margin is not None and pair.margin >= 0),
    ):
        if needed and any(map(has, pairs)):
            for pair in pairs:
                if not has(pair):
                    skip(skipped, pair.where, reason, strict)
            pairs = list(filter(has, pairs))
    if not needs.thoughts:
        written = any(pair.thoughts or pair.verdicts for pair in pairs)
        pairs = [dataclasses.replace(pair, thoughts=None, verdicts=None) for pair in pairs] if written else pairs
    return pairs, skipped


def _loss(config: ConfigDict, name: str, left_out: Skipped, kept: int) -> str:
    """A warning if more than a tenth of the rows is left out. UserError if it is more than data.most_lost."""
    lost, total = len(left_out.rows), len(left_out.rows) + kept
    if lost <= LOUD * total:
        return ""
    said = f"{lost} of {total} rows ({100 * lost / total:.0f} %) of {name} are left out"
    if lost > config.data.most_lost * total:
        reasons = ", ".join(f"{reason} {count}" for reason, count in left_out.counts.most_common(4))
        raise UserError(f"{said} ({reasons}): correct the file, or set data.most_lost to go on without them")
    return f"\nWARNING: {said}; see the list in skipped_*.txt"


def find_pair(source, pair_id: int) -> Pair:
    """The pair of an id. In a finite source the id is not the row's number where other rows were left out."""
    if not hasattr(source, "__len__"):
        return source.examples(pair_id, pair_id + 1)[0].pair
    return next(row.pair for row in source.rows if row.pair_id == pair_id)
