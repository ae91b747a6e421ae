#!/usr/bin/env bash
# The tests in a fresh environment: of another Python, or with the versions of a constraints file.
#
#   tests/with.sh python3.13
#   tests/with.sh python3.11 constraints/oldest.txt
#   tests/with.sh python3.13 "" tests/dialogue -n 0        more arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:?usage: tests/with.sh PYTHON [CONSTRAINTS] [PYTEST_ARGUMENTS ...]}
constraints=${2:-}
shift $(($# < 2 ? $# : 2))
venv=$(mktemp -d)/venv
trap 'rm -rf "$(dirname "$venv")"' EXIT
"$python" -m venv "$venv"
source "$venv/bin/activate"
pip install --quiet uv  # it finds an old set in seconds, where pip tries for many minutes
uv pip install --quiet torch==2.13.0 peft || echo "torch 2.13.0 cannot be had: parity tests against transformers are skipped"
uv pip install --quiet -e '.[test]' ${constraints:+-c "$constraints"}
python --version
uv pip list --format=freeze | grep -iE '^(jax|jaxlib|flax|optax|orbax-checkpoint|numpy|transformers|datasets)='
python -m pytest -m "not slow" "$@"
