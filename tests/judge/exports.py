"""Random judges of the built-in world, as exports."""

from dwrl_jax.data import world
from dwrl_jax.judge.card import as_json
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config, with_value_head
from dwrl_jax.models.families.presets import PRESETS, shrink
from tests.judge.test_score import talkative

OUTPUTS = {"reward": 1, "embedding": 4}  # of the value heads of these kinds


def export(path, card):
    """The folder of a judge with this card."""
    tokenizer = world.make_tokenizer()
    config = shrink(PRESETS["llama3.2-3b"], 1 + max(tokenizer.get_vocab().values()))
    if card.kind in OUTPUTS:
        config = with_value_head(config, tokenizer.pad_token_id, OUTPUTS[card.kind])
    shape = model_config(config)
    documents = {"judge.json": as_json(card)}
    hf.save_model(path, talkative(shape), shape, config, tokenizer=tokenizer, documents=documents)
    return path
