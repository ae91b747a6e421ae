"""Everything that scores: load a judge, ask it, and count its votes. No trainer is needed.

from dwrl_jax.judge import load, score

judge = load("runs/tiny")
for row in score(judge, [{"prompt": "What is 2 + 2?", "responses": ["4", "5"]}], votes=8):
    print(row["score"], row["rank"])
"""

from dwrl_jax.judge.card import JudgeCard
from dwrl_jax.judge.load import LoadedJudge, load
from dwrl_jax.judge.score import score

__all__ = ["JudgeCard", "LoadedJudge", "load", "score"]
