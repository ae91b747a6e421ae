"""Rows with a list of responses that are scored or ranked: one pair for each two of them that differ."""

import itertools

from dwrl_jax.data.formats import Malformed
from dwrl_jax.data.formats.parts.conversation import make_pair
from dwrl_jax.data.formats.parts.prompt import prompt_of, used

LISTS = ("responses", "completions", "answers", "generations", "candidates", "outputs")
TEXTS = ("response", "text", "answer", "content", "completion", "output", "generation")


def has_list(columns) -> bool:
    """Whether a row with these columns has a list of responses. A row with a chosen response has none."""
    return not {"chosen", "rejected"} & set(columns) and any(name in columns for name in LISTS)


def list_of(row) -> str | None:
    """The column with the responses, or None."""
    return next((name for name in LISTS if isinstance(row.get(name), list)), None)


def item_key(items, keys) -> str | None:
    """The first of `keys` that every response has, if each response is a dictionary."""
    if not items or not all(isinstance(item, dict) for item in items):
        return None
    return next((key for key in keys if all(key in item for item in items)), None)


def values_of(row, columns, keys) -> list | None:
    """A value for each response: a list in one of `columns`, or a key of each response; None without them."""
    name = list_of(row)
    if name is None:
        return None
    if (key := item_key(row[name], keys)) is not None:
        return [item[key] for item in row[name]]
    return next((row[column] for column in columns if isinstance(row.get(column), list)), None)


def text_of(item):
    """The response in an item of the list: a string, messages, or one of the keys `TEXTS`."""
    if not isinstance(item, dict) or "role" in item or "from" in item:
        return item
    return next((item[key] for key in TEXTS if key in item), None)


def pairs_by(row, values, margins: bool = False):
    """A pair for each two responses with different values, the higher one chosen. An equal pair is a tie.

    With `margins` the difference of the values is the margin. Raises Malformed.
    """
    items = row[list_of(row)]
    if len(values) != len(items):
        raise Malformed(f"{len(items)} responses, but {len(values)} values")
    rated = [(text_of(item), value) for item, value in zip(items, values) if value is not None]
    yield from [Malformed("response without a value")] * (len(items) - len(rated))
    if len(rated) < 2:
        raise Malformed("fewer than two responses")
    prompt = prompt_of(row)
    for (first, one), (second, other) in itertools.combinations(rated, 2):
        if one == other:
            yield Malformed("tie")
            continue
        chosen, rejected = (first, second) if one > other else (second, first)
        margin = abs(one - other) if margins else None
        try:
            yield make_pair(row, prompt=prompt, chosen=chosen, rejected=rejected, margin=margin)
        except Malformed as reason:
            yield reason


def used_by_several(columns) -> set[str]:
    """The columns that a pair of `pairs_by` comes from, apart from values beside the list."""
    return {*used(columns), *[name for name in LISTS if name in columns][:1]}
