"""The files of a run: metrics.jsonl, thoughts.jsonl, results.json, and eval/NAME.jsonl with scores of held-out pairs.

A run also has not_finite.jsonl if updates were skipped: the pairs of these updates.

Each file has one writer and one reader. Tensorboard gets the same scalars and texts. A line holds its step, so that a
run that goes on drops the lines past its checkpoint. The first of several processes writes. Readers raise UserError,
which names the file and the missing or malformed line or key.
"""

import collections
import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorboardX
from jaxtyping import Float, Int
from tensorboardX.proto.summary_pb2 import Summary

from dwrl_jax import objectives
from dwrl_jax.core import files, hosts
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.types import PreferenceBatch, ThoughtBatch
from dwrl_jax.data.pairs import Pair

METRICS, THOUGHTS, RESULTS, NOT_FINITE = "metrics.jsonl", "thoughts.jsonl", "results.json", "not_finite.jsonl"
SKIPPED = "train/skipped_updates"  # number of updates of a step that were skipped
MAX_PAIRS = 64  # pairs of a step that are kept while thoughts are read
Series = dict[str, tuple[Int[np.ndarray, " N"], Float[np.ndarray, " N"]]]  # metric -> (steps, values)
SIDES = ("chosen", "rejected")


@hosts.by_first
def rewind(workdir: Path, step: int) -> None:
    """Drop the lines of later steps than `step`: they will be written again."""
    for name in (METRICS, THOUGHTS, NOT_FINITE):
        if (workdir / name).exists():
            files.keep_lines(workdir / name, lambda row: row["step"] <= step, needs="step")


@hosts.by_first
def drop_thoughts(workdir: Path, step: int, split: str) -> None:
    """Drop the thoughts of a step and split: a process may have been killed between them and their scores."""
    if (workdir / THOUGHTS).exists():
        files.keep_lines(workdir / THOUGHTS, lambda row: (row["step"], row.get("split")) != (step, split), needs="step")


def open_tensorboard(workdir: Path, step: int) -> tensorboardX.SummaryWriter | contextlib.nullcontext:
    """The writer of scalars and texts from `step` on. Processes that do not write get None from it."""
    if not hosts.first():
        return contextlib.nullcontext()
    return tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)


@hosts.by_first
def write_metrics(workdir: Path, board: tensorboardX.SummaryWriter, step: int, metrics: dict[str, float]) -> None:
    """Write one line of metrics.jsonl, and the same numbers as the scalars of one event."""
    files.append_lines(workdir / METRICS, [{"step": step, **metrics}])
    values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
    board.file_writer.add_summary(Summary(value=values), step)


def skipped_in_row(workdir: Path) -> int:
    """Number of steps at the end of metrics.jsonl, one after another, with a skipped update."""
    in_row = 0
    for row in read_metrics(workdir) if (workdir / METRICS).exists() else ():
        in_row = in_row + 1 if row.get(SKIPPED) else 0
    return in_row


@hosts.by_first
def write_not_finite(
    workdir: Path, step: int, phase: str, figures: dict[str, float], pairs: list[tuple[int, Pair]]
) -> None:
    """Write a line of not_finite.jsonl about each pair of a skipped update. `figures` are those that are not finite."""
    named = {name: str(value) for name, value in figures.items()}
    files.append_lines(
        workdir / NOT_FINITE,
        (
            {"step": step, "phase": phase, "pair": number, "where": pair.where, "figures": named}
            | {"prompt": list(pair.prompt), "chosen": pair.chosen, "rejected": pair.rejected}
            for number, pair in pairs
        ),
    )


def read_metrics(workdir: Path) -> Iterator[dict]:
    """The steps of metrics.jsonl in the order of the file."""
    return files.read_lines(workdir / METRICS, needs="step")


def last_metrics(workdir: Path, count: int) -> Iterable[dict]:
    """The last steps of metrics.jsonl, at most `count`. Empty without a file."""
    return collections.deque(read_metrics(workdir) if (workdir / METRICS).exists() else (), maxlen=count)


def read_series(workdir: Path) -> Series:
    """Each metric with its steps in order; the last line of a step counts. Empty without a file."""
    return series_of(read_metrics(workdir) if (workdir / METRICS).exists() else ())


def series_of(rows: Iterable[dict]) -> Series:
    """The same of rows of metrics.jsonl."""
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                values.setdefault(name, {})[row["step"]] = float(value)
    return {name: (np.array(sorted(at)), np.array([at[s] for s in sorted(at)])) for name, at in values.items()}


def total(workdir: Path, name: str) -> float:
    """Sum of a metric over all steps."""
    return sum(row.get(name, 0.0) for row in read_metrics(workdir))


