"""TRL's rewards from a judge in the same process are the scores of `dwrl_jax.judge.score`."""

import dataclasses

import pytest

from dwrl_jax.adapters.client import JudgeError
from dwrl_jax.adapters.trl import in_process
from dwrl_jax.judge import load, score
from tests.judge.exports import export
from tests.judge.test_score import CARD, PAIRWISE

PROMPTS = ["s1 o1 o2", "s1 o1 o2", "s2 o3"]
COMPLETIONS = ["s2 warm", "s5 curt", "s3 plain"]
PLAIN = dataclasses.replace(CARD, thoughts="none", buckets=(32,))  # judges without thoughts compile fast


def scores(folder, rows, votes=1, name="score"):
    return [value for row in score(load(folder), rows, votes, batch_size=4) for value in row[name]]


def test_each_completion_gets_its_score(tmp_path):
    folder = export(tmp_path / "judge", dataclasses.replace(PLAIN, kind="reward"))
    reward = in_process(folder, votes=1, batch_size=4)
    rows = [{"prompt": p, "responses": [c]} for p, c in zip(PROMPTS, COMPLETIONS)]
    assert reward(prompts=PROMPTS, completions=COMPLETIONS, completion_ids=None) == scores(folder, rows)
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    said = [[{"role": "assistant", "content": completion}] for completion in COMPLETIONS]
    odds = in_process(folder, votes=1, batch_size=4, value="log_odds")
    assert odds(prompts=messages, completions=said) == scores(folder, rows, name="log_odds")
    mixed = reward(prompts=PROMPTS, completions=["", "hello", COMPLETIONS[2]])
    assert mixed == [None, None, scores(folder, rows)[2]]


def test_a_judge_that_compares_sees_the_completions_of_a_prompt_together(tmp_path):
    card = dataclasses.replace(PLAIN, kind="label", texts=PAIRWISE, readout="choices")
    folder = export(tmp_path / "judge", card)
    rewards = in_process(folder, batch_size=4)(prompts=PROMPTS, completions=COMPLETIONS)
    assert rewards == [*scores(folder, [{"prompt": PROMPTS[0], "responses": COMPLETIONS[:2]}]), None]


def test_a_misspelt_value(tmp_path):
    with pytest.raises(JudgeError, match="value='odds'"):
        in_process(tmp_path, value="odds")
