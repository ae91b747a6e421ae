"""The layering of the house: imports point down, equations live alone."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "dwrl_jax"
LAYERS = [
    {"errors", "types", "sharding", "hosts", "chips", "hlo"},
    {"suites", "objectives", "models", "tokenizers", "dialogue", "config", "pairs", "packing"},
    {"data", "world", "gpm", "sampler", "logps", "counts"},
    {"train_step", "evaluate", "checkpoint", "records"},
    {"programs", "loop", "lowering", "report", "report_curves", "comparison", "plan_text", "commandline"}
    | {"sources", "build"},
    {"train", "export", "plan", "reproduce", "look"},
]
LAYER = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(path):
    """Names of the dwrl_jax modules or packages that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dwrl_jax."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "dwrl_jax":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("dwrl_jax."))


def part(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__"]


def test_imports_point_down():
    assert {part(path) for path in FILES} <= LAYER.keys(), "a new module needs its layer"
    for path in FILES:
        for name in imports(path):
            assert name in LAYER and LAYER[name] <= LAYER[part(path)], f"{path.name} imports {name}, which is above it"


def test_equations_know_no_model():
    for path in (PACKAGE / "objectives").glob("*.py"):
        assert set(imports(path)) <= {"types", "objectives"}, path.name


def test_only_entry_points_read_the_config():
    readers = {path.stem for path in FILES if "ConfigDict" in path.read_text()}
    assert readers <= {"config", "commandline", "sources", "build", "train", "plan", "reproduce"}
