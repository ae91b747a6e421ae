"""Make a config from its sections, with defaults, bounds and help. `core/settings.py` describes sections."""

import difflib
import json
from collections.abc import Iterable, Mapping

from ml_collections import ConfigDict

from dwrl_jax.core import settings
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.settings import Setting

Sections = Mapping[str, type]  # by name; the keys of the section "" are at the top of the config


def to_config(sections: Sections) -> ConfigDict:
    """The config of all defaults. It is locked, so an unknown key is an error."""
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
    """UserError for the first key whose value is outside its bound; the error names the key."""
    values = flat(config.to_dict())
    for key, described in keys(sections).items():
        if said := settings.problem(described, values[key]):
            raise UserError(f"{key}={values[key]!r}: {said}")


def describe(described: Mapping[str, Setting]) -> str:
    """Two lines for each key. The first has its default, and a star if a run that goes on may change the key. The
    second has its bound and its meaning.
    """
    lines = []
    for key, setting in described.items():
        said = "; ".join(words for words in (settings.bound(setting), setting.meaning) if words)
        lines.append(f"  {key} = {setting.default!r}{'  *' if setting.resumable else ''}\n      {said}")
    return "\n".join(lines)


def as_json(config: ConfigDict) -> dict:
    """The config as it is stored in a JSON file, where tuples become lists."""
    return json.loads(config.to_json_best_effort())


def flat(nested: dict, prefix: str = "") -> dict:
    """{"section.key": value} of a nested dictionary."""
    values = {}
    for key, value in nested.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return values


def nearest(word: str, known: Iterable[str]) -> str:
    """The known name that is most similar to a mistyped name. "lr" is similar to "learning_rate" by its initials."""

    def likeness(name):
        last, wanted = name.split(".")[-1], word.split(".")[-1]
        initials = "".join(part[:1] for part in last.split("_"))
        similar = 1.0 if wanted == initials else difflib.SequenceMatcher(None, wanted, last).ratio()
        return similar + difflib.SequenceMatcher(None, word, name).ratio()

    return max(known, key=likeness)
