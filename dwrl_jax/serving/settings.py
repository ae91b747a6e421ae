"""How the server works: its limits, its votes and its token. `serve.py` reads them from flags."""

import functools
from dataclasses import dataclass
from typing import Literal

from dwrl_jax.judge.votes import Adaptive


@dataclass(frozen=True)
class ServeSettings:
    """Times are in seconds. A limit that is reached is an answer with an error, never a score.

    `sizes` are the numbers of votes for which programs are compiled. Other numbers are put together from them.
    """

    votes: int | Adaptive = 8
    seed: int = 0
    batch_size: int = 16
    sizes: tuple[int, ...] = (1, 4, 8)
    in_flight: int = 2  # batches at a time, each with memory of its own on the device
    reward: Literal["score", "log_odds"] = "score"  # the value in protocols that have a single number
    wait: float = 0.005  # a question waits so long at most for others to fill its batch
    queue: int = 4096  # questions that may wait
    max_votes: int = 64
    max_bytes: int = 1 << 20  # of a request
    timeout: float = 100.0  # of a request, from its last byte
    read_timeout: float = 20.0  # of a request's bytes
    stop: float = 30.0  # time to finish requests after SIGTERM
    linger: float = 0.5  # time after SIGTERM in which new requests are told to go elsewhere
    cohort: int = 1  # responses that /verify waits for
    cohort_wait: float = 60.0  # time that it waits
    token: str = ""  # bearer token; empty: none is asked for
    log: str = ""  # file for conversations and scores; empty: none is written

    @property
    def largest(self) -> int:
        """The largest number of votes of a row."""
        return max(self.max_votes, sum(self.votes.rounds) if isinstance(self.votes, Adaptive) else self.votes)


@functools.cache
def parts(votes: int, sizes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Numbers of `sizes` that add up to `votes`, the largest first; None if none do."""
    chosen = []
    for size in sorted(sizes, reverse=True):
        chosen += [size] * (votes // size)
        votes %= size
    return None if votes else tuple(chosen)
