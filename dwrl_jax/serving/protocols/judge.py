"""The judge's own protocol: any number of responses to a conversation, with votes, intervals and thoughts."""

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from dwrl_jax.serving.service import Judged, Service, Used, intervals, judge, rule
from dwrl_jax.serving.wire import MOST, Messages, Text, turns_of

ROUTER = APIRouter()
DELTA = 0.05  # an interval holds with probability 1 - DELTA
Column = Literal["score", "log_odds", "interval", "rank", "votes", "thoughts"]
Votes = Annotated[int, Field(strict=True, ge=1)] | Literal["auto"]


class Request(BaseModel, extra="forbid"):
    """A conversation, the responses to it, and what to tell about them."""

    messages: Text | Messages
    responses: list[Text] = Field(min_length=1, max_length=MOST)
    votes: Votes | None = None
    columns: list[Column] = Field(["score", "log_odds"], alias="return")


@ROUTER.post("/v1/judge")
async def scores(request: Request, service: Used) -> dict:
    """Lists over the responses, in their order, and the work that they took."""
    votes = rule(service.settings) if request.votes == "auto" else request.votes
    judged = await judge(service, turns_of(request.messages), request.responses, votes)
    said = {name: _column(service, judged, name) for name in dict.fromkeys(request.columns)}
    return {"model": service.name, **said, "dropped_turns": judged.dropped_turns, "usage": judged.usage}


def _column(service: Service, judged: Judged, name: str) -> list:
    return intervals(service, judged, DELTA) if name == "interval" else getattr(judged, name)
