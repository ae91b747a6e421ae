"""What sampling in few bits does to a judge's density: the table of docs/plan.md.

python -m studies.sampling_in_few_bits --model=FOLDER [--judge=judge.json] --input=ROWS.jsonl.gz [--rows=32] [--votes=4]

For each pair of `sampler.cache` and `sampler.weights`, thoughts about the chosen responses are drawn and then read by
the training pass. q is the density that sampled, pi that of the training pass. The columns:
gap         mean of |log q - log pi| over the thoughts' tokens, in nats
KL          mean of log q - log pi over the tokens, in nats: an estimate of KL(q || pi)
largest     largest gap of a token
effective   (sum_i rho_i)^2 / (n sum_i rho_i^2) over all thoughts, rho = pi(o) / q(o): 100 % where q is pi
score       mean of |p read by the sampler's cache - p read by the training pass| of the good answer, in points
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from dwrl_jax.core.errors import exit_cleanly
from dwrl_jax.evaluation import benchmarks
from dwrl_jax.generation.forced import teacher_forced
from dwrl_jax.generation.keys import content_keys
from dwrl_jax.generation.sampler import SamplerOptions, follow, write
from dwrl_jax.judge import load
from dwrl_jax.judge.card import read_card
from dwrl_jax.judge.judge import answer_logps
from dwrl_jax.reporting.suite import markdown
from studies.asking import Asked, batches

KINDS = [("", ""), ("int8", ""), ("float8", ""), ("", "int8"), ("int8", "int8")]
TITLES = ("`sampler.cache`", "`sampler.weights`", "gap", "KL", "largest", "effective %", "score")


def compare(loaded, asked: list[Asked], votes: int, cache: str, weights: str) -> dict[str, np.ndarray]:
    """Log-probabilities of both densities, for each thought [n, T], and both log scores [n]."""
    judge, options = loaded.judge, SamplerOptions(votes, loaded.card.max_thought, cache=cache, weights=weights)

    def log_score(params, hidden):
        return answer_logps(judge, params, hidden, jnp.full(hidden.shape[:2], judge.answers[0]))[0]

    @jax.jit
    def found(params, prefix, prefix_len, content):
        keys = content_keys(0, content, votes, 0)
        drawn, kept = write(judge.writer, options, params, prefix, prefix_len, keys)
        forced = teacher_forced(judge.writer, params, prefix, prefix_len, drawn.thought, drawn.length, judge.question)
        scores = log_score(kept.params, follow(kept, judge.question)), log_score(params, forced.last)
        return {"q": drawn.logp, "pi": forced.logp, "length": drawn.length, "read": scores[0], "trained": scores[1]}

    with jax.set_mesh(loaded.mesh):
        parts = []
        for some in asked:
            part = jax.device_get(found(loaded.params, some.prefix[:, 0], some.length[:, 0], some.content[:, 0]))
            parts.append({name: value[: some.rows].reshape(-1, *value.shape[2:]) for name, value in part.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def line(found: dict[str, np.ndarray]) -> list[str]:
    gap, tokens = found["q"] - found["pi"], found["length"].sum()
    ratio = np.exp(-gap.sum(-1, dtype=np.float64))
    effective = ratio.sum() ** 2 / (len(ratio) * (ratio**2).sum())
    moved = np.abs(np.exp(found["read"]) - np.exp(found["trained"])).mean()
    numbers = np.abs(gap).sum() / tokens, gap.sum() / tokens, np.abs(gap).max()
    return [*(f"{number:.2g}" for number in numbers), f"{100 * effective:.1f}", f"{100 * moved:.2g}"]


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--judge", type=Path, help="a judge.json in the place of the model's own")
    parser.add_argument("--benchmark", default="pairs")
    parser.add_argument("--input", required=True, help="the pairs, as `evaluate --data` takes them")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--votes", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=8)
    given = parser.parse_args(arguments)
    loaded = load(given.model, card=read_card(given.judge) if given.judge else None)
    rows = [row for row in benchmarks.read(given.benchmark, given.input) if "error" not in row][: given.rows]
    asked = list(batches(loaded, rows, given.batch_size, responses=1))
    lines = []
    for cache, weights in KINDS:
        found = compare(loaded, asked, given.votes, cache, weights)
        lines.append([cache or "-", weights or "-", *line(found)])
        print(" ".join(lines[-1]), file=sys.stderr, flush=True)
    print(f"{len(found['length'])} thoughts, {found['length'].sum()} tokens\n\n{markdown(list(TITLES), lines)}")


if __name__ == "__main__":
    main()
