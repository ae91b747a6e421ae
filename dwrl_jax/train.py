"""Train a generative preference model.

python -m dwrl_jax.train --config=configs/tiny.py --workdir=runs/tiny

The same command goes on with a run that was stopped, and shows the results of a finished run again.
"""

from dwrl_jax.core.terminal import say
from dwrl_jax.reporting.text import table
from dwrl_jax.settings.commandline import WORKDIR, command, parse_config, start
from dwrl_jax.training import run
from dwrl_jax.training.config import describe_keys


@command
def main(arguments: list[str] | None = None) -> None:
    config, given = parse_config(arguments, {"workdir": WORKDIR}, __doc__, describe_keys)
    start(given.workdir)
    results = run.fit(config, given.workdir)
    if results is None:
        say(f"trained without held-out pairs: checkpoints are in {given.workdir}")
        return
    say(table(results))
    say(f"{given.workdir / 'results.json'}  {given.workdir / 'report.html'}")


if __name__ == "__main__":
    main()
