"""Ask a served judge about the rows of a file, line by line: python -m dwrl_jax.adapters rows.jsonl

$DWRL_JAX_URL is the address of the judge. A row has `prompt`, a string or messages, and `responses`. Each row is
written with its scores, or with the reason why it has none. The exit code is 1 if a row has none. No JAX is needed.
"""

import functools
import json
import sys
from collections.abc import Iterable

from dwrl_jax.adapters.client import JudgeError, Server, at_once, judge, server
from dwrl_jax.adapters.conversation import as_messages

BATCH = 256  # rows that are asked about at a time


def asked(at: Server, line: str) -> dict:
    """A row with its scores, from a line of a file."""
    try:
        row = json.loads(line)
        messages, responses = as_messages(row["prompt"]), row["responses"]
    except (ValueError, KeyError, TypeError) as error:
        return {"error": f"not a row with prompt and responses: {error}"}
    try:
        reply = judge(at, messages, responses, row.get("votes"), ("score", "log_odds"))
    except JudgeError as error:
        return row | {"error": str(error)}
    return row | {"score": reply["score"], "log_odds": reply["log_odds"]}


def main(lines: Iterable[str]) -> bool:
    """Write the rows in their order. False if one of them has no scores."""
    at, fine, waiting = server(), True, []
    for line in [*filter(str.strip, lines), None]:
        if line is not None:
            waiting.append(functools.partial(asked, at, line))
        if line is None or len(waiting) == BATCH:
            rows = at_once(at, waiting)
            print("".join(json.dumps(row) + "\n" for row in rows), end="", flush=True)
            fine, waiting = fine and not any("error" in row for row in rows), []
    return fine


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        sys.exit(0 if main(file) else 1)
