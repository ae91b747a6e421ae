"""stories260K, a pretrained Llama with 260,000 parameters, on real dialogues. It takes minutes on two cores.

python -m dwrl_jax.train --config=configs/stories_hh.py --workdir=runs/stories --config.model.path=FOLDER \\
    --config.data.train=PAIRS.jsonl.gz --config.data.eval=HELD_OUT.jsonl.gz

The model knows only children's stories, so expect an accuracy near 50 %. The config tests the whole path with a real
checkpoint and real pairs. None of the model's 512 tokens is "A" or "B", so the answers are other letters.
"""

from dwrl_jax.training.config import base_config, quick_trial, variants, with_objective


@variants
def get_config(objective="dwrl", smoke=False):
    config = base_config()
    config.dialogue.answer_question = "Is this good? a: yes, I: no"
    config.dialogue.answers = ("a", "I")
    config.dialogue.label_question = "Which is better? a: Response A, I: Response B"
    config.dialogue.labels = ("a", "I")
    config.data.buckets = (128, 256, 384)
    config.data.batch_size = 8
    config.sampler.group_size = 4
    config.sampler.max_thought = 48
    config.optim.steps = 60
    config.optim.learning_rate = 3e-4
    config.eval.votes = (1, 4)
    config.eval.pairs = 200
    config.eval.curve_pairs = 64
    config.eval.every = 20
    return with_objective(quick_trial(config, "llama3.2-3b") if smoke else config, objective)
