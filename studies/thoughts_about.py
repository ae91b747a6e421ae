"""Whether a judge's thoughts are about the response: the table of thoughts in docs/findings.md.

python -m studies.thoughts_about --model=FOLDER --input=PAIRS.jsonl.gz --judge a.json b.json [--rows=32] [--votes=4]

Each judge.json is a way to ask the same model: other texts, another temperature, shorter thoughts. Thoughts about both
responses of a pair are drawn, and then read behind the other response too, where the prompt is the same. The columns:
own        share of the thoughts that are more probable behind their own response than behind the other one; 50 % where
           no thought says which response it is about. The interval draws pairs anew
nats       mean of log pi(o | x, y) - log pi(o | x, y'), in nats a thought
tokens     mean length of a thought
cut off    share of the thoughts that reached their limit
entropy    mean entropy of a token, in nats
answers    probability that is on the judge's answers
score sd   standard deviation of the good answer's probability over the thoughts about one response, in points
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from dwrl_jax.core.errors import UserError, exit_cleanly
from dwrl_jax.core.terminal import say
from dwrl_jax.evaluation import benchmarks
from dwrl_jax.generation.forced import teacher_forced
from dwrl_jax.generation.keys import content_keys
from dwrl_jax.generation.sampler import SamplerOptions, write
from dwrl_jax.generation.writer import content_length
from dwrl_jax.judge import load
from dwrl_jax.judge.card import read_card
from dwrl_jax.judge.judge import answer_logps
from dwrl_jax.judge.load import LoadedJudge
from dwrl_jax.reporting.suite import markdown
from studies.asking import batches

TITLES = ("asked as in", "own %, 95 % interval", "nats", "tokens", "cut off %", "entropy", "answers %", "score sd")
RESAMPLES = 2000
Found = dict[str, np.ndarray]


def ask(loaded: LoadedJudge, rows: list[dict], votes: int, size: int, name: str = "") -> Found:
    """For N pairs: log pi of each thought behind its `own` and behind the `other` response [N, 2, G], and more."""
    judge, options = loaded.judge, SamplerOptions(votes, loaded.card.max_thought)

    @jax.jit
    def found(params, prefix, length, content):
        def read(order):
            sides = (x[:, order].reshape(-1, *x.shape[2:]) for x in (prefix, length))
            return teacher_forced(judge.writer, params, *sides, drawn.thought, drawn.length, judge.question)

        flat = prefix.reshape(-1, prefix.shape[-1]), length.reshape(-1)
        drawn, _ = write(judge.writer, options, params, *flat, content_keys(0, content.reshape(-1, 2), votes, 0))
        own, other = read(np.array([0, 1])), read(np.array([1, 0]))
        score, mass, _ = answer_logps(judge, params, own.last, jnp.full(own.last.shape[:2], judge.answers[0]))
        parts = {"own": own.logp.sum(-1), "other": other.logp.sum(-1), "length": drawn.length, "score": score}
        cut_off = content_length(judge.writer, drawn.thought, drawn.length) == drawn.length
        parts |= {"mass": mass, "cut_off": cut_off, "entropy": own.entropy.sum(-1)}
        return {key: value.reshape(len(prefix), 2, votes) for key, value in parts.items()}

    parts, asked = [], list(batches(loaded, rows, size, responses=2))
    with jax.set_mesh(loaded.mesh):
        for some in tqdm(asked, desc=name, unit="batch", disable=not sys.stderr.isatty()):
            part = jax.device_get(found(loaded.params, some.prefix, some.length, some.content))
            parts.append({key: value[: some.rows] for key, value in part.items()})
    if not parts:
        raise UserError("--input: no pair that this judge can read")
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def own_share(found: Found) -> Float[np.ndarray, " N"]:
    """For each pair the share of its thoughts that are more probable behind their own response. A tie is half."""
    return (0.5 + 0.5 * np.sign(found["own"] - found["other"])).mean((1, 2))


def line(found: Found) -> list[str]:
    """The cells of one way of asking."""
    share, tokens = own_share(found), found["length"].sum()
    drawn = np.random.default_rng(0).choice(share, (RESAMPLES, len(share))).mean(1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return [
        f"{100 * share.mean():.1f} ({100 * low:.1f} to {100 * high:.1f})",
        f"{(found['own'] - found['other']).mean():+.2f}",
        f"{found['length'].mean():.1f}",
        f"{100 * found['cut_off'].mean():.0f}",
        f"{found['entropy'].sum() / tokens:.2f}",
        f"{100 * found['mass'].mean():.0f}",
        f"{100 * np.exp(found['score']).std(-1).mean():.1f}",
    ]


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--judge", type=Path, nargs="+", required=True, help="judge.json files, one for each line")
    parser.add_argument("--benchmark", default="pairs")
    parser.add_argument("--input", required=True, help="the pairs, as `evaluate --data` takes them")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--votes", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=8)
    given = parser.parse_args(arguments)
    rows = [row for row in benchmarks.read(given.benchmark, given.input) if "error" not in row][: given.rows]
    lines = []
    for path in given.judge:
        card = read_card(path)
        if card.kind not in ("verdict", "score") or card.thoughts != "policy":
            raise UserError(f"{path}: not a judge that thinks about single responses")
        found = ask(load(given.model, card=card), rows, given.votes, given.batch_size, path.stem)
        lines.append([f"`{path.stem}`", *line(found)])
    say(f"{len(found['own'])} pairs, {given.votes} thoughts about each response\n\n{markdown(list(TITLES), lines)}")


if __name__ == "__main__":
    main()
