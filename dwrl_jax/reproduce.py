"""Compare methods side by side, on the same pairs with the same seeds.

python -m dwrl_jax.reproduce --suite=tiny --workdir=runs/suite

A cell is one run of an arm with a config and a seed. A finished cell stands in results.jsonl and is not run again; a
stopped one goes on. Two such commands may share a workdir if no cell is in both. The table and the figures show all
cells that are finished, also while others run. Each --config.KEY=VALUE holds for every cell.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from dwrl_jax.core.errors import UserError
from dwrl_jax.core.terminal import say
from dwrl_jax.settings.commandline import WORKDIR, Flag, command, parse_overrides, start
from dwrl_jax.suites.cells import PAIRS, compare
from dwrl_jax.suites.definitions import SUITES, Suite
from dwrl_jax.training.config import describe_keys

FLAGS = {
    "suite": Flag("tiny", "which methods, configs and seeds", required=True, choices=tuple(SUITES)),
    "workdir": WORKDIR,
    "configs": Flag("tiny tiny,world=long", "names of configs; all of the suite if not given", many=True),
    "arms": Flag("dwrl,bt", "names of lines of the table; all if not given"),
    "seeds": Flag("11,12", "any whole numbers; those of the suite if not given"),
    "budgets": Flag("pairs", "what each arm gets as much of as the reference; all of the suite if not given"),
}


def parse(arguments: list[str] | None = None) -> tuple[Suite, Path, list[str]]:
    """The chosen part of a suite, the workdir, and the flags --config.KEY=VALUE. UserError for any other flag."""
    given, overrides = parse_overrides(arguments, FLAGS, __doc__, describe_keys)
    suite = SUITES[given.suite]
    configs = chosen(given.configs, suite.configs, "configs")
    arms = {name: suite.arms[name] for name in chosen(listed(given.arms), suite.arms, "arms")}
    budgets = chosen(listed(given.budgets), (PAIRS, *suite.budgets), "budgets")
    more = tuple(budget for budget in budgets if budget != PAIRS)  # equal pairs come first in any case
    seeds = suite.seeds if given.seeds is None else whole_numbers(given.seeds, "seeds")
    part = dataclasses.replace(suite, configs=tuple(configs), arms=arms, seeds=seeds, budgets=more)
    return part, given.workdir, overrides


def listed(text: str | None) -> list[str] | None:
    return None if text is None else text.split(",")


def chosen(names: list[str] | None, known: Iterable[str], what: str) -> list[str]:
    """The names of `known` that are in `names`, in the order of `known`; all for None. UserError for another one."""
    wanted = list(known) if names is None else names
    for name in wanted:
        if name not in known:
            raise UserError(f"--{what}={name}: choose from {', '.join(known)}")
    return [name for name in known if name in wanted]


def whole_numbers(text: str, what: str) -> tuple[int, ...]:
    """The numbers of a text like "11,12", each once."""
    parts = text.split(",")
    for part in parts:
        if not part.isdecimal():
            raise UserError(f"--{what}={part}: give whole numbers, for example --{what}=11,12")
    return tuple(dict.fromkeys(map(int, parts)))


@command
def main(arguments: list[str] | None = None) -> None:
    suite, workdir, overrides = parse(arguments)
    start(workdir)
    table = compare(suite, workdir, overrides)
    if table is not None:
        say(table)


if __name__ == "__main__":
    main()
