"""What a run would need: python -m dwrl_jax.plan --config=configs/qwen7b.py --topology=v5e:8x8 [--json=FILE]

Compiles the run's own programs for devices that need not be there. Exit code 0: it fits, 1: it does not, 2: bad input.
"""

import sys
from pathlib import Path

from absl import logging

from dwrl_jax.core import files
from dwrl_jax.core.errors import UserError, exit_cleanly
from dwrl_jax.planning.plan import make_plan
from dwrl_jax.planning.text import table
from dwrl_jax.settings.commandline import parse_flags


@exit_cleanly
def main() -> None:
    logging.set_verbosity(logging.ERROR)
    config, flags = parse_flags(None, {"topology": "v5e:8x8"}, ("json",))
    if flags["json"] and not Path(flags["json"]).parent.is_dir():
        raise UserError(f"--json={flags['json']}: its folder is not there; make it first")
    plan = make_plan(config, flags["topology"], lambda text: print(text, file=sys.stderr, flush=True))
    print(table(plan))
    if flags["json"]:
        files.write_json(Path(flags["json"]), plan, indent=1)
    sys.exit(0 if plan["fits"] else 1)


if __name__ == "__main__":
    main()
