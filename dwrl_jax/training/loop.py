"""The training loop: sample, update, evaluate, write down, save; stopped anywhere, it goes on where it was."""

import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dwrl_jax.core import hosts
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.types import PreferenceBatch, ThoughtBatch, TrainState
from dwrl_jax.data.batches import Batches, padding_share, prefetch
from dwrl_jax.data.pairs import Pair
from dwrl_jax.evaluation import metrics as evaluate
from dwrl_jax.generation.keys import HELD_OUT, TRAINING
from dwrl_jax.generation.packing import Packing, pack
from dwrl_jax.judge.judge import Judge, branch_length
from dwrl_jax.judge.thoughts import for_update, with_reference
from dwrl_jax.training.programs import Programs, Recipe, make_programs
from dwrl_jax.workdir import checkpoint, records

PROFILED = 3  # steps


@dataclasses.dataclass(frozen=True)
class Run(Recipe):
    """All that one training run is made of. Counts are in pairs and steps."""

    workdir: Path
    steps: int
    load_params: Callable[[], Any]  # the starting model, laid out for training
    batches: Batches
    describe: Callable[[int], Pair]  # pair id -> training pair
    describe_held_out: Callable[[int], Pair]
    decode: Callable[[np.ndarray], str]  # token ids -> text
    eval_batches: Batches | None  # held-out pairs in a fixed order
    curve_batches: Batches | None  # those of them that the curve is drawn on
    eval_every: int
    thoughts_every: int
    thought_pairs: int
    checkpoint_every: int
    packing: bool  # short thoughts share lanes in the update
    profile: bool  # trace the steps after the first, which compiles


class Stopped(Exception):
    """The run was asked to stop, by `signal`; its state is saved."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


def train(run: Run) -> tuple[TrainState, dict[str, np.ndarray]]:
    """Train to the last step. Returns the state and the held-out log scores [N S K] of "base" and "trained", None
    on processes that do not write.

    Raises `Stopped` after SIGTERM or Ctrl-C, with everything saved.
    """
    with jax.set_mesh(run.mesh):
        return _train(run, make_programs(run))


def _train(run: Run, programs: Programs):
    manager = checkpoint.open_manager(run.workdir)
    params = run.load_params()
    start = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(params) if run.keeps_start else None
    scores = {}
    if run.eval_batches:
        scores["base"] = _held_out(run, programs, "base", params, start, 0)
    state = programs.begin(params)
    state = checkpoint.restore(manager, state) or state
    records.rewind(run.workdir, int(state.step))
    if int(state.step) < run.steps:
        state = _steps(run, programs, manager, state, start)
    if run.eval_batches:
        scores["trained"] = _held_out(run, programs, "trained", state.params, start, run.steps)
    manager.close()
    return state, scores


def _steps(run: Run, programs: Programs, manager, state: TrainState, start) -> TrainState:
    """From the state's step to the last."""
    begun = int(state.step)
    board = records.open_tensorboard(run.workdir, begun)
    batches = prefetch(run.batches, begun, run.steps)
    bar = tqdm(total=run.steps, initial=begun, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True)
    with _stop_signal() as stopping, board, bar, contextlib.closing(batches):
        for batch, thoughts in batches:
            with _profile(run, begun, int(state.step) - begun):
                state, metrics = _step(run, programs, state, batch, thoughts, start, board)
            step = int(state.step)
            curve = _curve(run, programs, state, start)
            records.write_metrics(run.workdir, board, step, metrics | curve)
            stop = hosts.stop(stopping)
            due = curve or step % run.checkpoint_every == 0 or step == run.steps
            if due or stop:
                checkpoint.save(manager, state, {checkpoint.BEST: curve["eval/accuracy"]} if curve else None)
            bar.update()
            bar.set_postfix(_postfix(metrics | curve), refresh=False)
            if stop and step < run.steps:
                manager.wait_until_finished()
                message = f"stopped after step {step} of {run.steps}: the same command goes on from there"
                raise Stopped(message, stop)
    manager.wait_until_finished()
    return state


def _profile(run: Run, begun: int, step: int):
    """A trace of the `step`-th step since this start of the run, where one is wanted; number 0 compiles."""
    if not (run.profile and 1 <= step <= PROFILED and hosts.first()):
        return contextlib.nullcontext()
    return jax.profiler.trace(str(run.workdir / "profile" / f"step_{begun + step + 1}"), create_perfetto_trace=True)


def _step(run: Run, programs: Programs, state, batch, thoughts, start, board):
    """Sample, update, write thoughts down. Returns the new state and the step's metrics."""
    began = time.perf_counter()
    step = int(state.step)
    metrics = {"data/padding": padding_share(batch)}

    def sample():
        return jax.block_until_ready(programs.sample(state.params, start, batch, TRAINING, step))

    thoughts, sampled = for_update(run.thoughts, run.judge.end, batch, thoughts, sample)
    if sampled is not None:
        metrics |= _sampling_metrics(run.judge, batch, sampled[0], time.perf_counter() - began)
    packing = _packing(run, thoughts)
    if run.needs_reference:
        thoughts = with_reference(thoughts, programs.reference_logps(start, batch, thoughts, packing))
    updating = time.perf_counter()
    state, found = programs.train_step(state, batch, thoughts, packing)
    metrics |= {f"train/{name}": float(value) for name, value in jax.device_get(found).items()}
    if not all(np.isfinite(value) for value in metrics.values()):
        bad = next(name for name, value in metrics.items() if not np.isfinite(value))
        raise UserError(f"step {step + 1}: {bad} is not finite; lower optim.learning_rate or check the data")
    now = time.perf_counter()
    tokens = _tokens(run.judge, batch, thoughts)
    metrics["train/tokens_per_second"] = tokens * len(run.phases) / (now - updating)
    metrics["train/padding"] = 1.0 - tokens / _positions(run.judge, batch, thoughts, packing)
    metrics["time/step_seconds"] = now - began
    if sampled is not None and (step == 0 or (step + 1) % run.thoughts_every == 0 or step + 1 == run.steps):
        _write_thoughts(run, board, batch, *sampled, step=step + 1, split="train")
    return state, metrics


