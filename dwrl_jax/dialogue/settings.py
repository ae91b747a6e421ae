"""The section `dialogue` of a config: the words that the judge reads."""

import dataclasses
import json
from typing import Literal

from dwrl_jax.core.settings import setting


def _json_object(value) -> str | None:
    try:
        known = not value or isinstance(json.loads(value), dict)
    except (TypeError, ValueError):
        known = False
    return None if known else "give a JSON object, such as '{\"enable_thinking\": false}'"


@dataclasses.dataclass(frozen=True)
class DialogueSettings:
    system: str = setting("", "system message for conversations without one; empty for none")
    judge_question: str = setting("Judge the response.", "asks for the thought")
    answer_question: str = setting("Is this a good response? A: Yes, B: No", "asks for the answer")
    answers: tuple = setting(("A", "B"), "the answers for good and bad, each a single token in its place", count=2)
    pair_question: str = setting(
        "Here is a conversation.\n\n{conversation}\n\nResponse A:\n{first}\n\nResponse B:\n{second}\n\n"
        "Compare the two responses to the last message.",
        "pairwise: shows the conversation and both responses, and asks for the thought",
    )
    turn: str = setting("{role}: {content}", "pairwise: form of a turn in the conversation; blank lines separate turns")
    label_question: str = setting("Which response is better, A or B?", "pairwise: asks for the label")
    labels: tuple = setting(
        ("A", "B"), "pairwise: labels for a better first or second response, each a token in its place", count=2
    )
    score_question: str = setting("How good is the response, from 1 to 9?", "ordinal: asks for the score")
    scores: tuple = setting(
        tuple("123456789"), "ordinal: the scores, the lowest first, each a single token in its place", fewest=2
    )
    date: str = setting("26 Jul 2024", "today's date for templates that print it; the same in training and evaluation")
    layout: Literal["two_turns", "one_turn"] = setting(
        "two_turns",
        'the answer in a turn of its own, after a second question ("two_turns"), or in the turn of the thought, behind '
        'its <think> block ("one_turn")',
    )
    control: Literal["skip", "escape"] = setting(
        "skip",
        'a text with the name of a control token in it costs its row ("skip"), or is read as plain text ("escape")',
    )
    template_arguments: str = setting(
        "", "arguments of the chat template as a JSON object; empty for none", rule=_json_object
    )
