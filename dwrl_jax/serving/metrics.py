"""Counts of the server, in Prometheus's form. Each server has a registry of its own."""

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128, 256)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


def _made(kind, name, meaning, labels=(), **more):
    return lambda registry: kind(f"dwrl_jax_{name}", meaning, labels, registry=registry, **more)


_MADE = {
    "waiting": _made(Gauge, "questions_waiting", "Questions that wait for a batch"),
    "open": _made(Gauge, "rows_open", "Rows that were taken and are not finished"),
    "batch": _made(Histogram, "batch_questions", "Questions in a batch", buckets=SIZES),
    "device": _made(Histogram, "batch_seconds", "Time of a batch on the device", buckets=SECONDS),
    "thoughts": _made(Counter, "thoughts", "Thoughts that were read"),
    "cut": _made(Counter, "thoughts_cut_off", "Thoughts that reached the longest length"),
    "cut_share": _made(Gauge, "thoughts_cut_off_share", "Share of the thoughts that reached the longest length"),
    "tokens": _made(Counter, "tokens", "Tokens, of prefixes and of thoughts", ("part",)),
    "requests": _made(Counter, "requests", "Requests by path and status", ("path", "status")),
    "seconds": _made(Histogram, "request_seconds", "Time of a request", ("path",), buckets=SECONDS),
}


@dataclass
class Metrics:
    """`registry` has the metrics for a scrape. The other fields are metrics of prometheus_client."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self):
        for name, make in _MADE.items():
            setattr(self, name, make(self.registry))
        self.read, self.cut_off = 0, 0
        self.cut_share.set_function(lambda: self.cut_off / self.read if self.read else 0.0)

    def count_answers(self, answers) -> None:
        """Count the thoughts of a batch. Called by one thread at a time."""
        thoughts, cut = sum(len(a.thoughts) for a in answers), sum(int(a.cut) for a in answers)
        self.read, self.cut_off = self.read + thoughts, self.cut_off + cut
        self.thoughts.inc(thoughts)
        self.cut.inc(cut)
        self.tokens.labels("thoughts").inc(sum(a.written for a in answers))
