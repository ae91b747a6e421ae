"""Files of pairs of which a third is broken in known ways. By itself it measures memory:

python -m tests.data.broken --rows=100000 --longest=100
"""

import argparse
import gc
import gzip
import json
import random
import tempfile
from collections import Counter
from pathlib import Path

from dwrl_jax.data import row_files
from dwrl_jax.data.pairs import look_for_pairs

GOOD = {"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}
TWO = {"prompt": "Hi", "response_a": "a", "response_b": "b"}
DEEP = "[" * 100_000
NOT_JSON, SHAPE = "not json", "not a string or message list"
SURROGATE = "text is not Unicode (a lone surrogate)"
LONE = "\\ud83d"  # as it stands in JSON


def row(**changes) -> str:
    return json.dumps({name: value for name, value in (GOOD | changes).items() if value is not ...})


def asked(*roles: str) -> list[dict]:
    return [{"role": role, "content": "Hi"} for role in roles]


# (a line, the reason that costs it)
BROKEN = (
    ("oops", NOT_JSON),
    ("\x00\x00", NOT_JSON),
    ('{"prompt": "Hi", "chosen": "Hel', NOT_JSON),
    ("[1, 2]", NOT_JSON),
    ('"text"', NOT_JSON),
    ("null", NOT_JSON),
    ("\udcff{}", NOT_JSON),  # bytes that are not UTF-8
    (f'{{"prompt": {DEEP}', NOT_JSON),
    (f'{{"prompt": {DEEP}{DEEP.replace("[", "]")}, "chosen": "a", "rejected": "b"}}', NOT_JSON),
    ('{"margin": ' + "9" * 5000 + "}", NOT_JSON),
    ("{}", "unknown format: "),
    (row(chosen=...), "missing column: chosen"),
    (row(chosen=None), "missing column: chosen"),
    (row(rejected=...), "missing column: rejected"),
    (row(prompt=asked("assistant", "user")), "first turn not user"),
    (row(chosen=7), SHAPE),
    (row(chosen=[]), SHAPE),
    (row(prompt=7), SHAPE),
    (row(prompt={"a": 1}), SHAPE),
    (row(rejected=[["x"]]), SHAPE),
    (row(prompt=asked("user", "user")), "consecutive same role"),
    (row(prompt=asked("user", "pirate")), "unknown role: pirate"),
    (row(prompt=asked("\x1b[31m\n")), "unknown role: \\x1b[31m\\n"),
    (row(chosen=" "), "empty final turn"),
    (row(prompt=" "), "empty prompt turn"),
    (row(chosen="No. "), "chosen equals rejected"),
    (row(score_chosen=1, score_rejected=1), "tie: score_chosen equals score_rejected"),
    (row(score_chosen=1, score_rejected=2), "score_chosen is below score_rejected"),
    (row(chosen=[*asked("user"), *asked("assistant")], prompt="Bye"), "prompts differ"),
    (row().replace("Hello", LONE), SURROGATE),
    (row().replace("No", LONE), SURROGATE),
    (row().replace("Hi", LONE), SURROGATE),
    ('{"prompt": "Hi", "chosen": "Hello.", "rejected": "No.", "chosen": "Bye."}', "the key 'chosen' twice"),
    (row(chosen={"role": "assistant", "content": 1}).replace("1", '"a", "content": "b"'), "the key 'content' twice"),
    (json.dumps({f"{'x' * 99}{i}": i for i in range(200)}), "names of columns of more than 10,000 characters"),
    (json.dumps(TWO | {"label": 10**400}), f"label '1{'0' * 19}' names no response"),
    (json.dumps(TWO | {"label": float("nan")}), "label 'nan' names no response"),
)  # fmt: skip
# rows that are kept, odd as they are
ODD = (
    row(),
    row(chosen="\x00 NUL"),
    row(chosen="a\u2028b\r\n"),
    row(margin=float("nan")),
    row(margin=10**400),
    row(extra={"deep": [[[[]]]]}),
    "\ufeff" + row(),
    "  " + row() + " ",
    row(chosen="\U0001f600"),
)


def lines(count: int, seed: int) -> tuple[list[str], Counter]:
    """Lines of which a third is broken, and how often each reason must be counted."""
    rng, made, reasons = random.Random(seed), [row(prompt="the first")], Counter()
    while len(made) < count:
        if rng.random() < 1 / 3:
            text, reason = BROKEN[rng.randrange(len(BROKEN))]
            reasons[reason] += 1
            made.append(text)
        else:
            made.append(
                rng.choice(ODD) if rng.random() < 0.1 else row(prompt=f"{rng.random()} " * rng.randrange(1, 40))
            )
    return made, reasons


def check(reading, kept: int, reasons: Counter, count: int) -> None:
    """Exact counts, and nothing silent."""
    counted = Counter()
    for reason, number in reading.counts.items():  # a reason may end in words of the row
        known = [each for each in reasons if reason.startswith(each)]
        counted[max(known, key=len, default=reason)] += number
    assert counted == reasons, counted - reasons + (reasons - counted)
    assert kept + len(reading.rows) == reading.count == count
    assert all(where.rpartition(":")[2].isdigit() and reason.isprintable() for where, reason in reading.rows)


def write(path: Path, texts: list[str], end: str = "\n") -> Path:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wb") as file:
        for text in texts:
            file.write((text + end).encode("utf-8", "surrogateescape"))
    return path


def memory(name: str) -> float:
    """A line of /proc/self/status in MiB."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--longest", type=int, default=100, help="megabytes of a row")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl.gz"
        texts, reasons = lines(given.rows, seed=1)
        with gzip.open(path, "wb", 1) as file:
            for number, text in enumerate(texts):
                file.write((text + "\n").encode("utf-8", "surrogateescape"))
                if number == len(texts) // 2:
                    file.write(
                        b'{"prompt": "' + b"x" * (given.longest * 2**20) + b'", "chosen": "a", "rejected": "b"}\n'
                    )
        del texts, text
        gc.collect()
        reasons[row_files.TOO_LONG] += 1
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = memory("VmRSS")
        pairs, reading = look_for_pairs(path)
        grown = memory("VmHWM") - before
        check(reading, len(pairs), reasons, given.rows + 1)
        kept = sum(len(pair.prompt[0]["content"]) + len(pair.chosen) + len(pair.rejected) for pair in pairs) / 2**20
        print(f"{reading.count} rows, {len(pairs)} kept ({kept:.0f} MiB of text), {len(reading.counts)} reasons")
        print(f"memory grew by {grown:.0f} MiB")


if __name__ == "__main__":
    main()
