"""Objectives: pure functions from log-probabilities to one loss per pair.

A module here has these names. `THOUGHTS` says where thoughts come from: "policy", drawn from the policy at every
step; "start", drawn from the starting model and the same whenever a pair comes; "none", the end token alone;
"written", in the data. `VERDICTS` says whether a verdict is drawn after each, too. `phases(hyper) -> dict[str, LossFn]`
has one update of the parameters each, in order, with `LossFn(logps, thoughts) -> (loss [B], metrics)`; `Hyper` is its
dataclass of hyper-parameters. Metrics are one value per pair and are averaged like the loss; those ending in `_max`
take the maximum. A new algorithm is one new file: it is found by its name. A file whose name begins with "_" is no
objective but what several share. Some modules have more:

`PAIRWISE = True`: the two sides are not the responses but the orders in which both are shown;
`EMPTY_THOUGHT = True`: the last thought of a group is the end token alone, put behind those that were drawn;
`value_outputs(hyper)`: a value head of so many outputs takes the place of the lm-head, and
`value_scores(values [B S K], hyper) -> [B S]` says how they are read, if they are more than one reward;
`ORDINAL = True`: the judge is asked for one of K scores, and `value_scores` reads their log-probabilities;
`Hyper.bradley_terry`: where it is not "regular", losses are given the pairs' `margin` [B] too.
"""

from pathlib import Path


def names() -> list[str]:
    """The objectives there are."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
