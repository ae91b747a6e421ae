"""The section `eval` of a config."""

import dataclasses

from dwrl_jax.core.settings import setting


def _groups(votes) -> str | None:
    """Votes are disjoint groups of the drawn thoughts, so each number must divide the largest one."""
    rest = [count for count in votes if max(votes) % count]
    return f"{rest[0]} does not divide {max(votes)}, and thoughts would be left over" if rest else None


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    votes: tuple = setting(
        (1, 8),
        "numbers of thoughts per response whose mean is the score; the largest one is drawn, and each divides it",
        fewest=1,
        at_least=1,
        rule=_groups,
    )
    pairs: int = setting(1000, "most held-out pairs that are judged; 0 for no evaluation", at_least=0)
    batch_size: int = setting(16, "held-out pairs judged at a time", at_least=1, resumable=True)
    every: int = setting(50, "steps between evaluations, for the curve and the best checkpoint; 0 for none", at_least=0)
    curve_pairs: int = setting(256, "held-out pairs behind the curve", at_least=0)
