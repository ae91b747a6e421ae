"""A reward for OpenRLHF, whose `--reward.remote_url` takes the path of this file. It also takes the server's address
with `/get_reward`.

With this file the judge reads the conversation, and not the text that a chat template made of it: `--data.label_key`
names a column that has the prompt, as a string or as messages. The settings are $DWRL_JAX_URL, $DWRL_JAX_TOKEN,
$DWRL_JAX_VOTES, and $DWRL_JAX_REFUSED, a reward for a response that the judge cannot score, such as an empty one.

Every failure raises `JudgeError`. OpenRLHF logs it, the sample has no reward, and training stops at its batch.
"""

import functools
import json
import os
import re
from collections.abc import Sequence

from dwrl_jax.adapters.client import Alone, JudgeError, Refused, Server, at_once, judge, server
from dwrl_jax.adapters.conversation import question

# OpenRLHF leaves the tokens in the text that end a response: <|im_end|>, <|eot_id|>, </s>, <eos>, <end_of_turn> ...
END = re.compile(r"(?:\s*(?:<[|\uff5c][^<>\s]{1,40}[|\uff5c]>|</s>|<eos>|<end>|<pad>|<end_of_turn>|<turn\|>))+\s*$")


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence) -> dict[str, list[float] | dict]:
    """{"rewards": [...], "scores": [...], "extra_logs": {}} of queries, each a prompt with its response.

    A label is the conversation: a string, messages, or their JSON. If it is empty, the prompt is the user's turn, which
    is right only where no chat template was applied.
    """
    at = server()
    calls = [functools.partial(_score, at, *row) for row in zip(queries, prompts, labels, strict=True)]
    scores = at_once(at, calls)
    for error in scores:
        if isinstance(error, JudgeError):
            raise error
    return {"rewards": scores, "scores": scores, "extra_logs": {}}


def _score(at: Server, query: str, prompt: str, label) -> float:
    votes, refused = os.environ.get("DWRL_JAX_VOTES") or None, os.environ.get("DWRL_JAX_REFUSED")
    _, begun, response = query.partition(prompt)
    if not begun:
        raise JudgeError(
            f"the query {query[:60]!r} does not have its prompt; is the prompt too long for --data.max_len?"
        )
    try:
        messages, response = question(_conversation(label) or prompt, END.sub("", response))
        votes = int(votes) if votes and votes.isdecimal() else votes
        return judge(at, messages, [response], votes)["score"][0]
    except Refused as error:
        if not refused or isinstance(error, Alone):
            raise
        return float(refused)


def _conversation(label):
    """Messages from their JSON; any other label as it is."""
    try:
        value = json.loads(label) if isinstance(label, str) else label
    except ValueError:
        return label
    return value if isinstance(value, list | tuple) else label
