"""A random judge of the built-in world behind HTTP, made once."""

import contextlib
import dataclasses
import time

import pytest
from starlette.testclient import TestClient

from dwrl_jax.serving.server import make_app
from dwrl_jax.serving.service import make_service
from dwrl_jax.serving.settings import ServeSettings
from tests.judge.test_score import CARD, loaded

SETTINGS = ServeSettings(votes=2, batch_size=4, sizes=(1, 2), in_flight=1, wait=0.01, linger=0.05, stop=5.0)


@pytest.fixture(scope="package")
def judge():
    return loaded(dataclasses.replace(CARD, buckets=(32,)))


@pytest.fixture(scope="package")
def serving(judge):
    """Serve the judge, or another one, with changed settings: `with serving(queue=3) as (client, service)`."""

    @contextlib.contextmanager
    def serving(given=None, **changes):
        service = make_service(given or judge, dataclasses.replace(SETTINGS, **changes), "random")
        with TestClient(make_app(service), raise_server_exceptions=False) as client:
            until(lambda: service.batcher.warm or service.batcher.failure)
            yield client, service

    return serving


@pytest.fixture(scope="package")
def served(serving):
    with serving() as both:
        yield both


@pytest.fixture(scope="package")
def client(served):
    return served[0]


def until(true, seconds=60.0):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)
