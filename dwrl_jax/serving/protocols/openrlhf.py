"""OpenRLHF's remote reward model: `--reward.remote_url http://HOST:PORT/get_reward`.

A query is a prompt and its response as a single text, both in the chat template of the policy. OpenRLHF also sends an
empty query. Source: openrlhf/utils/remote_rm_utils.py.
"""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from dwrl_jax.serving.failures import Refused
from dwrl_jax.serving.service import Names, Used, judge_all
from dwrl_jax.serving.wire import MOST, Text, read_prompt, read_response, read_whole

ROUTER = APIRouter()


class Request(BaseModel):
    """Rows of query, prompt and label. The judge needs no labels."""

    query: list[Text] = Field(max_length=MOST)
    prompts: list[Text] | None = None
    labels: list[Any] | None = None


@ROUTER.post("/get_reward")
async def rewards(request: Request, service: Used) -> dict:
    """A reward for each query."""
    prompts = request.prompts or [None] * len(request.query)
    if len(prompts) != len(request.query):
        raise Refused(400, f"{len(prompts)} prompts for {len(request.query)} queries", "prompts")
    rows = []
    for index, (query, prompt) in enumerate(zip(request.query, prompts)):
        if prompt is None:
            rows.append(read_whole(service, query, f"query.{index}"))
        elif not query.startswith(prompt):
            raise Refused(400, "must begin with its prompt", f"query.{index}")
        else:
            response = read_response(service, query[len(prompt) :])
            rows.append((read_prompt(service, prompt, f"prompts.{index}"), response))
    judged = await judge_all(service, rows, Names("prompts", "query"))
    values = [each.rewards(service.settings)[0] for each in judged]
    usage = {"votes": sum(each.asked for each in judged), "tokens": sum(e.usage["total_tokens"] for e in judged)}
    return {"rewards": values, "scores": values, "extra_logs": {f"judge_{k}": v for k, v in usage.items()}}
