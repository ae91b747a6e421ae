"""Updates that were skipped because a figure was not finite: they are counted, and their pairs are written down."""

import numpy as np

from dwrl_jax.core.errors import UserError
from dwrl_jax.core.terminal import say
from dwrl_jax.core.types import PreferenceBatch
from dwrl_jax.training.parts import Run
from dwrl_jax.workdir import records


def finite_metrics(run: Run, batch: PreferenceBatch, measured: dict, step: int) -> dict[str, float]:
    """The finite metrics of a step, and the number of its skipped updates. `measured` is that of a training step.

    The pairs of a skipped update go to not_finite.jsonl: those with a loss or metric that is not finite, or all pairs
    where only their common gradient is not finite.
    """
    skipped = {phase: broken for phase, (done, broken) in measured.pop("skipped").items() if done}
    figures = {name: float(value) for name, value in measured.items()}
    finite = {name: value for name, value in figures.items() if np.isfinite(value)}
    for phase, broken in skipped.items():
        others = [f"{kind}_{other}" for kind in ("loss", "grad_norm") for other in run.phases if other != phase]
        wrong = {name: value for name, value in figures.items() if name not in (*finite, *others)}
        _write_down(run, batch, step, phase, wrong, broken if broken.any() else batch.valid)
    return {f"train/{name}": value for name, value in finite.items()} | {records.SKIPPED: float(len(skipped))}


def finite_rows(rows: list[dict]) -> list[dict]:
    """The rows without those that have a number that is not finite."""
    return [row for row in rows if all(np.isfinite(value) for value in row.values() if isinstance(value, float))]


def too_many(run: Run, step: int, in_row: int) -> UserError:
    """The error that ends a run after so many steps in a row with a skipped update."""
    return UserError(
        f"step {step}: the last {in_row} steps have figures that are not finite, and their updates were skipped; "
        f"{run.workdir / records.NOT_FINITE} lists the pairs: start again in another --workdir without them or with a "
        "lower optim.learning_rate, or raise optim.most_skipped"
    )


def _write_down(run: Run, batch: PreferenceBatch, step: int, phase: str, wrong: dict[str, float], which) -> None:
    ids = [int(number) for number in np.asarray(batch.pair_id)[np.asarray(which)]]
    records.write_not_finite(run.workdir, step, phase, wrong, [(number, run.describe(number)) for number in ids])
    short = [name for name in wrong if name.endswith(f"_{phase}")] or list(wrong)[:2]
    named = ", ".join(f"{name} {wrong[name]}" for name in short)
    say(
        f"warning: step {step}: the {phase} update is skipped, because figures are not finite ({named}); "
        f"{records.NOT_FINITE} lists its {len(ids)} pair{'s' * (len(ids) != 1)}",
    )
