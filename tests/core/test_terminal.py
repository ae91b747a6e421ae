"""A terminal shows what others wrote, and obeys none of it."""

import ast
import unicodedata
from pathlib import Path

import pytest

from dwrl_jax.core.errors import Stopped, UserError, exit_cleanly
from dwrl_jax.core.terminal import say, visible

PACKAGE = Path(__file__).parents[2] / "dwrl_jax"
PRINTERS = {"core/terminal.py", "adapters/__main__.py"}  # the second prints JSON, in which such signs are escaped
HOSTILE = {
    "\x1b[2J\x1b[31m": r"\x1b[2J\x1b[31m",
    "\x1b]52;c;cm0gLXJm\x07": r"\x1b]52;c;cm0gLXJm\x07",  # OSC 52 writes to the clipboard
    "\x9b2J\x9d0;title\x9c": r"\x9b2J\x9d0;title\x9c",
    "right\rwrong\b\x7f": r"right\rwrong\x08\x7f",
    "\u202egnp.\u2066exe\u2069": r"\u202egnp.\u2066exe\u2069",
    "one\u2028two\x85three\ufeff": r"one\u2028two\x85three\ufeff",
    "\ud83d": r"\ud83d",
}


@pytest.mark.parametrize("text", HOSTILE)
def test_commands_to_a_terminal_are_written_out(text, capsys):
    say(f"a {text} b")
    assert capsys.readouterr().out == f"a {HOSTILE[text]} b\n"


def test_words_lines_and_tabs_stay():
    text = "Größe\t→ 你好 🙂 नमस्ते می‌خواهم ⟦x⟧ \\x1b\nnext"
    assert visible(text) == text and visible("a\nb", lines=False) == r"a\nb"


def test_no_sign_that_a_terminal_obeys_is_left():
    obeyed = {"Cc", "Cs", "Zl", "Zp"}
    kept = [x for x in map(chr, range(0x110000)) if unicodedata.category(x) in obeyed and visible(x) == x]
    assert kept == ["\t", "\n"]
    directions = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    assert not [x for x in map(chr, range(0x110000)) if unicodedata.bidirectional(x) in directions and visible(x) == x]


@pytest.mark.parametrize(("error", "code"), [(UserError, 2), (lambda text: Stopped(text, 15), 143)])
def test_the_line_of_an_error(error, code, capsys):
    @exit_cleanly
    def main():
        raise error("rows.jsonl:3: \x1b[2J is no role")

    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == code and said.count("\n") == 1 and r":3: \x1b[2J is" in said


def test_an_error_that_quotes_lines_is_a_single_line(capsys):
    @exit_cleanly
    def main():
        raise UserError("id 'a\nerror: b'")

    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "error: id 'a\\nerror: b'\n"


def test_all_commands_print_through_it():
    for path in PACKAGE.rglob("*.py"):
        names = [node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)]
        assert "print" not in names or str(path.relative_to(PACKAGE)) in PRINTERS, f"{path}: print with say"
