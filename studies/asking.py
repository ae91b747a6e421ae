"""Questions about pairs, as batches of one padded length, for studies that ask a judge by hand."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt32

from dwrl_jax.generation.keys import content_seed
from dwrl_jax.judge.load import LoadedJudge
from dwrl_jax.judge.score import prepare


class Asked(NamedTuple):
    """Prefixes of the questions about R responses of P rows, of which the first `rows` count."""

    prefix: Int[np.ndarray, "P R L"]
    length: Int[np.ndarray, "P R"]
    content: UInt32[np.ndarray, "P R 2"]  # seeds
    rows: int


def batches(loaded: LoadedJudge, rows: list[dict], size: int, responses: int) -> Iterator[Asked]:
    """The questions about the first `responses` of each row, `size` rows of one padded length at a time.

    The last batch of a length is filled up with its first row. A row that the judge cannot read is left out.
    """
    by_length: dict[int, list] = {}
    for row in rows:
        questions = prepare(loaded, row).questions[:responses]
        if len(questions) == responses:
            longest = max(length for length, _ in questions)
            by_length.setdefault(longest, []).append([question.prefix for _, question in questions])
    for longest, asked in sorted(by_length.items()):
        for first in range(0, len(asked), size):
            some = asked[first : first + size]
            filled = [*some, *[some[0]] * (size - len(some))]
            ids = np.full((size, responses, longest), loaded.judge.pad, np.int32)
            for lines, prefixes in zip(ids, filled):
                for line, prefix in zip(lines, prefixes):
                    line[: len(prefix)] = prefix
            length = np.array([[len(prefix) for prefix in prefixes] for prefixes in filled], np.int32)
            content = np.array([[content_seed(prefix) for prefix in prefixes] for prefixes in filled])
            yield Asked(ids, length, content, len(some))
