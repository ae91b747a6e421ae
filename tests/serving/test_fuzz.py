"""Malformed bodies are told 4xx, in short; studies/serving/fuzz.py sends more of them."""

import pytest

from studies.serving import fuzz
from tests.serving.test_protocols import ONE


@pytest.mark.parametrize("bodies", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_malformed_bodies(client, bodies):
    assert set(fuzz.VALID) == set(ONE)

    def send(path, body, kind):
        answer = client.post(path, content=body, headers={"Content-Type": kind.strip()})
        return answer.status_code, answer.content

    counts = fuzz.check(send, bodies)
    assert counts[400] > bodies / 10 and counts[200] + counts[422] > bodies / 50, counts
