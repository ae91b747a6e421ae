"""Write report.html, one page about a run.

python -m dwrl_jax.report --workdir=runs/tiny
"""

from dwrl_jax.core.terminal import say
from dwrl_jax.reporting.page import write_report
from dwrl_jax.settings.commandline import WORKDIR, command, parse_flags


@command
def main(arguments: list[str] | None = None) -> None:
    given = parse_flags(arguments, {"workdir": WORKDIR}, __doc__)
    say(write_report(given.workdir))


if __name__ == "__main__":
    main()
