"""Stanford Human Preferences: two comments on a post; labels 1 says that A is better, 0 that B is.

Source: the card of stanfordnlp/SHP. The margin is the difference of the comments' scores.
"""

from dwrl_jax.data.formats import Format, Malformed
from dwrl_jax.data.formats.parts.conversation import make_pair, number
from dwrl_jax.data.formats.parts.two import whole_number

SIDES = ("human_ref_A", "human_ref_B")
SCORES = ("score_A", "score_B")


def pairs(row):
    """The row's single pair. Raises Malformed."""
    label = whole_number(row["labels"])
    if label not in (0, 1):
        raise Malformed("no label")
    better = 1 - label
    scores = [number(row.get(name)) for name in SCORES]
    margin = None if None in scores else scores[better] - scores[1 - better]
    chosen, rejected = row[SIDES[better]], row[SIDES[1 - better]]
    yield make_pair(
        row, prompt=row.get("history"), chosen=chosen, rejected=rejected, margin=margin, source=row.get("domain")
    )


FORMAT = Format(
    columns="history, human_ref_A, human_ref_B, labels",
    has=lambda columns: {"labels", *SIDES} <= set(columns),
    pairs=pairs,
    uses=lambda columns: {"history", "labels", "domain", *SIDES, *SCORES},
)
