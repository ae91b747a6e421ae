"""Markdown pages. A program makes the part between two marks; the rest is written by hand and stays."""

BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table, and an empty line."""
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)] + [""]


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