def _write_thoughts(run: Run, board, batch, thoughts, log_scores, weights, *, step: int, split: str) -> None:
    """The thoughts of the first pairs of a batch, to thoughts.jsonl and tensorboard."""
    rows = records.thought_rows(
        batch,
        *jax.device_get((thoughts, log_scores, weights)),
        pairs=run.thought_pairs,
        end=run.judge.end,
        decode=run.decode,
        describe=run.describe if split == "train" else run.describe_held_out,
    )
    records.write_thoughts(run.workdir, board, [{"step": step, "split": split} | row for row in rows], step)


def _curve(run: Run, programs: Programs, state: TrainState, start) -> dict[str, float]:
    """Held-out metrics where the curve has a point at this step, else nothing."""
    step = int(state.step)
    if not (run.curve_batches and run.eval_every and (step % run.eval_every == 0 or step == run.steps)):
        return {}
    _, log_scores = _score_pairs(run, programs, state.params, start, run.curve_batches)
    found = evaluate.metrics(log_scores, max(run.votes), run.pairwise)
    if not sys.stderr.isatty():
        print(f"step {step} of {run.steps}: held-out accuracy {found['accuracy']:.3f}", flush=True)
    names = ("accuracy", "nll", "ties", "brier", "ece", "flips", "position_bias")
    return {f"eval/{name}": found[name] for name in names if name in found}


def _held_out(run: Run, programs: Programs, name: str, params, start, step: int) -> np.ndarray | None:
    """Log scores [N S K] of all held-out pairs; kept in a file, so that a finished part is not run again.

    The thoughts about the first of them are written down: those before and after training can be compared.
    """
    path = run.workdir / "eval" / f"{name}.jsonl"
    if not hosts.of_first(path.exists()):
        ids, log_scores = _score_pairs(run, programs, params, start, run.eval_batches, f"evaluating {name}")
        batch, _ = run.eval_batches(0)
        sampled = programs.sample_votes(params, start, batch, HELD_OUT, 0)
        with records.open_tensorboard(run.workdir, step) as board:
            _write_thoughts(run, board, batch, *sampled, step=step, split="eval")
        records.write_scores(path, ids, log_scores)
    return records.read_scores(path)[1] if hosts.first() else None


def _score_pairs(run: Run, programs: Programs, params, start, batches: Batches, title: str = ""):
    """Pair ids [N] and log scores [N S K] of held-out pairs."""
    made = prefetch(batches, 0, batches.steps_per_epoch)
    bar = tqdm(
        made,
        desc=title,
        total=batches.steps_per_epoch,
        disable=not (title and sys.stderr.isatty()),
        dynamic_ncols=True,
    )
    return evaluate.vote_scores(
        lambda pairs: programs.sample_votes(params, start, pairs, HELD_OUT, 0)[1], (pairs for pairs, _ in bar)
    )


def _sampling_metrics(judge: Judge, batch: PreferenceBatch, thoughts: ThoughtBatch, seconds: float):
    thought, length = np.asarray(thoughts.thought)[batch.valid], np.asarray(thoughts.thought_len)[batch.valid]
    final = np.take_along_axis(thought, length[..., None] - 1, -1)[..., 0]
    return {
        "train/cut_off": float((final != judge.end).mean()),
        "sample/tokens": float(length.sum()),
        "sample/tokens_per_second": float(length.sum() / seconds),
    }


def _tokens(judge: Judge, batch: PreferenceBatch, thoughts: ThoughtBatch) -> int:
    """Positions that one pass computes for tokens of valid pairs: each prefix once, every branch."""
    prefix = batch.prefix_len[batch.valid].sum()
    if judge.has_value_head:
        return int(prefix)
    branches = np.asarray(thoughts.thought_len)[batch.valid]
    return int(prefix + branches.sum() + branches.size * len(judge.question))


def _positions(judge: Judge, batch: PreferenceBatch, thoughts: ThoughtBatch, packing: Packing | None) -> int:
    """Positions that one pass computes in all."""
    B, S, G, T = thoughts.thought.shape
    lanes = G if packing is None else packing.source.shape[2]
    return B * S * (batch.prefix.shape[-1] + lanes * branch_length(judge, T))


def _packing(run: Run, thoughts: ThoughtBatch) -> Packing | None:
    if not run.packing or run.thoughts.source == "none":
        return None
    lengths = np.asarray(thoughts.thought_len) + 1 + len(run.judge.question)
    return pack(lengths, branch_length(run.judge, thoughts.thought.shape[-1]))


def _postfix(metrics: dict[str, float]) -> dict[str, str]:
    shown = {
        "acc": "train/pair_accuracy",
        "nll": "train/pair_nll",
        "thought_nll": "train/thought_nll",
        "w": "train/misalignment_weight",
        "len": "train/thought_length",
        "held_out": "eval/accuracy",
    }
    return {short: f"{metrics[name]:.3g}" for short, name in shown.items() if name in metrics}


@contextlib.contextmanager
def _stop_signal() -> Iterator[list]:
    """A list that becomes non-empty at SIGTERM or the first Ctrl-C; a second Ctrl-C ends the program at once."""
    stopping = []

    def note(number, frame):
        stopping.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in hosts.stop_signals()}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
