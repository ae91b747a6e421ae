"""Held-out pairs of the built-in world. `data` is its seed, "0", or seed and number of pairs, "0:1000".

A tie counts one half. These are the pairs that a run with the same `world.seed` evaluates on.
"""

from dwrl_jax.core.errors import UserError
from dwrl_jax.data import world
from dwrl_jax.evaluation.benchmarks import Benchmark, pairs

PAIRS = 1000


def rows(data, split=""):
    """The first pairs of a split, "eval" or "train"."""
    seed, _, count = data.partition(":")
    split = split or "eval"
    if not seed.isdecimal() or not (count or "1").isdecimal() or split not in ("eval", "train"):
        raise UserError(f"--data={data}: give a seed, or seed:pairs, such as 0:1000; splits are eval and train")
    made = world.make_world(int(seed))
    for index in range(int(count or PAIRS)):
        pair = world.pair(made, split, index)
        yield {
            "id": str(index),
            "where": f"world {seed}:{index}",
            "subset": "world",
            "prompt": list(pair.prompt),
            "responses": [pair.chosen, pair.rejected],
            "right": [True, False],
        }


BENCHMARK = Benchmark("built-in world", "none", rows, pairs.aggregate, hub="0")
