"""Check that transformers gives the scores of an exported judge, as a server such as vLLM would.

python -m dwrl_jax.check_export --model=exports/tiny --input=rows.jsonl

A row is one that `python -m dwrl_jax.score` reads. Both sides compute in float32. The exit code is 1 if a difference is
above 1e-4. It needs PyTorch.
"""

import itertools
import sys

from dwrl_jax.core.terminal import say
from dwrl_jax.judge.exported import LIMIT, compare
from dwrl_jax.judge.scored_file import read_rows
from dwrl_jax.settings.commandline import Flag, command, folder, parse_flags, start

FLAGS = {
    "model": Flag("exports/tiny", "a folder that python -m dwrl_jax.export wrote", required=True, read=folder),
    "input": Flag("rows.jsonl", "the rows, .jsonl or .jsonl.gz", required=True, read=folder),
    "rows": Flag("32", "the first so many of them", default=16, read=int),
    "votes": Flag("8", "thoughts per response", default=4, read=int),
    "seed": Flag("1", "seed of the thoughts", default=0, read=int),
}


@command
def main(arguments: list[str] | None = None) -> None:
    given = parse_flags(arguments, FLAGS, __doc__)
    start()
    rows = itertools.islice(read_rows(given.input), given.rows)
    found = compare(given.model, rows, given.votes, seed=given.seed)
    say(f"{found.votes} votes about {found.responses} responses; {found.errors} rows could not be scored")
    say(f"largest difference of a vote's log score, or of a value head's output: {found.outputs:.1e}")
    say(f"largest difference of a score: {found.scores:.1e}; both may be {LIMIT:.0e}")
    if found.changed:
        say(f"{found.changed} votes are other ones than the judge's own: the text of their thoughts has other tokens")
    say("equal" if found.equal else "not equal")
    sys.exit(0 if found.equal else 1)


if __name__ == "__main__":
    main()