def thought_rows(
    batch: PreferenceBatch,
    thoughts: ThoughtBatch,
    log_scores: Float[np.ndarray, "B S G"],
    weights: dict[str, np.ndarray],
    *,
    pairs: int,
    end: int,
    stops: tuple[int, ...] = (),
    decode: Callable[[np.ndarray], str],
    describe: Callable[[int], Pair],
    rewards: bool = False,
) -> list[dict]:
    """Rows of thoughts.jsonl about the first `pairs` pairs of a batch, from arrays on the host.

    `describe` gives the pair of an id. Scores and weights are those under the policy that sampled. "score" is the
    probability exp(log score). Where the judge gives `rewards`, which have no bound, "reward" is the log score itself.
    A side of a pairwise judge shows its own response first, and its score is that of the right label. A thought that
    stopped by one of the tokens `stops` has that token as "other_end".
    """
    rows = []
    for b in np.flatnonzero(batch.valid)[:pairs]:
        pair = describe(int(batch.pair_id[b]))
        for s, side in enumerate(SIDES):
            for g in range(log_scores.shape[2]):
                ids = thoughts.thought[b, s, g, : thoughts.thought_len[b, s, g]]
                ended, other, log_score = ids[-1] == end, ids[-1] in stops, float(log_scores[b, s, g])
                rows.append(
                    {
                        "pair": int(batch.pair_id[b]),
                        "side": side,
                        "sample": g,
                        "prompt": list(pair.prompt),
                        "response": getattr(pair, side),
                        "thought": decode(ids[:-1] if ended or other else ids),
                        "cut_off": bool(not (ended or other)),
                    }
                    | ({"other_end": decode(ids[-1:])} if other else {})
                    | ({"reward": log_score} if rewards else {"score": float(np.exp(log_scores[b, s, g]))})
                    | {name: float(weight[(b, s, g)[: weight.ndim]]) for name, weight in weights.items()}
                )
    return rows


@hosts.by_first
def write_thoughts(workdir: Path, board: tensorboardX.SummaryWriter, rows: list[dict], step: int) -> None:
    """Write lines of thoughts.jsonl, and the same as text for tensorboard."""
    files.append_lines(workdir / THOUGHTS, rows)

    def line(row):
        name = "reward" if "reward" in row else "score"
        weight = f"weight {row['dual_weight']:+.3f} " if "dual_weight" in row else ""
        return f"    {row['side']:8} {name} {row[name]:.3f} {weight}{row['thought']}"

    lines = [line(row) for row in rows]
    board.add_text("thoughts", "\n".join(lines), step)


def read_thoughts(workdir: Path) -> dict[int, dict[int, dict]]:
    """{step: {pair: {(side, sample): row}}} of the first and the last logged step.

    The pairs are held-out ones, unless only the training pairs have two steps. At most MAX_PAIRS pairs of two steps are
    in memory for each split, whatever the size of the file. Empty without a file.
    """
    splits: dict[str, dict[int, dict[int, dict]]] = {}
    path = workdir / THOUGHTS
    for row in files.read_lines(path, needs="step") if path.exists() else ():
        steps, step = splits.setdefault(row.get("split", "train"), {}), row["step"]
        if step not in steps:
            if len(steps) == 2 and min(steps) < step < max(steps):
                continue
            if len(steps) == 2:
                del steps[max(steps) if step > max(steps) else min(steps)]
            steps[step] = {}
        if row["pair"] in steps[step] or len(steps[step]) < MAX_PAIRS:
            steps[step].setdefault(row["pair"], {})[row["side"], row["sample"]] = row
    return splits[max(splits, key=lambda name: (len(splits[name]), name == "eval"))] if splits else {}


@hosts.by_first
def write_scores(path: Path, ids: np.ndarray, log_scores: np.ndarray) -> None:
    """Write one line per held-out pair: its id and the log score of every vote, [chosen, rejected]. Atomic."""
    path.parent.mkdir(exist_ok=True)
    pairs = zip(ids.tolist(), log_scores.tolist())
    files.write_lines(path, ({"pair": pair_id, "log_scores": scores} for pair_id, scores in pairs))


def read_scores(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pair ids [N] and log scores [N, S, K] as `write_scores` left them."""
    rows = list(files.read_lines(path, needs="log_scores"))
    return np.array([row["pair"] for row in rows]), np.array([row["log_scores"] for row in rows])


@hosts.by_first
def write_json(path: Path, content: dict) -> None:
    """Write a file whole or not at all."""
    files.write_json(path, content)


@hosts.by_first
def write_results(workdir: Path, results: dict) -> None:
    """Write results.json. Its "judge" is the kind of judge, one of `objectives.KINDS`."""
    files.write_json(workdir / RESULTS, results)


def read_results(workdir: Path) -> dict:
    """The content of results.json. Older files do not have "judge": it is added."""
    path = workdir / RESULTS
    if not path.exists():
        raise UserError(f"{path} does not exist: give the --workdir of a run that was evaluated")
    results = files.read_json(path)
    for key in ("base", "trained", "gain"):
        if not results.get(key):
            raise UserError(f'{path}: "{key}" is missing; evaluate both the base and the trained model')
        if wrong := [k for k in results[key] if not re.fullmatch(r"k\d+", k)]:
            raise UserError(f'{path}: "{key}" has {wrong[0]!r}, not a number of votes such as "k8"')
    return {"judge": _judge_before(results)} | results


def _judge_before(results: dict) -> str:
    """The kind of judge of older results, which do not say it."""
    name = ((results.get("config") or {}).get("objective") or {}).get("name")
    if name in objectives.names():
        return objectives.load(name).judges[0]
    pairwise = any("flips" in cell for cell in results["trained"].values())
    return "label" if pairwise else "verdict"
