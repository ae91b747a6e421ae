"""Write report.html, one page about a run: python -m dwrl_jax.report --workdir=runs/x"""

import argparse
from pathlib import Path

from dwrl_jax.core.errors import exit_cleanly
from dwrl_jax.reporting.page import write_report


@exit_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description="Write report.html, one page about a run.")
    parser.add_argument("--workdir", type=Path, required=True, help="directory that the run wrote to")
    print(write_report(parser.parse_args().workdir))


if __name__ == "__main__":
    main()
