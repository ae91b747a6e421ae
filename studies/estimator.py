"""Bias and variance of DWRL's gradient estimate, beside the exact gradient. A page and a picture go to docs/.

python studies/estimator.py [--draws=20000] [--output=docs]

A small random judge has so few thoughts that all can be enumerated: the exact gradient of -log P(y+ > y-) is known.
The exact gradient and every estimate are sums over thoughts o of a number times a vector. The vector is grad log pi(o)
in the thought term and grad log pi(a | o) in the score term. The numbers follow from the losses of dwrl_jax.objectives
by automatic differentiation. Norms of gradients follow from the inner products of the vectors, which are made once, so
that many groups can be drawn.
"""

import argparse
import functools
import itertools
import math
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from dwrl_jax.core.types import Logps, PreferenceBatch, ThoughtBatch
from dwrl_jax.judge.judge import Judge, logps
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config
from dwrl_jax.models.families.presets import PRESETS, shrink
from dwrl_jax.models.transformer import Decoder
from dwrl_jax.objectives import dwrl
from dwrl_jax.objectives.grpo_point import group_advantage
from dwrl_jax.objectives.parts.policy import policy_loss
from studies import estimator_page
from studies.speed.run import machine, positive

PAD, GOOD, BAD, END, ASK, JUDGE = range(6)
VOCAB, PREFIX, MAX_THOUGHT = 8, 6, 2
CANDIDATES, CHUNK = 1000, 2000  # pairs to choose from, groups drawn at once
SIZES = (1, 2, 4, 8, 16, 32)
# P(y+ > y-) and the relative variance of a thought's score, Var s / p^2, that the pairs are chosen to be close to
WANTED = {"easy": (0.85, 0.4), "even": (0.5, 0.4), "hard": (0.15, 0.4), "even, peaked scores": (0.5, 4.0)}
TOGETHER = "all four together"


class Pairs(NamedTuple):
    """Pairs with all their thoughts. The first axis: log pi(o), log s = log pi(a | o), in nats."""

    tables: Float[Array, "2 B S M"]
    products: Float[Array, "2 BSM BSM"]  # inner products of their gradients by the parameters


def standardised_loss(logps: Logps, thoughts: ThoughtBatch):
    """Eq. 15 with (w_i - mean w) / (n std w) in the place of w_i: the group scaling of GRPO (ours)."""
    w_mis = dwrl.misalignment_weight(dwrl.log_preference_score(logps.answer))[:, None, None]
    weight = group_advantage(dwrl.thought_weight(logps.answer)) / logps.answer.shape[-1]
    return policy_loss(logps, thoughts, jnp.asarray(dwrl.SIGN)[:, None] * w_mis * weight, dwrl.Hyper())


THOUGHT, SCORE = 0, 1
# name -> (which term it estimates, its loss)
ESTIMATORS = {
    "score term": (SCORE, dwrl.score_loss),
    "thought term, no baseline": (THOUGHT, functools.partial(dwrl.thought_loss, hyper=dwrl.Hyper(baseline="none"))),
    "1/n": (THOUGHT, functools.partial(dwrl.thought_loss, hyper=dwrl.Hyper(baseline="mean"))),
    "leave-one-out": (THOUGHT, functools.partial(dwrl.thought_loss, hyper=dwrl.Hyper(baseline="leave_one_out"))),
    "group standard deviation": (THOUGHT, standardised_loss),
}


def make_judge(seed: int) -> tuple[Judge, dict]:
    """A small judge. Large weights make thoughts and scores differ; a high temperature keeps thoughts apart."""
    shape = model_config(shrink(PRESETS["qwen2.5-3b"], VOCAB))
    params = jax.tree.map(lambda leaf: 3.25 * leaf, hf.random_params(shape, seed))
    judge = Judge(
        Decoder(shape), question=(END, ASK, JUDGE), answers=(GOOD, BAD), pad=PAD, temperature=3.0, readout="choices"
    )
    return judge, params


def thought_space(end: int = END) -> tuple[Int[np.ndarray, "M T"], Int[np.ndarray, " M"]]:
    """Every thought of at most MAX_THOUGHT tokens, ended or cut off at the limit, and its length."""
    others = [token for token in range(VOCAB) if token != end]
    thoughts = [
        (*words, end) for length in range(MAX_THOUGHT) for words in itertools.product(others, repeat=length)
    ] + list(itertools.product(others, repeat=MAX_THOUGHT))
    padded = [thought + (PAD,) * (MAX_THOUGHT - len(thought)) for thought in thoughts]
    return np.array(padded), np.array([len(thought) for thought in thoughts])


def random_prefixes(count: int, seed: int) -> Int[np.ndarray, "B S L"]:
    """Random prefixes without end tokens and answers."""
    return np.random.default_rng(seed).integers(ASK, VOCAB, (count, 2, PREFIX))


