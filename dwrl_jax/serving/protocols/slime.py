"""slime's and miles' remote reward: `--rm-type remote_rm --rm-url http://HOST:PORT/slime`.

The answer is a bare number. Source: slime/rollout/rm_hub.
"""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from dwrl_jax.serving.service import Names, Used, judge
from dwrl_jax.serving.wire import Messages, Text, read_prompt, read_response

ROUTER = APIRouter()


class Request(BaseModel):
    """A sample. `prompt` is a text in the policy's chat template, plain text, or messages."""

    prompt: Text | Messages
    response: Text
    label: Any = None


@ROUTER.post("/slime")
async def reward(request: Request, service: Used) -> float:
    """The reward of the response."""
    prompt = read_prompt(service, request.prompt, "prompt")
    judged = await judge(service, prompt, [read_response(service, request.response)], None, Names("prompt", "response"))
    return judged.rewards(service.settings)[0]
