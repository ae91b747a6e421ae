"""JSON values that are rows: a key that is twice, a value that is nested too deep, and rows in an array."""

import json
import re
from collections import Counter
from collections.abc import Iterator

NOT_JSON = "not json"
NAMES_LONGEST = 10_000  # characters of all names of a row's columns
HOLDERS = ("data", "rows", "examples", "train")  # keys under which a .json file may have its rows
HOLDER = re.compile(rb'"(%s)"\s*:\s*\[' % b"|".join(key.encode() for key in HOLDERS))


Doubled = dict[int, tuple[dict, str]]  # the id of an object, and the object with a key that it has twice


def decoder_of_rows() -> tuple[json.JSONDecoder, Doubled]:
    """A decoder, and the objects that it has met with a key twice."""
    doubled: Doubled = {}

    def made(items: list[tuple[str, object]]) -> dict:
        value = dict(items)
        if len(value) < len(items):
            counts = Counter(key for key, _ in items)
            doubled[id(value)] = value, counts.most_common(1)[0][0]
        return value

    return json.JSONDecoder(object_pairs_hook=made), doubled


def row_of(value, doubled: Doubled) -> dict | str:
    """The row, or why it is none."""
    if not isinstance(value, dict):
        return NOT_JSON
    if sum(map(len, value)) > NAMES_LONGEST:
        return f"names of columns of more than {NAMES_LONGEST:,} characters"
    if doubled and (key := _doubled_in(value, doubled)) is not None:
        return f"the key {ascii(key[:40])} twice"
    return value


def _doubled_in(value, doubled: Doubled) -> str | None:
    """The key that is twice in an object of a row."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            if id(each) in doubled:
                return doubled[id(each)][1]
            left += each.values()
        elif isinstance(each, list):
            left += each
    return None


def held(value) -> list | None:
    """The rows in the only object of a file."""
    if not isinstance(value, dict):
        return None
    lists = [value[key] for key in HOLDERS if isinstance(value.get(key), list)]
    return lists[0] if len(lists) == 1 and all(isinstance(row, dict) for row in lists[0]) else None


def values_of(text: str, decoder: json.JSONDecoder) -> Iterator[tuple[int, int, object]]:
    """(line number, length, value) of the values in an array, or of values one after another.

    ValueError where it breaks. A string in place of a value says why it is no row.
    """
    decode, blank = decoder.raw_decode, json.decoder.WHITESPACE.match
    at = blank(text, 0).end()
    array = text[at : at + 1] == "["
    at = blank(text, at + array).end()
    line, counted = 1, 0
    while at < len(text) and not (array and text[at] == "]"):
        line, counted = line + text.count("\n", counted, at), at
        start = at
        try:
            value, at = decode(text, at)
            value = NOT_JSON if isinstance(value, str) else value
        except ValueError as error:
            raise ValueError(f"line {line}: not JSON") from error
        except RecursionError:
            value, at = NOT_JSON, _behind(text, at)
        yield line, at - start, value
        at = blank(text, at).end()
        if array and text[at : at + 1] == ",":
            at = blank(text, at + 1).end()
    if array and text[at : at + 1] != "]":
        raise ValueError(f"the array breaks off behind line {line}")
    if array and text[at + 1 :].strip():
        raise ValueError("text behind the array")


_NESTS = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)


def _behind(text: str, at: int) -> int:
    """The place behind a value that is nested too deep to be read. ValueError if it breaks off."""
    depth = 0
    for found in _NESTS.finditer(text, at):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if not depth:
            return found.end()
    raise ValueError("a value that breaks off")
