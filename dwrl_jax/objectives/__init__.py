"""Objectives: pure functions from log-probabilities to one loss per pair. An objective is one file and its test.

A file here defines `OBJECTIVE`, one value of `Objective`; it is known by its file's name, and nothing else names it.
What several objectives share is in `parts/`. Equations stand alone: no parameters, model, mesh or config.
"""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from dwrl_jax.objectives.parts.panels import Panel

KINDS = ("verdict", "label", "score", "reward", "embedding")  # of judges, see `Objective.judges`
VALUE_KINDS = ("reward", "embedding")  # those with a value head in the place of the lm-head
Thoughts = Literal["policy", "start", "none", "written"]


@dataclasses.dataclass(frozen=True)
class Objective:
    """All that the rest of the program knows of an objective.

    `hyper` is the dataclass of its hyper-parameters; `config.objective` has exactly its fields. `phases(hyper)` gives
    the updates of one step in their order, by name: each is a `loss(logps, thoughts) -> (loss [B], metrics [B])`.
    Metrics are averaged over pairs as the loss is; those ending in `_max` take the maximum.

    `judges` are the kinds of judge that it can train, the usual one first:
    "verdict"    one response, answered by good or bad;
    "label"      both responses at once, in both orders: the two sides of a pair are the orders;
    "score"      one response, answered by one of K scores;
    "reward"     a value head with one output, without a thought;
    "embedding"  a value head with several outputs, without a thought.

    `thoughts` says where they come from: "policy", drawn from the policy at every step; "start", drawn from the
    starting model and the same whenever a pair comes; "none", the end token alone; "written", in the data.
    With `verdicts` an answer is drawn after each thought. With `empty_thought` the last thought of a group is the end
    token alone, behind those that were drawn.

    `value_outputs(hyper)` is the number of outputs of a value head. `value_scores(values [B 2 *G K], hyper) ->
    [B 2 *G]` reads the two scores of a pair from a value head's outputs or from the log-probabilities of K scores;
    without it they are read for each response alone. Where `uses_margins(hyper)`, losses also take the keyword
    `margin` [B], the strength of each preference.

    `panels` are the pictures of its metrics in a report.
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
    """The objectives that exist."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def load(name: str) -> Objective:
    """The objective of a file's name, one of `names()`."""
    return importlib.import_module(f"dwrl_jax.objectives.{name}").OBJECTIVE
