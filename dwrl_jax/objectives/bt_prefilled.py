"""Bradley-Terry on the answer token after thoughts of the starting model: the ablation "BT with prefilled thoughts"
of arXiv 2510.15242.

Each response has one group of thoughts, drawn from the model that the run started from and never again: also in
later passes over the pairs, after a restart, and about held-out pairs. Nothing is stored for it, since a draw is a
function of the seed and the pair and the starting weights are kept at hand; that costs the memory of one more set of
weights. How many thoughts there are is (ours): as many as DWRL draws, so that this is DWRL's Eq. 14 alone, with
thoughts that do not learn.
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
