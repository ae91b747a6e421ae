"""The training loop: sample, update, evaluate, write down, save. A stopped run goes on from its last checkpoint."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dwrl_jax.core import faults, hosts
from dwrl_jax.core.errors import Stopped
from dwrl_jax.core.terminal import say
from dwrl_jax.core.types import PreferenceBatch, ThoughtBatch, TrainState
from dwrl_jax.data.batches import padding_share, prefetch
from dwrl_jax.generation.keys import TRAINING
from dwrl_jax.generation.packing import Packing, pack
from dwrl_jax.judge.judge import Judge, branch_length
from dwrl_jax.judge.thoughts import for_update, with_reference
from dwrl_jax.training import held_out, skipping
from dwrl_jax.training.parts import Run
from dwrl_jax.training.programs import Programs, abstract_state, make_programs
from dwrl_jax.workdir import checkpoint, records, watch

PROFILED = 3  # steps


def train(run: Run) -> tuple[TrainState, dict[str, np.ndarray]]:
    """Train to the last step. Returns the state and the held-out log scores [N S K] of "base" and "trained".

    The scores are None on processes that do not write. Raises `Stopped` after SIGTERM or Ctrl-C, with everything saved.
    """
    with jax.set_mesh(run.mesh):
        return _train(run, make_programs(run))


def _train(run: Run, programs: Programs):
    checkpoint.set_aside(run.workdir)
    manager = checkpoint.open_manager(run.workdir, run.checkpoints_kept)
    begun = manager.latest_step() is not None
    evaluated = not run.eval_batches or held_out.is_evaluated(run, "base")
    # the checkpoint of a run that goes on has its parameters: the starting model is loaded only where it is needed
    params = None if begun and evaluated and not run.keeps_start else run.load_params()
    start = params if run.keeps_start else None
    first = programs.begin(start) if run.lora else None  # its adapters, and the optimizer's state for them
    params = first.params if first else params
    scores = {}
    if run.eval_batches:
        scores["base"] = held_out.evaluation(run, programs, "base", params, start, 0)
    if begun:
        del params, first
        state = checkpoint.restore(manager, abstract_state(run))
    elif run.lora:
        state = first
    else:
        start = start and jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(start)  # `begin` takes over the buffers
        state = programs.begin(params)
    records.rewind(run.workdir, int(state.step))
    if int(state.step) < run.steps:
        held_out.forget(run, "trained")  # the scores of an earlier, shorter run
        state = _steps(run, programs, manager, state, start)
    if run.eval_batches:
        scores["trained"] = held_out.evaluation(run, programs, "trained", state.params, start, run.steps)
    manager.close()
    return state, scores


def _steps(run: Run, programs: Programs, manager, state: TrainState, start) -> TrainState:
    """Train from the state's step to the last step."""
    begun = int(state.step)
    in_row = hosts.of_first(records.skipped_in_row(run.workdir) if hosts.first() else 0)
    watching = _watch(run)
    board = records.open_tensorboard(run.workdir, begun)
    batches = prefetch(run.batches, begun, run.steps)
    bar = tqdm(total=run.steps, initial=begun, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True)
    with _stop_signal() as stopping, board, bar, contextlib.closing(batches):
        for batch, thoughts in batches:
            with _profile(run, begun, int(state.step) - begun):
                state, metrics = _step(run, programs, state, batch, thoughts, start, board)
            faults.point("updated")
            step = int(state.step)
            curve = held_out.curve(run, programs, state, start)
            metrics |= watching(step, metrics | curve)
            records.write_metrics(run.workdir, board, step, metrics | curve)
            faults.point("metrics")
            in_row = in_row + 1 if metrics[records.SKIPPED] else 0
            if in_row >= run.most_skipped:
                manager.wait_until_finished()
                raise skipping.too_many(run, step, in_row)
            stop = hosts.stop(stopping)
            due = curve or step % run.checkpoint_every == 0 or step == run.steps
            if due or stop:
                checkpoint.save(manager, state, {checkpoint.BEST: curve["eval/accuracy"]} if curve else None)
                faults.point("saving")
            bar.update()
            bar.set_postfix(_postfix(metrics | curve), refresh=False)
            if stop and step < run.steps:
                manager.wait_until_finished()
                message = f"stopped after step {step} of {run.steps}: the same command goes on from there"
                raise Stopped(message, stop)
    manager.wait_until_finished()
    return state


def _watch(run: Run) -> Callable[[int, dict[str, float]], dict[str, float]]:
    """A function of each step and its metrics that tells the faults which begin there, and gives their number.

    The first process tells them, because it has the metrics of earlier starts.
    """
    kept = records.last_metrics(run.workdir, watch.KEPT) if hosts.first() else ()
    watched = watch.Watch(kept, run.thoughts.sampler.group_size)

    def look(step, metrics):
        begun, number = watched({"step": step} | metrics)
        for fault in begun:
            say(f"warning: step {step}: {fault.what}; {fault.advice}")
        return {"train/warnings": float(number)}

    return look


def _profile(run: Run, begun: int, step: int):
    """A trace of the `step`-th step since this start, where it is wanted. Step 0 compiles and is not traced."""
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
    state, measured = programs.train_step(state, batch, thoughts, packing, start if run.lora else None)
    metrics |= skipping.finite_metrics(run, batch, jax.device_get(measured), step + 1)
    now = time.perf_counter()
    tokens = _tokens(run.judge, batch, thoughts)
    metrics["train/tokens_per_second"] = tokens * len(run.phases) / (now - updating)
    metrics["train/padding"] = 1.0 - tokens / _positions(run.judge, batch, thoughts, packing)
    metrics["time/step_seconds"] = now - began
    if sampled is not None and (step == 0 or (step + 1) % run.thoughts_every == 0 or step + 1 == run.steps):
        rows = skipping.finite_rows(held_out.thought_rows(run, batch, *sampled, step=step + 1, split="train"))
        records.write_thoughts(run.workdir, board, rows, step + 1)
    return state, metrics


def _sampling_metrics(judge: Judge, batch: PreferenceBatch, thoughts: ThoughtBatch, seconds: float):
    thought, length = np.asarray(thoughts.thought)[batch.valid], np.asarray(thoughts.thought_len)[batch.valid]
    final = np.take_along_axis(thought, length[..., None] - 1, -1)[..., 0]
    other = np.isin(final, judge.stops)
    return {
        "train/cut_off": float(((final != judge.end) & ~other).mean()),
        **({"train/other_end": float(other.mean())} if judge.stops else {}),
        "sample/tokens": float(length.sum()),
        "sample/tokens_per_second": float(length.sum() / seconds),
    }


def _tokens(judge: Judge, batch: PreferenceBatch, thoughts: ThoughtBatch) -> int:
    """Positions that a pass computes for tokens of valid pairs: each prefix once, and every branch."""
    prefix = batch.prefix_len[batch.valid].sum()
    if judge.has_value_head:
        return int(prefix)
    branches = np.asarray(thoughts.thought_len)[batch.valid]
    return int(prefix + branches.sum() + branches.size * len(judge.question))


def _positions(judge: Judge, batch: PreferenceBatch, thoughts: ThoughtBatch, packing: Packing | None) -> int:
    """All positions that a pass computes, padding included."""
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
