"""Text for a terminal. What others wrote is shown there, and not obeyed: a terminal takes some signs for commands.

Every command prints through `say`.
"""

import re
import sys
from typing import IO

# C0 without tab and newline, DEL, C1, marks and overrides of direction, line and paragraph separators, the byte-order
# mark, and halves of surrogate pairs, which no terminal can be sent
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def visible(text: object, lines: bool = True) -> str:
    r"""A text in which each sign that a terminal would obey is written out, such as \x1b.

    Tabs stay, and so do ends of lines; without `lines` these are written out as well.
    """
    shown = _OBEYED.sub(lambda found: repr(found[0])[1:-1], str(text))
    return shown if lines else shown.replace("\n", r"\n")


def say(text: object, file: IO | None = None, lines: bool = True) -> None:
    """Print a text, and at once: to standard output, or to `file`."""
    print(visible(text, lines), file=file or sys.stdout, flush=True)
