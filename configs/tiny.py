"""The built-in world: everything is made from a seed, and nothing is downloaded.

python -m dwrl_jax.train --config=configs/tiny.py --workdir=runs/tiny

`--config=configs/tiny.py:OBJECTIVE,world=NAME` takes another world of `data/worlds`: few, long, noisy or shortcut.
"""

from dwrl_jax import objectives
from dwrl_jax.data import worlds
from dwrl_jax.training.config import base_config, variants, with_objective

# The most accurate learning rate of 3e-5, 1e-4, 3e-4 and 1e-3 on another world, for objectives where it is not 3e-4:
# python -m dwrl_jax.reproduce --suite=tiny_rates --seeds=101 --workdir=runs/rates
LEARNING_RATES = {
    "dwrl": 1.5e-4,  # four times below a rate at which it collapses; it does not hold on every world: docs/findings.md
    "bt": 1e-4,
    "bt_token": 1e-3,
    "dwrl_no_misalignment": 1e-4,
    "gram": 1e-3,
    "grpo_pair": 1e-4,
    "grpo_point": 1e-4,
    "oprm": 3e-5,
    "preference_embedding": 1e-3,
    "rm_r1": 1e-4,
}


@variants
def get_config(objective="dwrl", smoke=False, world="plain"):
    pairwise = objectives.load(objective).judges[0] == "label"
    config = world_config(pairwise, world)
    config.base = base_model(pairwise, worlds.load(world).thinks_in or world)
    config.data.train = "world"
    config.data.eval = "world"
    config.optim.steps = 250
    config.optim.learning_rate = LEARNING_RATES.get(objective, 3e-4)
    config.eval.pairs = 1000
    config.eval.votes = (1, 8, 32)
    config.eval.batch_size = 50
    config.eval.every = 50
    config.eval.curve_pairs = 200
    config.log.thoughts_every = 50
    if objective == "irpm":  # the base model answers only with its two words, and other scores would never be drawn
        config.dialogue.scores = config.dialogue.answers[::-1]
    if smoke:
        config.optim.steps = 4
        config.base.optim.steps = 20
        config.eval.pairs = 100
        config.eval.votes = (1, 8)
        config.eval.curve_pairs = 50
        config.eval.every = 2
    return with_objective(config, objective)


def base_model(pairwise, world):
    """Config of the model that a run starts from. It learns first clean chains, then thoughts of mixed quality.

    All methods of the world "long" start from the same model, which knows both kinds of dialogue: by single responses
    alone it did not learn its longer chains. It trains twice as long: with 1,500 steps one of four seeds (21 to 24) did
    not learn the distance that ends a thought, and its verdicts were guesses.
    """
    pairwise = pairwise or world == "long"
    config = with_objective(world_config(pairwise, world), "sft")
    config.world.pairwise_share = 0.5 if pairwise else 0.0
    config.model.preset = "llama3.2-3b"
    config.data.train = "world:demonstrations"
    config.data.batch_size = 64
    config.objective.answer_weight = 3.0
    config.optim.steps = 3000 if world == "long" else 1500
    config.optim.learning_rate = 3e-3
    config.optim.warmup = 50
    config.optim.final_share = 0.01
    config.eval.pairs = 0
    config.checkpoint.every = 500
    return config


def world_config(pairwise, world):
    config = base_config()
    config.world.name, operations = world, worlds.load(world).operations
    config.dialogue.judge_question = "judge"
    config.dialogue.answer_question = "good?"
    config.dialogue.answers = ("yes", "no")
    config.dialogue.pair_question = "{conversation} A {first} B {second} judge"
    config.dialogue.turn = "{content}"
    config.dialogue.label_question = config.dialogue.answer_question  # the same judge answers both kinds of dialogue
    config.dialogue.labels = config.dialogue.answers
    config.dialogue.score_question = config.dialogue.answer_question
    config.dialogue.scores = ("off4", "off3", "off2", "off1", "off0")  # known words, the worst first
    config.data.buckets = (15 + operations,)
    config.sampler.max_thought = operations + (5 if pairwise else 3)  # a comparison names both claims
    return config
