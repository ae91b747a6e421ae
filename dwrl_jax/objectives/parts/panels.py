"""The pictures that a report draws of an objective's metrics; each names the metrics as metrics.jsonl does."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Panel:
    """One small picture: `series` maps metrics to labels, `lines` labels to heights (None: not drawn)."""

    title: str
    unit: str
    series: dict[str, str]
    scale: float = 1.0
    lines: dict[str, float | None] = dataclasses.field(default_factory=dict)
    log: bool = False
