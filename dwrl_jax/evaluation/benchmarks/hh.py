"""HH-RLHF: pairs of whole dialogues, "\\n\\nHuman: ...\\n\\nAssistant: ...", with a common beginning.

Accuracy over pairs, a tie counts one half. Source: Bai et al. 2022, https://github.com/anthropics/hh-rlhf.
"""

from dwrl_jax.evaluation.benchmarks import Benchmark, pairs

BENCHMARK = Benchmark("HH-RLHF", "chosen, rejected", pairs.rows, pairs.aggregate, hub="Anthropic/hh-rlhf")
