"""Held-out pairs of a built-in world. `data` is "SEED", "SEED:PAIRS", or with the world's name "long:0:1000".

A tie counts one half. These are the pairs that a run with the same `world.seed` evaluates on. The world "shortcut" has
a second subset, "alike", in which the style tells as much as in training.
"""

import re

from dwrl_jax.core.errors import UserError
from dwrl_jax.data import world, worlds
from dwrl_jax.evaluation.benchmarks import Benchmark, pairs

PAIRS = 1000
DATA = re.compile(rf"(?:({'|'.join(worlds.names())}):)?(\d+)(?::(\d+))?")


def rows(data, split=""):
    """The first pairs of a split, "eval", "alike" or "train". Without it "eval", and "alike" where that differs."""
    matched = DATA.fullmatch(data)
    if not matched or split not in ("", "eval", "alike", "train"):
        names = ", ".join(worlds.names())
        raise UserError(
            f"--data={data}: give a seed, or seed:pairs, such as 0:1000, also behind the name of a world, such as "
            f"long:0:1000; worlds are {names}, and splits eval, alike and train"
        )
    name, seed, count = matched[1] or "plain", matched[2], int(matched[3] or PAIRS)
    made = world.make_world(int(seed), name)
    splits = (split,) if split else ("eval", "alike") if made.rules.telling else ("eval",)
    for each in splits:
        for index in range(count):
            pair = world.pair(made, each, index)
            yield {
                "id": f"{index}" if each == splits[0] else f"{each} {index}",
                "where": f"world {seed}:{index}" if name == "plain" else f"world {name}:{seed}:{index}",
                "subset": "world" if each == splits[0] else each,
                "prompt": list(pair.prompt),
                "responses": [pair.chosen, pair.rejected],
                "right": [True, False],
            }


BENCHMARK = Benchmark("built-in world", "none", rows, pairs.aggregate, hub="0")
