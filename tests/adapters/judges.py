"""Random judges of the built-in world, as exports, and rows that they can score."""

from dwrl_jax.data import world
from dwrl_jax.judge.card import as_json
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config
from dwrl_jax.models.families.presets import PRESETS, shrink
from tests.judge.test_score import CARD, talkative

PROMPTS = ["s1 o1 o2", "s1 o1 o2", "s2 o3"]
COMPLETIONS = ["s2 warm", "s5 curt", "s3 plain"]


def export(path, card=CARD):
    tokenizer = world.make_tokenizer()
    config = shrink(PRESETS["llama3.2-3b"], 1 + max(tokenizer.get_vocab().values()))
    shape = model_config(config)
    documents = {"judge.json": as_json(card)}
    hf.save_model(path, talkative(shape), shape, config, tokenizer=tokenizer, documents=documents)
    return path
