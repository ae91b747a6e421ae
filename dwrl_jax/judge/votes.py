"""Turn the scores of votes into scores and ranks of responses, and say when more votes are not needed. NumPy alone."""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit

from dwrl_jax.core.errors import UserError

STAKES = 0.9, 0.99  # the first stake of a bet, and the largest one after it
GRID = (np.arange(400) + 0.5) / 400  # means that `mean_interval` tries
FAINTEST = float(np.finfo(np.float32).eps)  # the smallest 1 - p, because float32 cannot represent a p closer to 1


def log_odds(log_p: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """log p - log(1 - p), in nats. It is finite also if p is rounded to 1."""
    log_p = np.minimum(np.asarray(log_p, np.float64), np.log1p(-FAINTEST))
    return log_p - np.log(-np.expm1(log_p))


def mean_vote(log_scores: Float[np.ndarray, "*shape K"]) -> Float[np.ndarray, "*shape"]:
    """log p = log sum_k s_k - log K, the log of the mean over K votes. NaN where a vote is NaN."""
    with np.errstate(invalid="ignore"):
        return np.logaddexp.reduce(np.asarray(log_scores, np.float64), axis=-1) - np.log(log_scores.shape[-1])


def against_others(win: dict[tuple[int, int], float], count: int) -> Float[np.ndarray, " R"]:
    """Each response's mean probability to win against the others. win[i, j] is P(i > j) when i is shown first.

    P(i > j) is the mean over both orders: (win[i, j] + 1 - win[j, i]) / 2.
    """
    said = np.array([[0.0 if i == j else (win[i, j] + 1 - win[j, i]) / 2 for j in range(count)] for i in range(count)])
    return said.sum(1) / (count - 1)


def compared(log_odds_of: Float[np.ndarray, "R R"]) -> Float[np.ndarray, " R"]:
    """Each response's mean probability to win against the others, from the log-odds of i over j."""
    count = len(log_odds_of)
    return (expit(log_odds_of).sum(1) - 0.5) / (count - 1)  # subtracts the diagonal, which is 1/2


def ranks(score: Float[np.ndarray, " R"]) -> Int[np.ndarray, " R"]:
    """1 for the best response. Equal scores share the better rank."""
    return 1 + (np.asarray(score)[:, None] < np.asarray(score)).sum(1)


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """Votes in rounds, until a row is settled or the rounds are over.

    A row of several responses is settled when each two of them are: `log_capital` has reached log(1 / delta). A row of
    one response is settled when its `mean_interval` at level 1 - delta is at most `width` wide.
    """

    delta: float = 0.05
    width: float = 0.2
    rounds: tuple[int, ...] = (4, 4, 8, 16)

    @property
    def asked(self) -> tuple[int, ...]:
        """The rounds, each joined with the next one if no row could be settled after it.

        So no prefix is read again for nothing. At delta = .05 the first eight votes are asked at once.
        """
        asked, waiting, total = [], 0, 0
        for size in self.rounds[:-1]:
            waiting, total = waiting + size, total + size
            if _can_settle(self, total):
                asked.append(waiting)
                waiting = 0
        return (*asked, waiting + self.rounds[-1])


def _can_settle(rule: Adaptive, votes: int) -> bool:
    """Whether so many votes could settle a row: with equal differences, or with a single response's equal scores."""
    low, high = mean_interval(np.ones(votes), rule.delta)
    return bool(log_capital(np.ones(votes)) >= -np.log(rule.delta)) or high - low <= rule.width


def number_of(text: str, delta: float = Adaptive.delta, width: float = Adaptive.width) -> int | Adaptive:
    """The votes of a command line: a number, or "auto". UserError for anything else."""
    for name, value in (("delta", delta), ("width", width)):
        if not 0 < value < 1:
            raise UserError(f"--{name}={value}: must be above 0 and below 1")
    if text == "auto":
        return Adaptive(delta, width)
    if not text.isdecimal():
        raise UserError(f"--votes={text}: give a whole number, or auto")
    return int(text)


def settled(rule: Adaptive, log_scores: Mapping[tuple[int, ...], Float[np.ndarray, " K"]]) -> bool:
    """Whether a row needs no more votes. `log_scores` has those of each question, by the responses that it is about.

    A pairwise judge has two questions about two responses, one for each order.
    """
    scores = {which: np.exp(np.asarray(values, np.float64)) for which, values in log_scores.items()}
    if len(scores) == 1:
        low, high = mean_interval(next(iter(scores.values())), rule.delta)
        return high - low <= rule.width
    if len(next(iter(scores))) == 2:
        differences = [scores[i, j] - scores[j, i] for i, j in scores if i < j]
    else:
        differences = [scores[i] - scores[j] for i, j in itertools.combinations(scores, 2)]
    return bool((log_capital(np.stack(differences)) >= -np.log(rule.delta)).all())


def log_capital(
    differences: Float[np.ndarray, "*pairs T"], scaled: bool = True, most: float = STAKES[1]
) -> Float[np.ndarray, "*pairs"]:
    """log (K+ + K-) / 2 with K± = prod_t (1 + l_t g_t), the capital after bets on the sign of the next difference.

    `differences` d_t are those of two responses' scores, in [-1, 1]. The stakes l_t of K+ are at least 0 and those of
    K- at most 0, and both follow from earlier differences alone. The payoff g_t is d_t over the root mean square of the
    earlier differences, cut at -1 and 1 (ours). If both responses' scores have the same distribution, g_t is symmetric
    around 0, and the capital is a martingale: it reaches 1 / delta, at any time, with probability at most delta
    (Ville). Without `scaled` the payoff is d_t itself. The same then holds if only the means are equal, but small
    differences settle nothing within 32 votes, however steady they are. Source of bets on means: Waudby-Smith and
    Ramdas, arXiv 2010.09686.
    """
    differences = np.asarray(differences, np.float64)
    up, down, won, squares, power = (np.zeros(differences.shape[:-1]) for _ in range(5))
    for t, d in enumerate(np.moveaxis(differences, -1, 0)):
        scale = np.sqrt(power / max(t, 1))
        payoff = np.where(scale > 0, np.clip(d / np.where(scale > 0, scale, 1), -1, 1), np.sign(d)) if scaled else d
        stake = won / (squares + 0.25)
        first = min(STAKES[0], most)
        up = up + np.log1p((np.clip(stake, 0, most) if t else first) * payoff)
        down = down + np.log1p((np.clip(stake, -most, 0) if t else -first) * payoff)
        won, squares, power = won + payoff, squares + payoff**2, power + d**2
    return np.logaddexp(up, down) - np.log(2)


def mean_interval(scores: Float[np.ndarray, " T"], delta: float) -> tuple[float, float]:
    """An interval of the mean of scores in [0, 1]. It holds at all times together with probability 1 - delta.

    It has the means against which no bet has reached 1 / delta: prod_t (1 ± l_t (s_t - m)) / 2, where l_t follows from
    earlier scores. Source: the hedged capital of Waudby-Smith and Ramdas, arXiv 2010.09686.
    """
    up, down = np.zeros_like(GRID), np.zeros_like(GRID)
    total, spread = 0.5, 0.25  # as if one score of 1/2 with a variance of 1/4 had been seen
    for t, score in enumerate(np.asarray(scores, np.float64), 1):
        stake = np.sqrt(2 * np.log(2 / delta) / (spread * np.log1p(t)))
        up += np.log1p(np.minimum(stake, 0.9 / GRID) * (score - GRID))
        down += np.log1p(-np.minimum(stake, 0.9 / (1 - GRID)) * (score - GRID))
        total += score
        spread += (score - total / (t + 1)) ** 2
    kept = GRID[np.maximum(up, down) - np.log(2) < -np.log(delta)]
    half = (GRID[1] - GRID[0]) / 2
    return (float(kept[0] - half), float(kept[-1] + half)) if len(kept) else (float(np.mean(scores)),) * 2
