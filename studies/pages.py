"""Markdown pages. A program makes the part between two marks; the rest is written by hand and stays."""

import argparse
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table, and an empty line."""
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)] + [""]


def flags(about: str, page: str, arguments: list[str] | None) -> argparse.Namespace:
    """The flags of a study that makes a page from rows it keeps: --keep and --docs."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="a --workdir of dwrl_jax.reproduce")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help=f"folder of {page}")
    return parser.parse_args(arguments)


def device(data: dict) -> str:
    """The processor of a study's figures."""
    host = data["machine"]
    name = host["cpu"] if host["device"] == "cpu" else f"{host['device']}, {host['cpu']}"
    return f"{name}, {host['cores']} cores"


def splice(page: str, generated: str) -> str:
    """The page with a new part between its marks. A page without marks gets them at its end."""
    before, begin, rest = page.rpartition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        before, after = page.rstrip("\n") + "\n\n", "\n"
    return f"{before}{BEGIN}\n{generated}{END}{after}"


def between(page: str) -> str:
    """The generated part of a page."""
    return page.rpartition(BEGIN)[2].partition(END)[0].removeprefix("\n")
