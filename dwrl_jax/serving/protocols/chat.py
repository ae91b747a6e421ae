"""OpenAI's chat completions: the judge's thought and verdict about the conversation's last turn, in words."""

import time
import uuid
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from dwrl_jax.serving.failures import Refused
from dwrl_jax.serving.service import Names, Service, Used, judge
from dwrl_jax.serving.wire import Messages, divided, turns_of

ROUTER = APIRouter()


class Request(BaseModel):
    """A conversation that ends with the response to judge. `n` is the number of thoughts."""

    model: str | None = None
    messages: Messages
    n: Annotated[int, Field(strict=True, ge=1)] = 1
    stream: bool = False


@ROUTER.post("/v1/chat/completions")
async def completions(request: Request, service: Used) -> dict:
    """A choice for each thought. `score` of a choice is that of its vote, and `score` of the whole their mean."""
    if request.stream:
        raise Refused(422, "an answer is sent as a whole; leave stream out", "stream")
    if service.loaded.card.kind not in ("verdict", "score"):
        raise Refused(422, f"a judge of kind {service.loaded.card.kind} has no words; call /v1/judge", "messages")
    prompt, response = divided(turns_of(request.messages), "messages")
    judged = await judge(service, prompt, [response], request.n, Names("messages", "messages"))
    thoughts = judged.thoughts[0] or [""] * len(judged.votes[0])
    choices = [
        {"index": index, "message": _message(service, thought, score), "finish_reason": "stop", "score": score}
        for index, (thought, score) in enumerate(zip(thoughts, judged.votes[0]))
    ]
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time())}
    said = {"model": service.name, "choices": choices, "usage": judged.usage}
    return {**head, **said, "score": judged.score[0], "log_odds": judged.log_odds[0]}


@ROUTER.get("/v1/models")
async def models(service: Used) -> dict:
    """The one model."""
    return {"object": "list", "data": [{"id": service.name, "object": "model", "created": 0, "owned_by": "dwrl_jax"}]}


def _message(service: Service, thought: str, score: float) -> dict[str, str]:
    verdict = _verdict(service, score)
    said = f"{thought}\n\n{verdict}" if thought else verdict
    return {"role": "assistant", "content": said, "reasoning_content": thought}


def _verdict(service: Service, score: float) -> str:
    """The answer in whose part of [0, 1] the score lies; of two answers "good" if its probability is above 1/2."""
    answers = service.loaded.card.texts.answers
    if service.loaded.card.kind == "verdict":
        return answers[0] if score > 0.5 else answers[1]
    return answers[min(int(score * len(answers)), len(answers) - 1)]
