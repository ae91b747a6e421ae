"""The sections `log` and `checkpoint` of a config."""

import dataclasses

from dwrl_jax.core.settings import setting


@dataclasses.dataclass(frozen=True)
class LogSettings:
    thoughts_every: int = setting(25, "thoughts are written down every so many steps", at_least=1, resumable=True)
    thought_pairs: int = setting(4, "pairs whose thoughts are written down", at_least=0, resumable=True)


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    every: int = setting(50, "steps between checkpoints", at_least=1, resumable=True)
    keep: int = setting(2, "number of last checkpoints on disk; the best is kept too", at_least=1, resumable=True)
