"""Markdown pages with a part between two marks that a program makes; the rest is written by hand and stays."""

BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table, and an empty one."""
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)] + [""]


def device(data: dict) -> str:
    """The processor that the figures of a study hold for."""
    host = data["machine"]
    name = host["cpu"] if host["device"] == "cpu" else f"{host['device']}, {host['cpu']}"
    return f"{name}, {host['cores']} cores"


def splice(page: str, generated: str) -> str:
    """The page with the part between its marks replaced; at its end where it has none."""
    before, begin, rest = page.rpartition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        before, after = page.rstrip("\n") + "\n\n", "\n"
    return f"{before}{BEGIN}\n{generated}{END}{after}"


def between(page: str) -> str:
    """The generated part of a page."""
    return page.rpartition(BEGIN)[2].partition(END)[0].removeprefix("\n")
