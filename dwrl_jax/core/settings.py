"""Settings: a section of a config is a frozen dataclass, and each of its keys has a meaning and a bound.

    batch_size: int = setting(16, "pairs per step", at_least=1)

The dataclass is in the room that reads the section. A type `Literal["a", "b"]` lists the choices of a key.
"""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Setting:
    """A key of a section. If the value is a tuple, the bounds hold for each of its items.

    `count` is the exact number of items of a tuple, `fewest` the smallest allowed number. `rule(value)` returns a
    message about any other fault, or None. `resumable` means that the key may change when a run goes on, because it
    changes results by no more than rounding.
    """

    default: Any
    meaning: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple = ()
    count: int | None = None
    fewest: int | None = None
    rule: Callable[[Any], str | None] | None = None
    resumable: bool = False


def setting(default, meaning: str, **bounds) -> Any:
    """A field of a section, described by the fields of `Setting`."""
    return dataclasses.field(default=default, metadata={"setting": Setting(default, meaning, **bounds)})


def keys(section: type) -> dict[str, Setting]:
    """{key: Setting} of a section, in the order of its fields. A plain field has no bound beyond its type."""
    types, described = typing.get_type_hints(section), {}
    for field in dataclasses.fields(section):
        kind = types[field.name]
        choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
        known = field.metadata.get("setting", Setting(field.default, ""))
        described[field.name] = dataclasses.replace(known, default=field.default, choices=choices)
    return described


def bound(described: Setting) -> str:
    """The bound in words, or "" if there is none."""
    if described.choices:
        return "one of " + ", ".join(map(str, described.choices))
    low = [f"at least {described.at_least:g}"] if described.at_least is not None else []
    low += [f"above {described.above:g}"] if described.above is not None else []
    high = [f"at most {described.at_most:g}"] if described.at_most is not None else []
    high += [f"below {described.below:g}"] if described.below is not None else []
    if described.at_least is not None and high:
        words = f"from {described.at_least:g} to {high[0].removeprefix('at most ')}"
    else:
        words = " and ".join(low + high)
    if isinstance(described.default, tuple) and words:
        words = f"each {words}"
    many = [f"{described.count} values"] if described.count is not None else []
    many += [f"at least {described.fewest} value{'s' * (described.fewest > 1)}"] if described.fewest is not None else []
    return ", ".join([*many, *([words] if words else [])])


def problem(described: Setting, value) -> str | None:
    """A message that says why a value is not allowed, or None if it is allowed."""
    if described.choices:
        return None if value in described.choices else f"choose one of {', '.join(map(str, described.choices))}"
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if described.count not in (None, len(values)) or len(values) < (described.fewest or 0):
        return f"give {bound(described)}"
    if not all(_inside(described, item) for item in values):
        words = bound(described)
        if described.at_least == 0 and words == "at least 0":
            return "must not be negative"
        return f"give {words}" if isinstance(value, (tuple, list)) else f"must be {words}"
    return described.rule(value) if described.rule else None


def _inside(described: Setting, value) -> bool:
    return (  # written so that NaN is outside
        (described.at_least is None or value >= described.at_least)
        and (described.above is None or value > described.above)
        and (described.at_most is None or value <= described.at_most)
        and (described.below is None or value < described.below)
    )


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """Number of devices along each axis. The product of the sizes is the number of all devices."""

    data: int = setting(1, "number of copies of the model; -1 for all remaining devices", resumable=True)
    fsdp: int = setting(
        -1, "number of parts of weights and optimizer; weights are gathered for use; -1 as above", resumable=True
    )
    tensor: int = setting(1, "number of parts of heads, feed-forward and vocabulary; -1 as above", resumable=True)
