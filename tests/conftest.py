"""Fixtures that more than one test module needs."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real pairs, tokenizers and a small model; tests that need it skip without it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DWRL_JAX_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}: set DWRL_JAX_DATA to its folder")
    return folder
