"""Objectives: pure functions from log-probabilities to one loss per pair.

A module here has two names: `SAMPLES_THOUGHTS`, whether thoughts are drawn from the policy at every step, and
`phases(hyper) -> dict[str, LossFn]`, one update of the parameters each, in order, with
`LossFn(logps, thoughts) -> (loss [B], metrics)`; `Hyper` is its dataclass of hyper-parameters. Metrics are one
value per pair and are averaged like the loss; those ending in `_max` take the maximum. A new algorithm is one
new file: it is found by its name. A file whose name begins with "_" is no objective but what several share.
"""

from pathlib import Path


def names() -> list[str]:
    """The objectives there are."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
