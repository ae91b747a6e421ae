"""Say what a run would need: memory, work and time on given devices.

python -m dwrl_jax.plan --config=configs/qwen7b.py --topology=v5e:8x8
python -m dwrl_jax.plan --config=configs/qwen7b.py --topology=v5e:8x8 --tune --picture=tuned.png

The command compiles the run's own programs (sampling, evaluation, update) for devices that need not be there. It sets
memory, work and traffic against the chip's published figures. It reads no weights and downloads nothing. With --tune it
looks for the mesh, micro-batches, remat and sampling parts with the least bound on a step's time, and prints their
flags. Exit code 0: the run fits, 1: it does not, 2: bad input.
"""

import sys

from dwrl_jax.core import files
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.terminal import say
from dwrl_jax.planning.plan import make_plan
from dwrl_jax.planning.text import table
from dwrl_jax.planning.tune import tune
from dwrl_jax.planning.tune_text import picture, tuned_table
from dwrl_jax.settings.commandline import Flag, command, folder, parse_config
from dwrl_jax.training.config import describe_keys

FLAGS = {
    "topology": Flag("v5e:8x8", "the devices: kind and shape of a TPU slice, gpu, cpu, or cpu:8", required=True),
    "json": Flag("plan.json", "a file for the whole plan", read=folder),
    "tune": Flag("", "look for the choices with the least bound on a step's time", switch=True),
    "picture": Flag("tuned.png", "with --tune: a file for time against memory, .png or .svg", read=folder),
}


@command
def main(arguments: list[str] | None = None) -> None:
    config, given = parse_config(arguments, FLAGS, __doc__, describe_keys)
    for name in ("json", "picture"):
        path = getattr(given, name)
        if path and not path.parent.is_dir():
            raise UserError(f"--{name}={path}: its folder is not there; make it first")
    if given.picture and not given.tune:
        raise UserError(f"--picture={given.picture}: a plan has a picture only with --tune")
    if given.picture and given.picture.suffix not in (".png", ".svg"):
        raise UserError(f"--picture={given.picture}: give a name that ends in .png or .svg")
    make = tune if given.tune else make_plan
    plan = make(config, given.topology, lambda text: say(text, sys.stderr))
    say((tuned_table if given.tune else table)(plan))
    if given.json:
        files.write_json(given.json, plan, indent=1)
    if given.picture:
        picture(plan).savefig(given.picture, dpi=150)
    sys.exit(0 if (plan["best"] if given.tune else plan["fits"]) else 1)


if __name__ == "__main__":
    main()
