"""The section `score` of a config."""

import dataclasses
from typing import Literal

from dwrl_jax.core.settings import setting


@dataclasses.dataclass(frozen=True)
class ScoreSettings:
    judge: str = setting("", 'kind of judge: "verdict", "label", "score", ...; empty for the objective\'s usual one')
    readout: Literal["vocab", "choices"] = setting(
        "vocab", 'probability over the full vocabulary ("vocab") or over the two answers ("choices")'
    )
    chunk: int = setting(1024, "number of tokens to which the lm-head is applied at a time", at_least=1, resumable=True)
