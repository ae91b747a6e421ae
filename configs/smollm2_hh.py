"""SmolLM2-135M-Instruct on real dialogues: the smallest published instruct model, also for two cores.

python -m dwrl_jax.train --config=configs/smollm2_hh.py --workdir=runs/smollm2 \\
    --config.data.train=PAIRS.jsonl.gz --config.data.eval=HELD_OUT.jsonl.gz

The model comes from the hub; --config.model.path=FOLDER names a folder. The numbers are (ours), chosen for a short
step: both equations from a single backward pass, few and short thoughts. Prefixes of more than 256 tokens lose their
oldest turns. `:smoke` runs a small model of the same architecture with random weights; --config.model.path makes it a
quick trial of the real model.
"""

from dwrl_jax.training.config import base_config, quick_trial, variants, with_objective


@variants
def get_config(objective="dwrl", smoke=False):
    config = base_config()
    config.model.path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    config.data.train = config.data.eval = "Anthropic/hh-rlhf"
    if not smoke:  # these words have more of the model's probability than A and B, and the thoughts are short
        config.dialogue.judge_question = "Judge the response in one short sentence."
        config.dialogue.answer_question = "Is this a good response? Yes or No?"
        config.dialogue.answers = ("Yes", "No")
    config.data.buckets = (128, 192, 256)
    config.data.batch_size = 8
    config.sampler.group_size = 4
    config.sampler.max_thought = 24
    config.optim.steps = 60
    config.optim.learning_rate = 2e-5
    config.eval.votes = (1, 4)
    config.eval.pairs = 200
    config.eval.curve_pairs = 32
    config.eval.every = 20
    config = with_objective(quick_trial(config, "llama3.2-3b") if smoke else config, objective)
    if "updates" in config.objective:
        config.objective.updates = "joint"
    return config
