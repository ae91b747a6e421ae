"""Preference Proxy Evaluations (PPE): pairs of people's votes, and sets of sampled answers of known correctness.

Human pairs have response_1, response_2 and winner. Accuracy is the share of right verdicts; pairs that people called a
tie are left out, and a judge's tie is wrong. A set has response_1 .. response_K and `scores`, the correctness of each;
its accuracy is the share of right comparisons among the `sampled_conflict_pairs` of a prompt (all right-wrong pairs
where that column is missing), then the mean over prompts, and correctness is the mean over the sets. The score is the
mean of both kinds that are there.

The best-of-k curve of a set is the expected correctness of the answer with the highest score among k that are drawn
from the K, beside that of the best possible choice and of a random one. Its area is the mean over k = 1 .. K.

Source: Frick et al., arXiv 2410.14872, https://github.com/lmarena/PPE, and the data sets' columns.
"""

from math import comb

import numpy as np

from dwrl_jax.data.formats import Malformed
from dwrl_jax.evaluation.benchmarks import Benchmark
from dwrl_jax.evaluation.benchmarks.parts.reading import need, read
from dwrl_jax.evaluation.benchmarks.parts.result import Part, Result, by_subset, means

HUMAN = "human"
SETS = ("MMLU-Pro", "MATH", "GPQA", "MBPP-Plus", "IFEval")
HUB = "+".join(["lmarena-ai/PPE-Human-Preference-V1", *(f"lmarena-ai/PPE-{name}-Best-of-K" for name in SETS)])
WINNERS = {"model_a": [True, False], "model_b": [False, True]}


def rows(data, split=""):
    """Rows of question_id, prompt and response_1, response_2, ..., with winner or with scores."""
    for name in data.split("+"):
        usual = "test" if "Human" in name else "train"
        yield from read(name, split, (usual,), _rows_of)


def _rows_of(raw, name):
    (prompt,) = need(raw, "prompt")
    responses = []
    while isinstance(raw.get(f"response_{len(responses) + 1}"), str):
        responses.append(raw[f"response_{len(responses) + 1}"])
    row = {"prompt": prompt, "responses": responses}
    if "winner" in raw:
        if raw["winner"] not in WINNERS:
            raise Malformed(f"winner {str(raw['winner'])[:20]!r}: no pair with a winner")
        yield row | {"id": _identity(raw, HUMAN), "subset": HUMAN, "right": WINNERS[raw["winner"]]}
        return
    (correct,) = need(raw, "scores")
    if len(correct) != len(responses) or len(responses) < 2:
        raise Malformed(f"{len(responses)} responses, {len(correct)} scores")
    subset = next((known for known in SETS if known.lower() in name.lower()), "correctness")
    pairs = [(i, j) if correct[i] else (j, i) for i, j in raw.get("sampled_conflict_pairs") or ()]
    right = [bool(value) for value in correct]
    yield row | {"id": _identity(raw, subset), "subset": subset, "right": right, "compared": pairs}


def _identity(raw, subset) -> str:
    return f"{subset}/{raw.get('question_id', '')}/{raw.get('model_name', '')}".rstrip("/")


def compared(row) -> list[tuple[int, int]]:
    """(right, wrong) of a row: the sampled pairs of a set, else all."""
    if row.get("compared"):
        return [tuple(pair) for pair in row["compared"]]
    right = [i for i, good in enumerate(row["right"]) if good]
    return [(i, j) for i in right for j in range(len(row["right"])) if not row["right"][j]]


def aggregate(scored):
    """Accuracy of the human pairs and of the sets, and the best-of-k curves."""
    usable = [row for row in scored if compared(row)]  # a prompt whose answers are all right compares nothing
    values = by_subset(usable, accuracy)
    sets = [name for name in values if name != HUMAN]
    kinds = bool(sets) + (HUMAN in values)
    parts = {name: Part(1 / kinds / (1 if name == HUMAN else len(sets)), each) for name, each in values.items()}
    subsets, averages, curves = means(values), {}, {}
    if HUMAN in values:
        averages["human preference"] = subsets[HUMAN]
    if sets:
        averages["correctness, mean over sets"] = float(np.mean([subsets[name] for name in sets]))
    for name in sets:
        of_set = [row for row in scored if row["subset"] == name and len(row["right"]) == _most(scored, name)]
        for title, curve in best_of_k(of_set).items():
            curves[f"best of k, {name}, {title}"] = [float(value) for value in curve]
        averages[f"area under best of k, {name}"] = float(np.mean(curves[f"best of k, {name}, judge"]))
    return Result(parts, subsets, averages, curves)


def accuracy(row) -> float:
    """The share of the compared pairs whose right response has the higher score."""
    return float(np.mean([row["score"][i] > row["score"][j] for i, j in compared(row)]))


def _most(scored, name) -> int:
    return max(len(row["right"]) for row in scored if row["subset"] == name)


def best_of_k(scored) -> dict[str, np.ndarray]:
    """Mean over prompts, for k = 1 .. K: the judge's first choice among k random ones, the best one, a random one."""
    judge, ceiling, chance = [], [], []
    for row in scored:
        right, score = np.array(row["right"], float), np.array(row["score"])
        total, good = len(right), int(right.sum())
        # equal scores are drawn among at random, so each has the mean correctness of all that share its score
        shared = np.array([right[score == value].mean() for value in score])[np.argsort(-score, kind="stable")]
        judge.append([shared @ _first(total, k) for k in range(1, total + 1)])
        ceiling.append([1 - comb(total - good, k) / comb(total, k) for k in range(1, total + 1)])
        chance.append([right.mean()] * total)
    return {"judge": np.mean(judge, 0), "ceiling": np.mean(ceiling, 0), "chance": np.mean(chance, 0)}


def _first(total: int, k: int) -> np.ndarray:
    """Probability that each rank is the best one of k that are drawn: C(total - rank, k - 1) / C(total, k)."""
    return np.array([comb(total - rank, k - 1) / comb(total, k) for rank in range(1, total + 1)])


BENCHMARK = Benchmark(
    "PPE", "prompt, response_1, response_2, ..., with winner or scores", rows, aggregate, hub=HUB, pairs=compared
)
