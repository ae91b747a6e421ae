"""Say what a run would need: memory, work and time on given devices.

python -m dwrl_jax.plan --config=configs/qwen7b.py --topology=v5e:8x8

The command compiles the run's own programs (sampling, evaluation, update) for devices that need not be there. It sets
memory, work and traffic against the chip's published figures. It reads no weights and downloads nothing. Exit code 0:
the run fits, 1: it does not, 2: bad input.
"""

import sys

from dwrl_jax.core import files
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.terminal import say
from dwrl_jax.planning.plan import make_plan
from dwrl_jax.planning.text import table
from dwrl_jax.settings.commandline import Flag, command, folder, parse_config
from dwrl_jax.training.config import describe_keys

FLAGS = {
    "topology": Flag("v5e:8x8", "the devices: kind and shape of a TPU slice, gpu, cpu, or cpu:8", required=True),
    "json": Flag("plan.json", "a file for the whole plan", read=folder),
}


@command
def main(arguments: list[str] | None = None) -> None:
    config, given = parse_config(arguments, FLAGS, __doc__, describe_keys)
    if given.json and not given.json.parent.is_dir():
        raise UserError(f"--json={given.json}: its folder is not there; make it first")
    plan = make_plan(config, given.topology, lambda text: say(text, sys.stderr))
    say(table(plan))
    if given.json:
        files.write_json(given.json, plan, indent=1)
    sys.exit(0 if plan["fits"] else 1)


if __name__ == "__main__":
    main()