def tables_of(judge: Judge, params, prefix: Int[Array, "B S L"], thought, length) -> Float[Array, "2 B S M"]:
    """log pi(o) and log s of thoughts [M T] with lengths [M] about every response."""
    sides, count = prefix.shape[:2], len(prefix)
    batch = PreferenceBatch(
        prefix, jnp.full(sides, PREFIX), jnp.full(sides, GOOD), jnp.ones(count, bool), jnp.arange(count)
    )
    thought, length = (jnp.broadcast_to(x, (*sides, *x.shape)) for x in (thought, length))
    forced = logps(judge, params, batch, ThoughtBatch(thought, length, jnp.zeros(thought.shape)))
    return jnp.stack([forced.thought.sum(-1), forced.answer])


def exact_log_scores(tables: Float[Array, "2 B S M"]) -> Float[Array, "B S"]:
    """log p = log sum_o pi(o) s(o)."""
    return jax.nn.logsumexp(tables.sum(0), -1)


def score_spread(tables: Float[Array, "2 B S M"]) -> Float[Array, "B S"]:
    """Var s / p^2 over thoughts: zero where all scores are equal, large where few thoughts make the whole score."""
    log_pi, log_s = tables
    return jnp.exp(jax.nn.logsumexp(log_pi + 2 * log_s, -1) - 2 * exact_log_scores(tables)) - 1


def choose(tables: Float[Array, "2 B S M"], wanted: dict[str, tuple[float, float]]) -> dict[str, int]:
    """The pair that is closest to each wanted probability (in log-odds) and spread of both sides (in logarithms)."""
    log_p = np.asarray(exact_log_scores(tables), np.float64)
    margin, spread = log_p[:, 0] - log_p[:, 1], np.log(np.maximum(score_spread(tables), 1e-6))
    closest = {}
    for name, (probability, size) in wanted.items():
        off = np.abs(margin - np.log(probability / (1 - probability)))
        closest[name] = int(np.argmin(2 * off + np.abs(spread - np.log(size)).sum(1)))
    return closest


def enumerate_pairs(judge: Judge, params, prefix: Int[Array, "B S L"]) -> Pairs:
    """Tables of a few pairs, and the inner products of all their gradients."""
    flat, restore = ravel_pytree(params)
    thought, length = thought_space(judge.end)
    places = np.indices((*prefix.shape[:2], len(thought))).reshape(3, -1)

    def gradients(place):
        pair, side, o = place
        alone, only, size = prefix[pair, side][None, None], jnp.asarray(thought)[o][None], jnp.asarray(length)[o][None]
        return jax.jacrev(lambda x: tables_of(judge, restore(x), alone, only, size).ravel())(flat)

    vectors = jax.jit(lambda: jax.lax.map(gradients, tuple(places), batch_size=57))()
    vectors = np.asarray(vectors, np.float64).transpose(1, 0, 2)
    tables = jax.jit(functools.partial(tables_of, judge))(params, prefix, thought, length)
    return Pairs(tables, jnp.asarray(vectors @ vectors.transpose(0, 2, 1), jnp.float32))


def exact_numbers(tables: Float[Array, "2 B S M"]) -> Float[Array, "2 B S M"]:
    """d(sum of -log P(y+ > y-)) / d tables: the weights of each thought's two gradients in the exact gradient."""
    return jax.grad(lambda tables: dwrl.pair_nll(exact_log_scores(tables)).sum())(tables)


def group_numbers(loss, tables: Float[Array, "2 B S M"], groups: Int[Array, "B S G"]) -> Float[Array, "2 B S M"]:
    """The same of an estimate, from a group of thoughts for every response. A thought counts as one token."""

    def total(tables):
        log_pi, log_s = jnp.take_along_axis(tables, groups[None], -1)
        drawn = Logps(log_pi[..., None], log_s, jnp.ones_like(log_s), jnp.zeros_like(log_pi)[..., None])
        ones = jnp.ones(groups.shape, jnp.int32)
        sampled = ThoughtBatch(ones[..., None], ones, jax.lax.stop_gradient(drawn.thought))
        return loss(drawn, sampled)[0].sum()

    return jax.grad(total)(tables)


def draw_groups(key, log_pi: Float[Array, "B S M"], count: int, size: int) -> Int[Array, "N B S G"]:
    """`count` groups of `size` thoughts for every response, by the inverse of the distribution function."""
    below = jnp.cumsum(jnp.exp(log_pi), -1)
    drawn = jax.random.uniform(key, (count, *log_pi.shape[:2], size))
    find = jax.vmap(jax.vmap(jnp.searchsorted))  # over pairs and sides
    groups = jax.vmap(find, (None, 0))(below / below[..., -1:], drawn)
    return jnp.minimum(groups, log_pi.shape[-1] - 1)


