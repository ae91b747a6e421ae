"""The layering of the house: a room imports only from rooms on lower floors, and equations live alone."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "dwrl_jax"
FLOORS = [
    {"core"},
    {"models", "dialogue", "objectives"},
    {"data", "generation", "settings"},
    {"judge", "workdir"},
    {"evaluation", "serving"},
    {"reporting", "adapters"},
    {"training"},
    {"planning", "suites", "policy"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def imports(path):
    """Rooms of dwrl_jax that a file imports from."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dwrl_jax."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "dwrl_jax":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("dwrl_jax."))


def room(path):
    """The room of a file; None for a command, which stands above all rooms."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def test_imports_point_down():
    for path in FILES:
        own = room(path)
        assert own is None or own in FLOOR, f"{own}: a new room needs its floor"
        for name in imports(path):
            assert name in FLOOR, f"{path.name} imports {name}, which is no room"
            lower = own is None or name == own or FLOOR[name] < FLOOR[own]
            assert lower, f"{own}/{path.name} imports {name}, which is not on a lower floor"


def test_equations_know_no_model():
    for path in (PACKAGE / "objectives").rglob("*.py"):
        assert set(imports(path)) <= {"core", "objectives"}, path.name


def test_only_entry_points_read_the_config():
    readers = {room(path) for path in FILES if "ConfigDict" in path.read_text()}
    assert readers <= {"settings", "training", "planning", "suites"}
