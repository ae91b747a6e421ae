"""LLMBar: pairs about following an instruction, 100 natural and 319 adversarial ones.

The accuracy is the mean over both orders of the pair; a tie counts one half (ours: the benchmark's judges cannot tie).
Agreement is the share of the pairs with the same verdict in both orders, which a judge that scores each response has
always. The score is the mean over all pairs; published tables also have the mean over the four adversarial sets.

Source: Zeng et al., arXiv 2310.07641, https://github.com/princeton-nlp/LLMBar.
"""

import numpy as np

from dwrl_jax.data.formats import Malformed
from dwrl_jax.evaluation.benchmarks import Benchmark
from dwrl_jax.evaluation.benchmarks.parts.reading import need, read, stem
from dwrl_jax.evaluation.benchmarks.parts.result import Result, by_subset, means, pooled

NATURAL = "Natural"


def rows(data, split=""):
    """Rows of input, output_1, output_2 and label, 1 or 2. The file's or the folder's name is the subset."""
    return read(data, split, ("test",), _rows_of)


def _rows_of(raw, name):
    instruction, first, second, label = need(raw, "input", "output_1", "output_2", "label")
    if label not in (1, 2):
        raise Malformed(f"label {str(label)[:20]!r}, not 1 or 2")
    subset = stem(name).removeprefix("Adversarial_")
    yield {"subset": subset, "prompt": instruction, "responses": [first, second], "right": [label == 1, label == 2]}


def aggregate(scored):
    """The mean over pairs of the accuracy in both orders."""
    values = by_subset(scored, accuracy)
    subsets = means(values)
    adversarial = [value for name, value in subsets.items() if name != NATURAL]
    averages = {"agreement": float(np.mean([len(set(row["verdicts"])) == 1 for row in scored]))}
    if adversarial:
        averages["adversarial, mean over sets"] = float(np.mean(adversarial))
    averages["mean over sets"] = float(np.mean(list(subsets.values())))
    return Result(pooled(values), subsets, averages)


def accuracy(row) -> float:
    """The mean over the orders; a tie counts one half."""
    return float(np.mean([0.5 if verdict is None else row["right"][verdict] for verdict in row["verdicts"]]))


BENCHMARK = Benchmark("LLMBar", "input, output_1, output_2, label", rows, aggregate)
