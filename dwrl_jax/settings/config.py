"""A config from its sections: their defaults, bounds and help. A section is a dataclass of core/settings.py."""

import difflib
import json
from collections.abc import Iterable, Mapping

from ml_collections import ConfigDict

from dwrl_jax.core import settings
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.settings import Setting

Sections = Mapping[str, type]  # by name; the keys of the section "" stand at the top of the config


def to_config(sections: Sections) -> ConfigDict:
    """The locked config of all defaults: an unknown key is an error."""
    config = ConfigDict()
    for key, described in keys(sections).items():
        section, _, name = key.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict()
        (config[section] if section else config)[name] = described.default
    return config.lock()


def keys(sections: Sections) -> dict[str, Setting]:
    """{"section.key": Setting} of several sections."""
    return {
        f"{name}.{key}".lstrip("."): described
        for name, section in sections.items()
        for key, described in settings.keys(section).items()
    }


def check(config: ConfigDict, sections: Sections) -> None:
    """UserError naming the first key whose value is outside its bound."""
    values = flat(config.to_dict())
    for key, described in keys(sections).items():
        if said := settings.problem(described, values[key]):
            raise UserError(f"{key}={values[key]!r}: {said}")


def describe(described: Mapping[str, Setting]) -> str:
    """Two lines for each key: its default, with a star if a run that goes on may change it; its bound and meaning."""
    lines = []
    for key, setting in described.items():
        said = "; ".join(words for words in (settings.bound(setting), setting.meaning) if words)
        lines.append(f"  {key} = {setting.default!r}{'  *' if setting.resumable else ''}\n      {said}")
    return "\n".join(lines)


def as_json(config: ConfigDict) -> dict:
    """The config as a file keeps it: tuples are lists there."""
    return json.loads(config.to_json_best_effort())


def flat(nested: dict, prefix: str = "") -> dict:
    """{"section.key": value} of a nested dictionary."""
    found = {}
    for key, value in nested.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def nearest(word: str, known: Iterable[str]) -> str:
    """The known name that a mistyped one is most like; "lr" is like "learning_rate" for its initials."""

    def likeness(name):
        last, wanted = name.split(".")[-1], word.split(".")[-1]
        initials = "".join(part[:1] for part in last.split("_"))
        similar = 1.0 if wanted == initials else difflib.SequenceMatcher(None, wanted, last).ratio()
        return similar + difflib.SequenceMatcher(None, word, name).ratio()

    return max(known, key=likeness)
