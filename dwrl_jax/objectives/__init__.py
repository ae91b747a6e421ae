"""Objectives: pure functions from log-probabilities to one loss per pair.

A module here has these names. `THOUGHTS` says where thoughts come from: "policy", drawn from the policy at every
step; "start", drawn from the starting model and the same whenever a pair comes; "none", the end token alone;
"written", in the data. `VERDICTS` says whether a verdict is drawn after each, too. `PAIRWISE = True` stands where
the two sides are not the responses but the orders in which both are shown, `EMPTY_THOUGHT = True` where the last
thought of a group is the end token alone, put behind those that were drawn. `phases(hyper) -> dict[str, LossFn]` has
one update of the parameters each, in order, with `LossFn(logps, thoughts) -> (loss [B], metrics)`; `Hyper` is its
dataclass of hyper-parameters. One that asks for the pairs' margins, with a `bradley_terry` that is not "regular", is
given `margin` [B] besides. Metrics are one value per pair and are averaged like the loss; those ending in `_max`
take the maximum. A new algorithm is one new file: it is found by its name. A file whose name begins with "_" is no
objective but what several share.
"""

from pathlib import Path


def names() -> list[str]:
    """The objectives there are."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
