"""The start of every command: flags, --help, other processes and exit codes.

    @command
    def main(arguments=None):
        given = parse_flags(arguments, {"workdir": WORKDIR, "votes": Flag("8", "thoughts", read=int)}, __doc__)
        start(given.workdir)
        ...

A command with a config also has the flags --config=FILE[:OBJECTIVE][,smoke] and --config.KEY=VALUE.
"""

import argparse
import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import jax
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from dwrl_jax.core import hosts, sharding
from dwrl_jax.core.errors import UserError, exit_cleanly
from dwrl_jax.core.terminal import say
from dwrl_jax.settings.config import flat, nearest

OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag --NAME=VALUE. Messages and --help show `example`. `read` turns the text into the value.

    With `many` the flag is --NAME VALUE VALUE ..., and its value is a list. A `switch` is --NAME alone: its value is
    whether it is there.
    """

    example: str
    meaning: str
    required: bool = False
    default: object = None
    choices: tuple[str, ...] = ()
    read: Callable[[str], object] = str
    many: bool = False
    switch: bool = False


def folder(text: str) -> Path:
    return Path(text).expanduser()


def mesh_sizes(text: str) -> dict[str, int]:
    """Sizes of the mesh from "data=2,tensor=4"."""
    sizes = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in sharding.AXES or not size.lstrip("-").isdigit():
            raise UserError(f"--mesh={text}: give sizes of {', '.join(sharding.AXES)}, such as data=2,tensor=4")
        sizes[axis] = int(size)
    return sizes


WORKDIR = Flag("runs/tiny", "the folder of the run", required=True, read=folder)
CONFIG = Flag(
    "configs/tiny.py",
    "FILE[:OBJECTIVE][,smoke]: a config file, an objective instead of dwrl, a quick trial",
    required=True,
)


def command(main: Callable) -> Callable:
    """Make a command of main(arguments). Without arguments it reads those of the shell.

    Libraries print no remarks. The exit code is 0 or the command's own choice; 2 after a `UserError`; 128 + signal
    after `Stopped`; 1 if another process is lost.
    """

    @exit_cleanly
    @functools.wraps(main)
    def started(arguments: list[str] | None = None):
        logging.set_verbosity(logging.ERROR)  # users need no remarks of the checkpoint library
        with hosts.together():
            return main(arguments)

    return started


def start(workdir: Path | None = None) -> None:
    """Join the other processes. Unless JAX_COMPILATION_CACHE_DIR is set, `WORKDIR/compiled` keeps the programs."""
    hosts.start()
    if workdir is not None and jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))


def parse_flags(arguments: list[str] | None, wanted: Mapping[str, Flag], about: str = "") -> argparse.Namespace:
    """The values of the flags. UserError if a flag is missing, unknown or unreadable. --help prints text and exits."""
    given, rest = _read(arguments, wanted, lambda: help_text(about, wanted))
    _refuse_rest(rest, wanted)
    _refuse_missing(given, wanted)
    return given


def parse_config(
    arguments: list[str] | None,
    wanted: Mapping[str, Flag],
    about: str = "",
    describe_keys: Callable[[], str] = lambda: "",
) -> tuple[ConfigDict, argparse.Namespace]:
    """The locked config with its overrides, and the values of the other flags. `describe_keys` is for --help.

    UserError as in `parse_flags`, and also for an unknown key or a value of the wrong type.
    """
    wanted = {"config": CONFIG, **wanted}
    given, overrides = parse_overrides(arguments, wanted, about, describe_keys)
    config, rest = _load(given.config, overrides)
    _refuse_rest(rest, wanted)
    return at_home(config), given


def at_home(config: ConfigDict) -> ConfigDict:
    """The config itself. A value that begins with ~/ becomes a path in the home folder, as a shell would make it."""
    for key, value in flat(config.to_dict()).items():
        if isinstance(value, str) and value.startswith("~/"):
            config.update_from_flattened_dict({key: str(folder(value))})
    return config


def parse_overrides(
    arguments: list[str] | None, wanted: Mapping[str, Flag], about: str, describe_keys: Callable[[], str]
) -> tuple[argparse.Namespace, list[str]]:
    """The values of the flags, and the unread flags --config.KEY=VALUE. UserError as in `parse_flags`."""
    given, rest = _read(arguments, wanted, lambda: help_text(about, wanted, describe_keys()))
    _refuse_rest([text for text in rest if re.match(r"--?[a-zA-Z]", text) and not OVERRIDE.match(text)], wanted)
    _refuse_missing(given, wanted)
    return given, rest


def parse(arguments: list[str] | None = None) -> tuple[ConfigDict, Path]:
    """The config and the working directory, from the flags --config and --workdir."""
    config, given = parse_config(arguments, {"workdir": WORKDIR})
    return config, given.workdir


def help_text(about: str, wanted: Mapping[str, Flag], keys: str = "") -> str:
    """The text of --help: the command's docstring, its flags, and the keys of its config."""
    lines = [about.strip(), "", "Flags:"]
    for name, flag in wanted.items():
        end = "required" if flag.required else f"default: {flag.default}" if flag.default is not None else "optional"
        choices = f"one of {', '.join(flag.choices)}; " if flag.choices else ""
        given = f"--{name}" if flag.switch else _given(name, flag)
        lines.append(f"  {given}\n      {choices}{flag.meaning}; {end}")
    return "\n".join([*lines, *(["", "Keys and their defaults, for --config.KEY=VALUE:", keys] if keys else [])])


