"""Bradley-Terry on the answer token after thoughts of the starting model: the ablation "BT with prefilled thoughts"
of arXiv 2510.15242.

Each response has a fixed group of thoughts, drawn from the model that the run started from. The group is the same in
later passes over the pairs, after a restart, and for held-out pairs. No thoughts are stored: the draw depends only on
the seed, the pair and the starting weights. The starting weights are kept, which costs the memory of a second set of
weights. The number of thoughts is (ours): the same as in DWRL. So this objective is DWRL's Eq. 14 alone, with thoughts
that do not learn.
"""

from dwrl_jax.objectives import Objective, bt_token
from dwrl_jax.objectives.parts.bradley_terry import uses_margins

Hyper, phases = bt_token.Hyper, bt_token.phases


OBJECTIVE = Objective(
    Hyper,
    phases,
    judges=("verdict", "score"),
    thoughts="start",
    uses_margins=uses_margins,
    panels=bt_token.OBJECTIVE.panels,
)
