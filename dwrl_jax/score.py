"""Score responses with a trained judge, or with any language model as it comes:

python -m dwrl_jax.score --model=FOLDER_OR_WORKDIR --input=rows.jsonl --output=scored.jsonl [--votes=8]

A row has `prompt` (a string or messages) and `response` or `responses`, or is a preference pair. The output has the
rows in their order, with all their columns and score, log_odds, votes, thoughts and rank. A row's scores do not depend
on the other rows. Stopped anywhere, the same command goes on.
"""

import argparse
from pathlib import Path

from dwrl_jax.core import files, hosts, sharding
from dwrl_jax.core.errors import UserError, exit_cleanly
from dwrl_jax.judge.card import read_card
from dwrl_jax.judge.load import load
from dwrl_jax.judge.scored_file import score_file


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    hosts.start()
    with hosts.together():
        loaded = load(
            given.model,
            checkpoint=given.checkpoint,
            card=read_card(given.judge) if given.judge else None,
            start=given.start,
            mesh=read_mesh(given.mesh),
        )
        score_file(loaded, given.input, given.output, given.votes, seed=given.seed, batch_size=given.batch_size)
    if hosts.first():
        errors = [row["error"] for row in files.read_lines(given.output) if "error" in row]
        if errors:
            print(f"{len(errors)} rows could not be scored, the first for: {errors[0]}; see their column error")
    print(given.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a run's workdir, an exported or Hugging Face folder, a hub id")
    parser.add_argument("--input", type=Path, required=True, help="rows: .jsonl or .jsonl.gz")
    parser.add_argument("--output", type=Path, required=True, help="a file of JSON lines that is not there yet")
    parser.add_argument("--votes", type=int, default=8, help="thoughts per response whose mean is the score (8)")
    parser.add_argument("--checkpoint", default="last", help="of a workdir: last, best or a step (last)")
    parser.add_argument("--judge", type=Path, help="a judge.json in the place of the folder's own")
    parser.add_argument("--start", help="the starting model's folder, for a judge that reads its thoughts")
    parser.add_argument("--seed", type=int, default=0, help="of the thoughts (0)")
    parser.add_argument("--batch_size", type=int, default=16, help="questions asked at a time (16)")
    parser.add_argument("--mesh", help="devices along the axes, such as data=2,tensor=4; all for the weights otherwise")
    return parser


def read_mesh(text: str | None) -> dict[str, int] | None:
    """Sizes of the mesh from "data=2,tensor=4"."""
    if text is None:
        return None
    sizes = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in sharding.AXES or not size.lstrip("-").isdigit():
            raise UserError(f"--mesh={text}: give sizes of {', '.join(sharding.AXES)}, such as data=2,tensor=4")
        sizes[axis] = int(size)
    return sizes


if __name__ == "__main__":
    main()