def _read(arguments, wanted: Mapping[str, Flag], text: Callable[[], str]) -> tuple[argparse.Namespace, list[str]]:
    """The values of the flags, and all other arguments."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        say(text())
        sys.exit(0)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = _refuse
    for name, flag in wanted.items():
        if flag.switch:
            parser.add_argument(f"--{name}", action="store_true")
            continue
        number = "+" if flag.many else None
        choices = flag.choices or None
        parser.add_argument(f"--{name}", type=flag.read, default=flag.default, choices=choices, nargs=number)
    return parser.parse_known_args(arguments)


def _refuse(message: str):
    raise UserError(message)


def _refuse_rest(rest: Iterable[str], wanted: Mapping[str, Flag]) -> None:
    for text in rest:
        name = text.lstrip("-").partition("=")[0]
        if text.startswith("-") and name:
            raise UserError(f"--{name}: no such flag; the nearest is --{nearest(name, wanted)}")
        raise UserError(f"{text}: not a flag; flags look like {_example(wanted)}")


def _refuse_missing(given: argparse.Namespace, wanted: Mapping[str, Flag]) -> None:
    for name, flag in wanted.items():
        if flag.required and getattr(given, name) is None:
            raise UserError(f"--{name} is missing, e.g. {_example(wanted)}")


def _example(wanted: Mapping[str, Flag]) -> str:
    return " ".join(_given(name, flag) for name, flag in wanted.items() if flag.required)


def _given(name: str, flag: Flag) -> str:
    return f"--{name}{' ' if flag.many else '='}{flag.example}"


def _load(file: str, rest: list[str]) -> tuple[ConfigDict, list[str]]:
    """The config of a file with its overrides, and the arguments that are not overrides."""
    file = str(folder(file)) if file.startswith("~/") else file
    path = file.split(":")[0]
    if not Path(path).is_file():
        raise UserError(f"--config={path}: no such file")
    try:
        return _parse_absl(file, rest)
    except UserError:
        raise
    except Exception as error:  # absl and ml_collections raise many types, also plain KeyErrors
        overrides = [match[1] for text in rest if (match := OVERRIDE.match(text))]
        _refuse_keys(file, overrides)
        reason = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
        raise UserError(f"{reason[:300]} (--help lists the bounds of each key)") from error


def _parse_absl(file: str, rest: list[str]) -> tuple[ConfigDict, list[str]]:
    arguments, values = ["", f"--config={file}", *rest], flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=arguments)
    rest = values(arguments)[1:]
    return config.value, rest


def _refuse_keys(file: str, overrides: list[str]) -> None:
    """UserError for the first override whose key is not in the config of `file`."""
    if not overrides:
        return
    config, _ = _parse_absl(file, [])
    known = flat(config.to_dict())
    for key in overrides:
        section, _, name = key.rpartition(".")
        if key in known:
            continue
        if section == "objective":
            beside = [other.removeprefix("objective.") for other in known if other.startswith("objective.")]
            names = ", ".join(other for other in beside if other != "name") or "none"
            raise UserError(f"{key}: {config.objective.name} has no such key; its keys: {names}")
        raise UserError(f"{key}: no such key; the nearest is {nearest(key, known)}")
