"""NeMo Gym's comparison of responses: `/compare` for a whole group, `/verify` for rollouts that arrive one by one.

Responses to the same conversation that wait for each other form a cohort. A cohort that is not complete in time is
judged with the responses that it has. Source: resources_servers/genrm_compare of NVIDIA-NeMo/Gym.
"""

import hashlib
import json
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from dwrl_jax.serving.failures import Refused
from dwrl_jax.serving.service import Judged, Names, Service, Used, judge
from dwrl_jax.serving.wire import MOST, Messages, Text, turns_of

ROUTER = APIRouter()


class Part(BaseModel):
    """A part of an output item. Its `text` counts if its type is "output_text"."""

    type: str = "output_text"
    text: Text | None = None


class Item(BaseModel):
    """An item of a response: a message, or reasoning, which is not judged."""

    type: str = "message"
    content: Text | list[Part] | None = None


class Response(BaseModel, extra="allow"):
    """A response object of OpenAI's Responses API."""

    output: list[Item] = Field(min_length=1, max_length=MOST)

    @property
    def text(self) -> str:
        """All that the response says."""
        said = [item.content for item in self.output if item.type == "message" and item.content]
        parts = [text if isinstance(text, str) else "".join(_texts(text)) for text in said]
        return "\n".join(parts)


def _texts(parts: list[Part]) -> list[str]:
    return [part.text for part in parts if part.type == "output_text" and part.text]


class Compare(BaseModel):
    """A conversation and responses to it. With `cohort_size` they wait until so many responses are together (ours)."""

    conversation_history: Messages
    response_objs: list[Response] = Field(min_length=1, max_length=MOST)
    principle: str | None = None
    cohort_size: int | None = Field(None, ge=1, le=MOST)


class Params(BaseModel, extra="allow"):
    """The part of a rollout's parameters that has its conversation."""

    input: Text | Messages


class Verify(BaseModel, extra="allow"):
    """A rollout."""

    responses_create_params: Params
    response: Response
    principle: str | None = None


@ROUTER.post("/compare")
async def compare(request: Compare, service: Used) -> dict:
    """A reward for each response. A judge that compares needs two responses, in one request or in a cohort."""
    responses = [each.text for each in request.response_objs]
    names = Names("conversation_history", "response_objs")
    size = request.cohort_size or len(responses)
    judged, place = await _compared(service, turns_of(request.conversation_history), responses, size, request, names)
    mine = slice(place, place + len(responses))
    results = [
        {"response": index, "score": judged.score[i], "log_odds": judged.log_odds[i], "rank": judged.rank[i]}
        for index, i in enumerate(range(mine.start, mine.stop))
    ]
    metrics = {"cohort": len(judged.score), "votes": judged.asked, "tokens": judged.usage["total_tokens"]}
    return {"rewards": judged.rewards(service.settings)[mine], "comparison_results": results, "metrics": metrics}


@ROUTER.post("/verify")
async def verify(request: Verify, service: Used) -> dict:
    """The rollout with its reward, from a cohort of `--cohort` rollouts."""
    turns = turns_of(request.responses_create_params.input)
    names = Names("responses_create_params.input", "response.output")
    size = service.settings.cohort
    judged, place = await _compared(service, turns, [request.response.text], size, request, names)
    return {**request.model_dump(), "reward": judged.rewards(service.settings)[place]}


async def _compared(
    service: Service, turns: list[dict[str, str]], responses: list[str], size: int, request: Any, names: Names
) -> tuple[Judged, int]:
    """The scores of a cohort and the place of the first of these responses in it."""
    if request.principle:
        raise Refused(422, "this judge takes no principle; send null", "principle")
    if size <= len(responses) or not service.compares:  # nobody is worth waiting for
        return await judge(service, turns, responses, None, names), 0

    async def ask(together: list[str]) -> Judged:
        if len(together) < 2:
            raise Refused(504, f"1 of {size} responses came within {service.settings.cohort_wait:g} s", names.response)
        return await judge(service, turns, together, None, names)

    key = hashlib.sha256(json.dumps([size, turns]).encode()).hexdigest()
    return await service.cohorts.join(key, responses, size, ask)
