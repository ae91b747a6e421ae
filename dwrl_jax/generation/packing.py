"""Several short thoughts in one lane: an update then computes what was written, not what could have been.

A group's G branches, each its opening token, its thought and the question, are laid into fewer lanes of the same
length. Lanes are decided on the host, from lengths alone; their number is one of a short list, since every
number is a program of its own.
"""

import flax.struct
import numpy as np
from jaxtyping import Array, Int


@flax.struct.dataclass
class Packing:
    """Where the tokens of a group's branches stand, U = G * T of them laid out branch by branch."""

    source: Int[Array, "B S lanes T"]  # index into U of the token at this place, -1 where there is none
    place: Int[Array, "B S G"]  # index into lanes * T of the branch's first token


def pack(lengths: Int[np.ndarray, "B S G"], size: int) -> Packing | None:
    """Branches of these lengths in a half or a quarter as many lanes of `size` tokens; None where they do not fit.

    Longest first, each into the first lane with room (first-fit decreasing); all groups get equally many lanes.
    """
    group = lengths.shape[-1]
    starts = [_starts(row, size) for row in lengths.reshape(-1, group)]
    needed = max(int(place.max()) // size + 1 for place in starts)
    lanes = next((count for count in (group // 4, group // 2) if count >= needed), None)
    if lanes is None:
        return None
    source = np.full((len(starts), lanes * size), -1, np.int32)
    for row, (places, counts) in enumerate(zip(starts, lengths.reshape(-1, group))):
        for branch, (start, count) in enumerate(zip(places, counts)):
            source[row, start : start + count] = branch * size + np.arange(count)
    return Packing(source.reshape(*lengths.shape[:2], lanes, size), np.stack(starts).reshape(lengths.shape))


def _starts(lengths: Int[np.ndarray, " G"], size: int) -> Int[np.ndarray, " G"]:
    """The first place of each branch, counted over all lanes."""
    used, places = [], np.zeros(len(lengths), np.int32)
    for branch in np.argsort(-lengths, kind="stable"):
        fitting = (lane for lane, tokens in enumerate(used) if tokens + lengths[branch] <= size)
        lane = next(fitting, len(used))
        if lane == len(used):
            used.append(0)
        places[branch] = lane * size + used[lane]
        used[lane] += lengths[branch]
    return places
