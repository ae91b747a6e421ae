"""Flags of an entry point that takes a config: --config=FILE[:OBJECTIVE][,smoke] --config.KEY=VALUE --workdir=DIR."""

import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from dwrl_jax.core.errors import UserError


def parse(arguments: list[str] | None = None) -> tuple[ConfigDict, Path]:
    """The config with its overrides, locked, and the working directory.

    UserError for a missing or unknown flag, an unknown key and a value of the wrong type.
    """
    config, found = parse_flags(arguments, {"workdir": "runs/tiny"})
    return config, Path(found["workdir"]).expanduser()


def parse_flags(
    arguments: list[str] | None, required: dict[str, str], optional: tuple[str, ...] = ()
) -> tuple[ConfigDict, dict[str, str | None]]:
    """The config and the values of other flags; `required` has an example of each. Errors as of `parse`."""
    arguments = sys.argv if arguments is None else ["", *arguments]
    values = flags.FlagValues()
    config_flag = config_flags.DEFINE_config_file(
        "config", None, "Config file.", flag_values=values, sys_argv=arguments
    )
    others = {name: flags.DEFINE_string(name, None, "", flag_values=values) for name in (*required, *optional)}
    _check_file(arguments)
    try:
        rest = values(arguments)
    except UserError:
        raise
    except Exception as error:  # absl and ml_collections raise a dozen kinds, some of them plain KeyErrors
        raise UserError(_reason(error)) from error
    example = " ".join(f"--{name}={value}" for name, value in {"config": "configs/tiny.py", **required}.items())
    if len(rest) > 1:
        raise UserError(f"{rest[1]}: not a flag; flags look like {example}")
    for name, flag in {"config": config_flag, **{name: others[name] for name in required}}.items():
        if flag.value is None:
            raise UserError(f"--{name} is missing, e.g. {example}")
    return config_flag.value, {name: flag.value for name, flag in others.items()}


def _check_file(arguments: list[str]) -> None:
    """A config that is not there is said so before the flags library gets lost in it."""
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        name, _, value = argument.lstrip("-").partition("=")
        if name != "config" or not argument.startswith("-"):
            continue
        path = (value or following).split(":")[0]
        if not Path(path).is_file():
            raise UserError(f"--config={path}: no such file")


def _reason(error: Exception) -> str:
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    return f"{text[:300]} (see dwrl_jax/settings/config.py for all keys)"
