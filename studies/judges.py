"""Tables of evaluated judges: docs/benchmarks_of_judges.md from the small files that are kept in docs/judges.

python studies/judges.py [--keep NAME=DIR ...] [--docs=docs]

With --keep it first takes finished outputs of `python -m dwrl_jax.evaluate` under these names; an output with several
benchmarks is several files. Each benchmark has a table, and so has each file of the benchmark "pairs". Differences in a
table are paired by row, and the first name is the reference.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from dwrl_jax.core import files
from dwrl_jax.core.errors import UserError, exit_cleanly
from dwrl_jax.evaluation import benchmarks, run
from dwrl_jax.evaluation.benchmarks.parts.result import Part, Result, difference
from dwrl_jax.reporting.evaluation_text import votes_of
from dwrl_jax.reporting.suite import markdown
from studies.pages import splice

ROOT = Path(__file__).parents[1]
PAGE, KEPT = "benchmarks_of_judges.md", "judges"
NUMBERS = ("overall", "interval", "n", "votes", "no_thought", "cost", "errors", "commit", "seed")
PAIRS = ("accuracy", "nll", "ece", "tempered", "confident half", "stability", "consistency")
TITLES = (
    "judge",
    "votes",
    "score %, 95 % interval",
    "less the first",
    "without a thought %",
    "thoughts add",
    "NLL",
    "after T",
    "ECE",
    "confident half %",
    "tokens per pair",
)


def keep(folder: Path, name: str, output: Path) -> None:
    """Write one file for each evaluation of an output: its numbers, and the value of each row for pairing.

    A name that is kept already has the place that it had; a new one comes last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = {each["name"]: each["place"] for each in map(files.read_json, sorted(folder.glob("*.json")))}
    place = places.get(name, max(places.values(), default=-1) + 1)
    for evaluation in run.read_all(output):
        summary, result, about = evaluation.summary, run.result_of(evaluation), evaluation.about
        pairs = summary["pairs"] or {}
        content = {
            "name": name,
            "place": place,
            "benchmark": about["benchmark"],
            "file": Path(about["data"]).name.partition(".")[0] if about["benchmark"] == "pairs" else "",
            "asked": votes_of(evaluation),
            **{key: summary.get(key) for key in NUMBERS},
            "pairs": {key: pairs.get(key) for key in PAIRS},
            "parts": {key: {"weight": part.weight, "values": dict(part.values)} for key, part in result.parts.items()},
        }
        words = "".join(letter if letter.isalnum() else "-" for letter in name)
        first = content["file"] or content["benchmark"]
        files.write_json(folder / f"{first}-{words}.json", content, separators=(",", ":"))


def read_kept(folder: Path) -> dict[tuple[str, str], list[dict]]:
    """The kept evaluations by benchmark and file of pairs, in the order in which they were given.

    UserError if there are none.
    """
    kept = sorted((files.read_json(path) for path in folder.glob("*.json")), key=lambda each: each["place"])
    if not kept:
        raise UserError(f"{folder}: no evaluations are kept here; give --keep NAME=DIR")
    found: dict[tuple[str, str], list[dict]] = {}
    for each in kept:
        found.setdefault((each["benchmark"], each.get("file", "")), []).append(each)
    return found


def result_of(kept: dict) -> Result:
    return Result({name: Part(part["weight"], part["values"]) for name, part in kept["parts"].items()}, {})


def line(kept: dict, first: dict) -> list[str]:
    """The cells of a judge."""
    pairs, plain = kept["pairs"], kept["no_thought"]
    change = difference(result_of(kept), result_of(first)) if kept is not first else None
    return [
        kept["name"],
        kept["asked"],
        f"{100 * kept['overall']:.1f} ({_span(kept['interval'])})",
        _points(change) if change else "",
        f"{100 * plain['overall']:.1f}" if plain else "",
        _points(plain["thoughts add"]) if plain else "",
        _number(pairs["nll"]),
        _number(pairs["tempered"] and pairs["tempered"]["nll"]),
        _number(pairs["ece"]),
        f"{100 * pairs['confident half']:.1f}" if pairs["confident half"] is not None else "",
        f"{kept['cost']['tokens per pair']:.0f}" if kept["cost"] else "",
    ]


def tables(kept: dict[tuple[str, str], list[dict]]) -> str:
    """Markdown with a table for each benchmark and file of pairs."""
    parts = []
    for (name, file), judges in kept.items():
        title = benchmarks.load(name).title + (f" of `{file}`" if file else "")
        commits = ", ".join(dict.fromkeys(each["commit"] for each in judges))
        count = f"{judges[0]['n']} rows, seed {judges[0]['seed']}, commit {commits}"
        lines = [line(each, judges[0]) for each in judges]
        parts.append(f"**{title}** ({count})\n\n{markdown(list(TITLES), lines)}")
    return "\n\n".join(parts) + "\n"


def _points(change: dict) -> str:
    low, high = (f"{100 * end:+.1f}" for end in change["interval"])
    return f"{100 * change['overall']:+.1f} ({low} to {high})"


def _span(interval: list[float]) -> str:
    return " to ".join(f"{100 * end:.1f}" for end in interval)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", nargs="+", default=[], help="NAME=DIR; new names come below those that are kept")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the page")
    given = parser.parse_args(arguments)
    for pair in given.keep:
        name, _, output = pair.partition("=")
        keep(given.docs / KEPT, name, Path(output))
    page = given.docs / PAGE
    files.write_text(page, splice(page.read_text(encoding="utf-8"), tables(read_kept(given.docs / KEPT))))


if __name__ == "__main__":
    main()
