"""Objectives: pure functions from log-probabilities to a loss for each pair. An objective is a file and its test.

Each file here defines `OBJECTIVE`, a value of `Objective`. Its name is the file's name, and no other file names it.
`parts/` has the code that several objectives share. An equation uses no parameters, model, mesh or config.
"""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from dwrl_jax.objectives.parts.panels import Panel

KINDS = ("verdict", "label", "score", "reward", "embedding")  # kinds of judge, see `Objective.judges`
VALUE_KINDS = ("reward", "embedding")  # the kinds with a value head in the place of the lm-head
Thoughts = Literal["policy", "start", "none", "written"]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Everything that the rest of the program knows about an objective.

    `hyper` is the dataclass of its hyper-parameters; `config.objective` has exactly the same fields. `phases(hyper)`
    is a dictionary of the updates of a step, in their order. An update is a function
    `loss(logps, thoughts) -> (loss [B], metrics [B])`. The loss and the metrics are averaged over pairs; for a metric
    whose name ends in `_max` the maximum is taken instead.

    `judges` lists the kinds of judge that the objective can train, the default first:
    "verdict"    judges a single response and answers good or bad;
    "label"      judges both responses together, in both orders; the two sides of a pair are the orders;
    "score"      judges a single response and answers with one of K scores;
    "reward"     has a value head with a single output, and no thoughts;
    "embedding"  has a value head with several outputs, and no thoughts.

    `thoughts` is the source of the thoughts:
    "policy"     the policy draws them anew at every step;
    "start"      the starting model draws them, and a pair has the same thoughts each time;
    "none"       a thought is only the end token;
    "written"    the data contains them.
    With `verdicts` an answer is drawn after each thought. With `empty_thought` a group has one more thought at its end,
    which is only the end token.

    `value_outputs(hyper)` is the number of outputs of a value head. `value_scores(values [B 2 *G K], hyper) ->
    [B 2 *G]` computes the two scores of a pair from the outputs of a value head or from the log-probabilities of K
    scores. Without it each response's score is read on its own. If `uses_margins(hyper)` is true, losses also take the
    keyword `margin` [B], the strength of each preference.

    `panels` are the pictures of the objective's metrics in a report.
    """

    hyper: type
    phases: Callable[[Any], dict[str, Callable]]
    judges: tuple[str, ...] = ("verdict",)
    thoughts: Thoughts = "policy"
    verdicts: bool = False
    empty_thought: bool = False
    value_outputs: Callable[[Any], int] | None = None
    value_scores: Callable | None = None
    uses_margins: Callable[[Any], bool] = lambda hyper: False
    panels: tuple[Panel, ...] = ()


def names() -> list[str]:
    """The names of all objectives, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def load(name: str) -> Objective:
    """The objective of this name, which is in `names()`."""
    return importlib.import_module(f"dwrl_jax.objectives.{name}").OBJECTIVE
