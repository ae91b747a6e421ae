"""The named worlds. Each has a file here, which says how it differs from the others and what it is for.

A file defines `RULES`, a value of `Rules`, and its name is the file's name.
"""

import dataclasses
import importlib
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Rules:
    """What tells a world from the plain one."""

    operations: int = 5  # of a prompt
    label_scale: float = 1.0  # labels are drawn at this multiple of the quality difference
    telling: float = 0.0  # probability that the style of a training response tells how far its claim is off
    distinct: int = 0  # different training pairs, seen again and again; 0 for pairs without end
    thinks_in: str = ""  # the world whose base model a run starts from; "" for its own


def names() -> list[str]:
    """The names of all worlds, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def load(name: str) -> Rules:
    """The rules of the world of this name, which is in `names()`."""
    return importlib.import_module(f"{__name__}.{name}").RULES
