"""Put several short thoughts into a lane, so that an update computes fewer padding tokens.

A branch is its first token, its thought and the question. The G branches of a group are put into fewer lanes of the
same length. The host decides this from the lengths alone. The number of lanes has only a few possible values, because
each value needs a program of its own.
"""

import flax.struct
import numpy as np
from jaxtyping import Array, Int


@flax.struct.dataclass
class Packing:
    """The places of the tokens of a group's branches. U = G * T is the axis of all tokens, branch by branch."""

    source: Int[Array, "B S lanes T"]  # index into U of the token at this place, -1 if the place is empty
    place: Int[Array, "B S G"]  # index into lanes * T of the branch's first token


def pack(lengths: Int[np.ndarray, "B S G"], size: int) -> Packing | None:
    """Put branches of these lengths into G / 4 or G / 2 lanes of `size` tokens; None if they do not fit.

    The longest branch comes first, and each goes into the first lane with room (first-fit decreasing). All groups get
    the same number of lanes.
    """
    group = lengths.shape[-1]
    counts = [count for count in (group // 4, group // 2) if count]
    if not counts:
        return None
    starts = [_starts(row, size) for row in lengths.reshape(-1, group)]
    needed = max(int(place.max()) // size + 1 for place in starts)
    lanes = next((count for count in counts if count >= needed), None)
    if lanes is None:
        return None
    source = np.full((len(starts), lanes * size), -1, np.int32)
    for row, (places, tokens) in enumerate(zip(starts, lengths.reshape(-1, group))):
        for branch, (start, count) in enumerate(zip(places, tokens)):
            source[row, start : start + count] = branch * size + np.arange(count)
    return Packing(source.reshape(*lengths.shape[:2], lanes, size), np.stack(starts).reshape(lengths.shape))


def _starts(lengths: Int[np.ndarray, " G"], size: int) -> Int[np.ndarray, " G"]:
    """The place of each branch's first token, counted over all lanes."""
    used, places = [], np.zeros(len(lengths), np.int32)
    for branch in np.argsort(-lengths, kind="stable"):
        fitting = (lane for lane, tokens in enumerate(used) if tokens + lengths[branch] <= size)
        lane = next(fitting, len(used))
        if lane == len(used):
            used.append(0)
        places[branch] = lane * size + used[lane]
        used[lane] += lengths[branch]
    return places
