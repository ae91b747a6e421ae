"""Responses with scores: a list of responses and a list of scores, or responses that each have a score.

Two responses in two columns may have their scores in two columns with the same endings, such as answer_0, answer_1,
score_0 and score_1. Higher is better. Equal scores are ties, and the difference is the margin.
"""

from dwrl_jax.data.formats import Format, Malformed, columns_of
from dwrl_jax.data.formats.parts import several
from dwrl_jax.data.formats.parts.conversation import number
from dwrl_jax.data.formats.parts.two import compared, two, used_by_two

COLUMNS = ("scores", "ratings", "rewards", "score", "rating", "reward")
KEYS = ("score", "rating", "reward")


def has(columns) -> bool:
    """Whether a row has a list of responses, or two responses with a score each and no label."""
    return several.has_list(columns) or _two_scores(columns) is not None


def owns(row) -> bool:
    """Whether each response has a score."""
    return several.values_of(row, COLUMNS, KEYS) is not None or _two_scores(columns_of(row)) is not None


def pairs(row):
    """A pair for each two responses with different scores. Raises Malformed."""
    values = several.values_of(row, COLUMNS, KEYS)
    if values is not None:
        return several.pairs_by(row, [number(value) for value in values], margins=True)
    scores = [number(row[name]) for name in _two_scores(columns_of(row))]
    if None in scores:
        raise Malformed("no label")
    return compared(
        row, None if scores[0] == scores[1] else int(scores[1] > scores[0]), margin=abs(scores[0] - scores[1])
    )


def _two_scores(columns) -> tuple[str, str] | None:
    kind = two(columns)
    if kind is None or kind.label:
        return None
    names = (tuple(f"{key}{join}{end}" for end in kind.suffixes) for key in KEYS for join in ("_", "", "-"))
    return next((both for both in names if set(both) <= set(columns)), None)


def uses(columns) -> set[str]:
    """The columns that `pairs` reads."""
    if several.has_list(columns):
        return {*several.used_by_several(columns), *COLUMNS}
    return {*used_by_two(columns), *_two_scores(columns)}


FORMAT = Format(columns="prompt, responses, scores", has=has, pairs=pairs, uses=uses, owns=owns)
