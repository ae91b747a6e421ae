"""The commands: python -m dwrl_jax lists them, and dwrl-jax COMMAND runs one, as python -m dwrl_jax.COMMAND does."""

import ast
import importlib
import sys
from pathlib import Path

from dwrl_jax.core.errors import UserError, exit_cleanly
from dwrl_jax.core.terminal import say
from dwrl_jax.settings.config import nearest


def commands() -> dict[str, str]:
    """{name: first line of its docstring} of the commands. A command is a file at the top of the package."""
    paths = sorted(Path(__file__).parent.glob("[!_]*.py"))
    texts = {path.stem: ast.get_docstring(ast.parse(path.read_text())) or "" for path in paths}
    return {name: text.partition("\n")[0].partition(": python -m")[0] for name, text in texts.items()}


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    known = commands()
    if name in ("-h", "--help"):
        width = max(map(len, known))
        say("\n".join(f"{name:{width}}  {line}" for name, line in known.items()))
        say("\ndwrl-jax COMMAND --help, or python -m dwrl_jax.COMMAND --help, says more about each.")
        return
    if name not in known:
        raise UserError(f"{name}: no such command; the nearest is {nearest(name, known)}")
    sys.argv = [f"dwrl-jax {name}", *rest]
    importlib.import_module(f"dwrl_jax.{name}").main()


if __name__ == "__main__":
    main()
