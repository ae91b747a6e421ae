"""A scalar reward model in the forms of vLLM and SGLang, as the reward loop of verl reads them.

vLLM  `/classify`       {"model", "input"}  ->  data[-1].probs[-1]
SGLang `/v1/embeddings` {"model", "input"}  ->  data[-1].embedding[-1]
SGLang `/v1/score`      {"query", "items"}  ->  scores[i][-1]

An input is a whole conversation in the judge's chat template, or messages. A query is a prompt, and its items are
responses to it.
"""

import time
import uuid
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from dwrl_jax.serving.failures import Refused
from dwrl_jax.serving.service import Judged, Names, Service, Used, judge, judge_all
from dwrl_jax.serving.wire import MOST, Messages, Text, divided, read_prompt, read_response, read_whole, turns_of

ROUTER = APIRouter()


class Inputs(BaseModel):
    """`input` has one or several conversations as texts; `messages` is a single one. `use_activation` has no effect."""

    model: str | None = None
    input: Text | list[Text] | None = None
    messages: Messages | None = None
    use_activation: bool | None = None


class Query(BaseModel):
    """A prompt and responses to it. The token ids of SGLang have no meaning here, and `apply_softmax` no effect."""

    model: str | None = None
    query: Text
    items: list[Text] = Field(min_length=1, max_length=MOST)
    label_token_ids: Any = None
    apply_softmax: bool | None = None
    item_first: bool | None = None


async def _judged(request: Inputs, service: Service) -> list[Judged]:
    if (request.input is None) == (request.messages is None):
        raise Refused(400, "give input or messages, and not both", "input")
    if request.messages is not None:
        return await judge_all(
            service, [divided(turns_of(request.messages), "messages")], Names("messages", "messages")
        )
    texts = [request.input] if isinstance(request.input, str) else request.input
    if not 1 <= len(texts) <= MOST:
        raise Refused(400, f"must have 1 to {MOST} texts", "input")
    rows = [read_whole(service, text, f"input.{index}") for index, text in enumerate(texts)]
    return await judge_all(service, rows, Names("input", "input"))


def _usage(judged: list[Judged]) -> dict:
    return {key: sum(each.usage[key] for each in judged) for key in judged[0].usage}


@ROUTER.post("/classify")
async def classify(request: Inputs, service: Used) -> dict:
    """The reward as the probability of a single class."""
    judged = await _judged(request, service)
    data = [
        {"index": index, "label": "reward", "probs": each.rewards(service.settings), "num_classes": 1}
        for index, each in enumerate(judged)
    ]
    head = {"id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}
    return {**head, "model": service.name, "data": data, "usage": _usage(judged)}


@ROUTER.post("/v1/embeddings")
async def embeddings(request: Inputs, service: Used) -> dict:
    """The reward as an embedding with one entry."""
    judged = await _judged(request, service)
    data = [
        {"index": index, "object": "embedding", "embedding": each.rewards(service.settings)}
        for index, each in enumerate(judged)
    ]
    return {"object": "list", "model": service.name, "data": data, "usage": _usage(judged)}


@ROUTER.post("/score")
@ROUTER.post("/v1/score")
async def score(request: Query, service: Used) -> dict:
    """A list with one reward for each item. A judge that compares compares the items."""
    prompt = read_prompt(service, request.query, "query")
    responses = [read_response(service, item) for item in request.items]
    names = Names("query", "items")
    if service.compares:
        judged = [await judge(service, prompt, responses, None, names)]
    else:
        judged = await judge_all(service, [(prompt, response) for response in responses], names)
    values = [value for each in judged for value in each.rewards(service.settings)]
    usage = _usage(judged)
    return {"object": "scoring", "model": service.name, "scores": [[value] for value in values], "usage": usage}
