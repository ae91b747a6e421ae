"""Held-out pairs in a run: scores before and after training, the curve between, and thoughts about a few pairs."""

import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from dwrl_jax.core import faults, hosts
from dwrl_jax.core.terminal import say
from dwrl_jax.core.types import TrainState
from dwrl_jax.data.batches import Batches, prefetch
from dwrl_jax.evaluation import metrics as evaluate
from dwrl_jax.evaluation.held_out import vote_scores
from dwrl_jax.generation.keys import HELD_OUT
from dwrl_jax.training.parts import Run
from dwrl_jax.training.programs import Programs
from dwrl_jax.workdir import records

CURVE = ("accuracy", "nll", "ties", "brier", "ece", "flips", "position_bias")  # the last two of pairwise judges alone


def curve(run: Run, programs: Programs, state: TrainState, start) -> dict[str, float]:
    """Held-out metrics if the curve has a point at this step, else {}."""
    step = int(state.step)
    if not (run.curve_batches and run.eval_every and (step % run.eval_every == 0 or step == run.steps)):
        return {}
    _, log_scores = score_pairs(lambda pairs: sample(programs, state.params, start, pairs)[1], run.curve_batches)
    metrics = evaluate.metrics(log_scores, max(run.votes), run.pairwise)
    if not sys.stderr.isatty():
        say(f"step {step} of {run.steps}: held-out accuracy {metrics['accuracy']:.3f}")
    return {f"eval/{name}": metrics[name] for name in CURVE if name in metrics}


def is_evaluated(run: Run, name: str) -> bool:
    """Whether the workdir has the scores of all held-out pairs by the "base" or the "trained" model."""
    return hosts.of_first(_path(run, name).exists())


def forget(run: Run, name: str) -> None:
    """Drop kept scores, which are not those of this run's last step."""
    hosts.by_first(Path.unlink)(_path(run, name), missing_ok=True)


def evaluation(run: Run, programs: Programs, name: str, params, start, step: int) -> Float[np.ndarray, "N S K"] | None:
    """Log scores of all held-out pairs, by pair id. None on processes that do not write.

    A file keeps them, so that a finished evaluation is not run again. The thoughts about a few pairs, the same before
    and after training, are written down.
    """
    if not is_evaluated(run, name):
        drawn, rows = drawn_pairs(run), []

        def scores(pairs):
            thoughts = sample(programs, params, start, pairs)
            chosen = np.flatnonzero(np.isin(pairs.pair_id, drawn) & pairs.valid)
            if len(chosen):
                part, kept = jax.tree.map(lambda x: np.asarray(x)[chosen], (pairs, thoughts))
                rows.extend(thought_rows(run, part, *kept, step=step, split="eval"))
            faults.point("evaluation")
            return thoughts[1]

        ids, log_scores = score_pairs(scores, run.eval_batches, f"evaluating {name}")
        with records.open_tensorboard(run.workdir, step) as board:
            records.drop_thoughts(run.workdir, step, "eval")
            records.write_thoughts(run.workdir, board, rows, step)
        faults.point("thoughts")
        records.write_scores(_path(run, name), ids, log_scores)
    return records.read_scores(_path(run, name))[1] if hosts.first() else None


def drawn_pairs(run: Run) -> Int[np.ndarray, " n"]:
    """Ids of the held-out pairs whose thoughts are written down: a random draw, the same at every call."""
    source = run.eval_batches.source
    ids = [row.pair_id for row in source.examples(0, len(source))]
    return np.random.default_rng(0).permutation(ids)[: run.thought_pairs]


def sample(programs: Programs, params, start, pairs):
    """Thoughts about held-out pairs, as many as the most votes, with their log scores and weights."""
    return programs.sample_votes(params, start, pairs, HELD_OUT, 0)


def score_pairs(scores: Callable, batches: Batches, title: str = ""):
    """Pair ids [N] and log scores [N S K] of held-out pairs; `scores(batch)` samples those of a batch."""
    made = prefetch(batches, 0, batches.steps_per_epoch)
    bar = tqdm(
        made,
        desc=title,
        total=batches.steps_per_epoch,
        disable=not (title and sys.stderr.isatty()),
        dynamic_ncols=True,
    )
    return vote_scores(scores, (pairs for pairs, _ in bar))


def thought_rows(run: Run, batch, thoughts, log_scores, weights, *, step: int, split: str) -> list[dict]:
    """Rows of thoughts.jsonl about the first pairs of a batch; its `split` is "train" or "eval"."""
    rows = records.thought_rows(
        batch,
        *jax.device_get((thoughts, log_scores, weights)),
        pairs=run.thought_pairs,
        end=run.judge.end,
        stops=run.judge.stops,
        decode=run.decode,
        describe=run.describe if split == "train" else run.describe_held_out,
        rewards=run.judge.has_value_head or run.judge.value_scores is not None,
    )
    return [{"step": step, "split": split} | row for row in rows]


def _path(run: Run, name: str) -> Path:
    return run.workdir / "eval" / f"{name}.jsonl"
