"""RM-Bench: three right and three wrong responses to a prompt, in three styles: concise, detailed, detailed markdown.

M[i][j] is the share of the rows of a domain with score(right i) > score(wrong j); a tie is wrong. hard is the mean of
the upper triangle of M (a plain right response against a fancier wrong one), normal that of its diagonal, easy that of
the lower triangle. A domain is the mean of the three, which is the mean of the nine cells; the score is the mean of
chat, code, math and safety. The two files of safety are pooled.

Source: Liu et al., arXiv 2410.16184, https://github.com/THU-KEG/RM-Bench (README.md).
"""

import numpy as np

from dwrl_jax.data.formats import Malformed
from dwrl_jax.evaluation.benchmarks import Benchmark
from dwrl_jax.evaluation.benchmarks.parts.reading import need, read, stem
from dwrl_jax.evaluation.benchmarks.parts.result import Result, apart, by_subset, means

STYLES = 3
WHOLE = "total_dataset"
LEVELS = {
    "hard": np.triu(np.ones((STYLES, STYLES)), 1) / 3,
    "normal": np.eye(STYLES) / 3,
    "easy": np.tril(np.ones((STYLES, STYLES)), -1) / 3,
}


def rows(data, split=""):
    """Rows of id, prompt, chosen (three), rejected (three) and domain; without it the file's name says the domain."""
    read_rows = read(data, split, ("train",), _rows_of)
    kept = list(read_rows)
    whole = [row for row in kept if row["where"].startswith(WHOLE)]
    return iter(whole or kept)  # the repository's folder has all rows a second time, by domain


def _rows_of(raw, name):
    prompt, chosen, rejected = need(raw, "prompt", "chosen", "rejected")
    if not all(isinstance(side, list) and len(side) == STYLES for side in (chosen, rejected)):
        raise Malformed("chosen and rejected: not three responses each")
    domain = raw.get("domain") or raw.get("subset") or stem(name).removesuffix("_filtered")
    row = {
        "subset": "safety" if domain.startswith("safety") else domain,
        "prompt": prompt,
        "responses": [*chosen, *rejected],
        "right": [True] * STYLES + [False] * STYLES,
    }
    yield row | ({"id": f"{domain}/{raw['id']}"} if raw.get("id") is not None else {})


def aggregate(scored):
    """The mean over domains of the mean of hard, normal and easy."""
    values = by_subset(scored, lambda row: wins(row).mean())
    subsets, averages = means(values), {}
    for level, weight in LEVELS.items():
        of_domain = means(by_subset(scored, lambda row, weight=weight: (wins(row) * weight).sum()))
        averages[level] = float(np.mean(list(of_domain.values())))
        subsets |= {f"{domain}, {level}": value for domain, value in of_domain.items()}
    return Result(apart(values), subsets, averages)


def wins(row) -> np.ndarray:
    """[3, 3]: whether right response i has a higher score than wrong response j."""
    right, wrong = np.array(row["score"][:STYLES]), np.array(row["score"][STYLES:])
    return (right[:, None] > wrong).astype(float)


BENCHMARK = Benchmark("RM-Bench", "prompt, chosen, rejected, domain", rows, aggregate, hub="THU-KEG/RM-Bench")
