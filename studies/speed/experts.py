"""The grouped product of a mixture of experts beside a loop over experts:

python -m studies.speed.experts [--tokens=1024] [--width=256] [--size=96] [--rounds=5]

The loop computes every expert for all tokens, as shapes that do not depend on the data need it, and gives weight zero
to those that were not chosen. Both are compiled, and their rounds alternate in one process. A line for a forward pass
and one for its gradient has the median seconds of each and their ratio.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from dwrl_jax.models import experts

EXPERTS, EACH = 128, 8


def grouped(x, router, gate, up, down):
    weights, chosen, _ = experts.route(x, router, EACH, normalised=True)
    return experts.mixed(x, weights, chosen, gate, up, down)


def looped(x, router, gate, up, down):
    """The same mixture, one expert after another."""
    weights, chosen, _ = experts.route(x, router, EACH, normalised=True)

    def one(total, expert):
        number, g, u, d = expert
        share = jnp.where(chosen == number, weights, 0.0).sum(-1, keepdims=True)
        return total + share * ((jax.nn.silu(x @ g) * (x @ u)) @ d), None

    return jax.lax.scan(one, jnp.zeros_like(x), (jnp.arange(len(gate)), gate, up, down))[0]


def measure(tokens: int, width: int, size: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds of the grouped product and of the loop, by pass."""
    shapes = (tokens, width), (width, EXPERTS), *[(EXPERTS, width, size)] * 2, (EXPERTS, size, width)
    arguments = [0.1 * jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    ways = grouped, looped
    passes = {
        "forward": [jax.jit(way) for way in ways],
        "gradient": [jax.jit(jax.grad(lambda *a, way=way: way(*a).sum(), range(5))) for way in ways],
    }
    results = {}
    for name, programs in passes.items():
        first, second = (jax.block_until_ready(program(*arguments)) for program in programs)
        worst = max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second)))
        assert worst < 1e-4 * max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(second)), worst
        times = [[], []]
        for _ in range(rounds):
            for program, seconds in zip(programs, times):
                began = time.perf_counter()
                jax.block_until_ready(program(*arguments))
                seconds.append(time.perf_counter() - began)
        results[name] = tuple(map(statistics.median, times))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    for name, default in (("tokens", 1024), ("width", 256), ("size", 96), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    for name, (ours, loop) in measure(**vars(given)).items():
        print(f"{name}: grouped {ours:.3f} s, loop over experts {loop:.3f} s, {loop / ours:.1f} times as fast")


if __name__ == "__main__":
    main()
