"""Qwen3-30B-A3B on HH-RLHF, full fine-tuning. A token passes through 8 of 128 experts, 3 of 30 billion weights.

python -m dwrl_jax.train --config=configs/qwen3_30b_a3b.py --workdir=runs/qwen3_30b_a3b \\
    --config.model.path=FOLDER_OR_HUB_ID

This config has not been run on the full model. `:smoke` runs a small model of the same architecture with random
weights.
The experts lie over the mesh axis fsdp, whose size must divide 128.

python -m dwrl_jax.plan --config=configs/qwen3_30b_a3b.py --topology=v5p:2x2x4
  16 x TPU v5p with 88.5 GiB each, fsdp 8 x tensor 2: sampling takes 39.7 GiB per chip, and an update
  75.2 GiB. A step needs at least 6.7 s.
"""

from dwrl_jax.training.config import accelerator_run, quick_trial, variants, with_objective


@variants
def get_config(objective="dwrl", smoke=False):
    config = accelerator_run("Qwen/Qwen3-30B-A3B", tensor=2, micro_batches=8)
    return with_objective(quick_trial(config, "qwen3-30b-a3b") if smoke else config, objective)
