"""The kind of judge is apart from the objective, where the mathematics allows it."""

import jax
import pytest

from dwrl_jax.core.errors import UserError
from dwrl_jax.data import world
from dwrl_jax.planning import compiled
from dwrl_jax.settings.commandline import parse
from dwrl_jax.training.assemble import judge_card, judge_kind
from tests.runs import recipe_of, tiny


def config_of(variant, judge):
    return parse([*tiny(f"{variant},smoke"), f"--config.score.judge={judge}", "--workdir=unused"])[0]


def test_smoke_dwrl_learns_from_ordinal_scores():
    """From the config to the traced update: five scores behind each thought, and a card that says so."""
    config = config_of("dwrl", "score")
    recipe = recipe_of(config)
    assert recipe.judge.kind == "score" and len(recipe.judge.answers) == 5 and recipe.judge.value_scores is None
    with jax.set_mesh(recipe.mesh):
        state, batch, thoughts, *_ = compiled.lower(recipe, "update", 20, 2).args_info[0]
    assert thoughts.thought.shape == (2, 2, 8, 8) and thoughts.verdict is None
    card = judge_card(config, world.make_tokenizer())
    assert card.kind == card.texts.kind == "score" and card.texts.answers == tuple(config.dialogue.scores)


@pytest.mark.parametrize(("variant", "judge"), [("bt", "verdict"), ("grpo_pair", "verdict"), ("dwrl", "reward")])
def test_a_kind_that_an_objective_cannot_train(variant, judge):
    with pytest.raises(UserError, match=f"score.judge='{judge}': {variant} trains .*; give one of them"):
        judge_kind(config_of(variant, judge))