@functools.partial(jax.jit, static_argnames=("name", "size", "count"))
def draw_estimates(pairs: Pairs, parts: Float[Array, "parts B"], key, *, name: str, size: int, count: int):
    """`count` estimates with groups of `size`, summed over the pairs of each part (1 if a pair belongs to it, else 0).

    Returns for each part the mean [parts BSM], the mean squared norm, and the mean cosine with the exact gradient. The
    cosine of a zero estimate is 0.
    """
    term, loss = ESTIMATORS[name]
    products, exact = pairs.products[term], exact_numbers(pairs.tables)[term]
    groups = draw_groups(key, pairs.tables[0], count, size)
    numbers = jax.vmap(lambda group: group_numbers(loss, pairs.tables, group)[term])(groups)

    def moments(part):
        mine, wanted = (numbers * part[:, None, None]).reshape(count, -1), (exact * part[:, None, None]).ravel()
        seen = mine @ products
        norm2 = (seen * mine).sum(1)
        length = jnp.sqrt(jnp.maximum(norm2, 0.0) * (wanted @ products @ wanted))
        cosine = jnp.where(length > 0, (seen @ wanted) / jnp.where(length > 0, length, 1.0), 0.0)
        return mine.mean(0), norm2.mean(), cosine.mean()

    return jax.lax.map(moments, parts)


def study(pairs: Pairs, parts: dict[str, list[int]], name: str, size: int, draws: int) -> list[dict]:
    """Measures of an estimator for each part (indices of pairs), relative to |g|, the norm of the exact term.

    "bias" is |E g^ - g| / |g|. The share that `draws` estimates have by chance, "chance", is taken out of it. "sd" is
    the root of the trace of the covariance, "signal_to_noise" |E g^| / sd. "cosine" is the mean cosine of an estimate
    with g, "mean_cosine" the cosine of E g^ with g.
    """
    keys = jax.random.split(jax.random.key(size), math.ceil(draws / CHUNK))
    count = math.ceil(draws / len(keys))
    masks = jnp.asarray([np.isin(np.arange(pairs.tables.shape[1]), part) for part in parts.values()], jnp.float32)
    chunks = [draw_estimates(pairs, masks, key, name=name, size=size, count=count) for key in keys]
    means, norms2, cosines = (np.mean(each, 0, dtype=np.float64) for each in zip(*jax.device_get(chunks)))
    term, _ = ESTIMATORS[name]
    products = np.asarray(pairs.products[term], np.float64)
    exact = np.asarray(exact_numbers(pairs.tables)[term], np.float64)
    rows = []
    for part, mask, mean, norm2, cosine in zip(parts, np.asarray(masks), means, norms2, cosines):
        wanted = (exact * mask[:, None, None]).ravel()
        length, mean_length = (np.sqrt(x @ products @ x) for x in (wanted, mean))
        variance = max(norm2 - mean_length**2, 0.0)
        chance2 = variance / (len(keys) * count)
        bias2 = max((mean - wanted) @ products @ (mean - wanted) - chance2, 0.0)
        rows.append({
            "pair": part,
            "estimator": name,
            "n": size,
            "bias": float(np.sqrt(bias2) / length),
            "chance": float(np.sqrt(chance2) / length),
            "sd": float(np.sqrt(variance) / length),
            "signal_to_noise": float(mean_length / np.sqrt(variance)) if variance else None,
            "cosine": float(cosine),
            "mean_cosine": float(mean @ products @ wanted / (mean_length * length)) if mean_length else None,
        })  # fmt: skip
    return rows


def run(draws: int, sizes: tuple[int, ...] = SIZES, seed: int = 0) -> dict:
    """The whole study: the pairs, and a row for each estimator, group size and pair, and for all pairs together."""
    judge, params = make_judge(seed)
    candidates = random_prefixes(CANDIDATES, seed)
    tables = jax.jit(functools.partial(tables_of, judge))(params, candidates, *thought_space(judge.end))
    picked = choose(tables, WANTED)
    pairs = enumerate_pairs(judge, params, jnp.asarray(candidates[list(picked.values())]))
    log_p, spread = exact_log_scores(pairs.tables), score_spread(pairs.tables)
    about = {
        name: {"probability": float(jax.nn.sigmoid(log_p[i, 0] - log_p[i, 1])), "spread": spread[i].tolist()}
        for i, name in enumerate(picked)
    }
    parts = {name: [i] for i, name in enumerate(picked)} | {TOGETHER: list(range(len(picked)))}
    cells = list(itertools.product(ESTIMATORS, sizes))
    rows = []
    for name, size in tqdm(cells, disable=not sys.stderr.isatty()):
        rows += study(pairs, parts, name, size, draws)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {"draws": draws, "thoughts": pairs.tables.shape[-1], "parameters": parameters, "pairs": about, "rows": rows}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=positive, default=20_000, help="groups drawn for each row")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder of estimator.md, .json and .png")
    given = parser.parse_args(arguments)
    command = shlex.join(["python", "studies/estimator.py", *(sys.argv[1:] if arguments is None else arguments)])
    data = run(given.draws) | {"machine": machine(), "command": command}
    for path in estimator_page.write(data, given.output):
        print(path)


if __name__ == "__main__":
    main()
