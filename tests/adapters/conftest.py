from types import SimpleNamespace

import pytest

from dwrl_jax.adapters import client
from tests.adapters.stub import serving


@pytest.fixture
def stub():
    with serving() as server:
        yield server


@pytest.fixture
def pauses(monkeypatch):
    """The seconds that a client would have waited between attempts."""
    waited = []
    monkeypatch.setattr(client, "time", SimpleNamespace(sleep=waited.append))
    return waited
