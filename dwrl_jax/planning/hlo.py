"""Bytes that a compiled program sends between devices, read from its text (`compiled.as_text()`)."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64}

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_LOOP = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BRANCHES = re.compile(
    r" conditional\(.*(?:branch_computations=\{(.*?)\}|true_computation=(\S+), false_computation=(\S+))"
)
_CHANNEL = re.compile(r"channel_id=\d+")
_BEGUN = 'custom_call_target="AsyncCollectiveStart"'
_CALLED = re.compile(r"(?: fusion| call| async-start)\(.*(?:calls|to_apply)=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes that a device sends, by kind of collective. `turn` is a turn of a loop whose end depends on data.

    Such loops follow each other, and their turns are alike: `turn` is the mean of the loops. Where an outer loop is
    around them, `turn` is one of their turns in each turn of the outer loop.
    """

    once: dict[str, float]
    turn: dict[str, float]

    def total(self, turns: int) -> float:
        """Bytes of a run in which these loops take `turns` turns together."""
        return sum(self.once.values()) + turns * sum(self.turn.values())


@dataclasses.dataclass(frozen=True)
class _Use:
    """A use of a computation: how often a run of its user runs it; inf for a loop whose end depends on data."""

    name: str
    times: float
    branch: bool = False


def traffic(text: str, devices: int) -> Traffic:
    """Collectives of a program over `devices` devices.

    A loop with a counter counts as often as it turns. All branches of a conditional count, but not the loops in them
    whose end depends on data: they are another way to the same tokens. An operation that is spread over several
    fusions, to run beside them, counts once, also where some of them stand in a loop that it runs beside.
    """
    computations, entry = _computations(text)
    computations = _begun_once(computations)
    once, turns, loops = defaultdict(float), defaultdict(float), 0
    todo = [(entry, 1.0, once, False)]
    while todo:
        name, times, into, branch = todo.pop()
        seen = set()
        for line in _lines(computations, name):
            sent = _sent(line, devices)
            if sent and sent[2] not in seen:
                into[sent[0]] += times * sent[1]
                seen |= {sent[2]} if sent[2] else set()
            for use in _uses(line, computations):
                if use.times < math.inf:
                    todo.append((use.name, times * use.times, into, branch or use.branch))
                elif not branch:
                    todo.append((use.name, times, turns, branch))
                    loops += use.name == _LOOP.search(line)[2]
    return Traffic(dict(once), {kind: size / loops for kind, size in turns.items()})


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of every computation by name, and the name of the entry."""
    computations, entry, lines = {}, "", []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            lines = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("  "):
            lines.append(line)
    return computations, entry


def _begun_once(computations: dict[str, list[str]]) -> dict[str, list[str]]:
    """The computations, in which a collective that is begun in a fusion of its own stands in no other fusion.

    The compiler for TPUs repeats such a collective in each fusion that moves it on.
    """
    begun = {
        match[0]
        for lines in computations.values()
        if any(_BEGUN in line for line in lines)
        for match in map(_CHANNEL.search, lines)
        if match
    }

    def moves_on(line):
        return _COLLECTIVE.search(line) and (match := _CHANNEL.search(line)) and match[0] in begun

    return {
        name: lines if any(_BEGUN in line for line in lines) else [line for line in lines if not moves_on(line)]
        for name, lines in computations.items()
    }


def _lines(computations: dict[str, list[str]], name: str) -> Iterator[str]:
    """A computation's lines, and those of the fusions and calls in it."""
    for line in computations[name]:
        yield line
        called = _CALLED.search(line)
        if called and called[1] in computations:
            yield from _lines(computations, called[1])


def _uses(line: str, computations) -> Iterator[_Use]:
    loop = _LOOP.search(line)
    if loop:
        times = _turns(line, computations[loop[1]], computations[loop[2]])
        yield from (_Use(loop[1], times), _Use(loop[2], times))
    branches = _BRANCHES.search(line)
    if branches:
        names = branches[1].split(",") if branches[1] else branches.groups()[1:]
        yield from (_Use(name.strip(" %,"), 1.0, branch=True) for name in names)


def _turns(line: str, condition: list[str], body: list[str]) -> float:
    """Turns of a loop that counts from 0 to a constant, by 1 or by another constant; inf for any other loop."""
    known = _KNOWN.search(line)
    if known:
        return float(known[1])
    root = next(x for x in condition if x.startswith("  ROOT"))
    if " compare(" not in root or "direction=LT" not in root:
        return math.inf
    counter, limit = _operands(root)
    end = _constant(condition, limit)
    return math.inf if end is None else math.ceil(end / _step(_defined(condition, counter), body))


def _step(counter: str, body: list[str]) -> int:
    """By how much a turn raises the counter, which the condition reads as an element of the loop's tuple.

    It is 1 where the body does not say so plainly: a loop that the compiler unrolled adds a constant.
    """
    place = re.search(r" get-tuple-element\(.*index=(\d+)", counter)
    root = next((x for x in body if x.startswith("  ROOT") and " tuple(" in x), None)
    if not place or not root:
        return 1
    added = _defined(body, _operands(root)[int(place[1])])
    steps = [_constant(body, name) for name in _operands(added)] if " add(" in added else []
    return next((step for step in steps if step), 1)


def _operands(line: str) -> list[str]:
    """Names of an instruction's operands."""
    inside = re.sub(r"/\*.*?\*/", "", re.search(r" [a-z\-]+\((.*?)\)(?:,|$)", line)[1])
    return [operand.split("%")[-1].split(" ")[-1] for operand in inside.split(", ") if operand]


def _defined(lines: list[str], name: str) -> str:
    """The instruction of that name; empty if there is none."""
    return next((x for x in lines if re.match(rf" +(?:ROOT )?%?{re.escape(name)} = ", x)), "")


def _constant(lines: list[str], name: str) -> int | None:
    value = re.search(r" constant\((\d+)\)", _defined(lines, name))
    return int(value[1]) if value else None


def _sent(line: str, devices: int) -> tuple[str, float, str] | None:
    """(kind, bytes that a device sends on a ring, channel) of a collective; None for any other line."""
    match = _COLLECTIVE.search(line)
    if not match:
        return None
    arrays, kind = [_bytes(*array) for array in _ARRAY.findall(match[1]) if array[0] in _BITS or array[1]], match[2]
    if match[3] and kind != "all-reduce":
        arrays = arrays[len(arrays) // 2 :]  # operands come before results
    size, group = sum(arrays), _group(line, devices)
    share = {
        "all-gather": size * (group - 1) / group,
        "all-reduce": 2 * size * (group - 1) / group,
        "reduce-scatter": size * (group - 1),
        "all-to-all": size * (group - 1) / group,
        "collective-permute": size,
    }[kind]
    channel = _CHANNEL.search(line)
    return kind, share, channel[0] if channel else ""


def _bytes(dtype: str, sizes: str) -> float:
    bits = _BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])
    return math.prod(int(size) for size in sizes.split(",") if size) * bits / 8


def _group(line: str, devices: int) -> int:
    """The number of devices that take part together."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        sizes = dict(re.findall(r"('\w+')=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'\w+'", match[2]))
    return devices
