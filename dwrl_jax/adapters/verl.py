"""A score for verl's reward loop: `reward.custom_reward_function.path=pkg://dwrl_jax.adapters.verl`.

verl writes what it gets into a tensor, in which None is an error and NaN spoils the batch. So every failure raises
`JudgeError`, and the run ends with the reason.
"""

from typing import Any

from dwrl_jax.adapters.client import Alone, JudgeError, Refused, in_thread, judge, server
from dwrl_jax.adapters.conversation import question

PROMPTS = ("messages", "prompt", "question")  # the keys of `extra_info` that may hold the conversation


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict | None = None,
    *,
    url: str | None = None,
    votes: int | str | None = None,
    value: str = "score",
    prompt_key: str | None = None,
    refused: float | None = None,
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
    **settings,
) -> dict[str, float]:
    """{"score": the reward, "refused": 0 or 1} of a response.

    verl passes no prompt, so `extra_info` must have it, a string or messages, under `prompt_key` or one of `PROMPTS`.
    A response that the judge cannot score, such as an empty one, raises `Refused`, or gets the reward `refused` if that
    is given. `url`, `votes`, `value` ("score" or "log_odds"), `prompt_key`, `refused` and the fields of `client.Server`
    come from `reward_kwargs` of verl's config. verl's own router and its tokenizer are not used.
    """
    if value not in ("score", "log_odds"):
        raise JudgeError(f"value={value!r}: choose score or log_odds")
    keys = (prompt_key,) if prompt_key else PROMPTS
    given = next((extra_info[name] for name in keys if (extra_info or {}).get(name) is not None), None)
    if given is None:
        raise JudgeError(f"extra_info has no {' or '.join(keys)}: put the conversation there when you make the data")
    at = server(url, **settings)
    try:
        messages, response = question(given, solution_str)
        reply = await in_thread(at, judge, at, messages, [response], votes, (value,))
    except Refused as error:
        if refused is None or isinstance(error, Alone):
            raise
        return {"score": refused, "refused": 1.0}
    return {"score": reply[value][0], "refused": 0.0}
