"""Qwen3-8B on HH-RLHF, full fine-tuning.

python -m dwrl_jax.train --config=configs/qwen3_8b.py --workdir=runs/qwen3_8b --config.model.path=FOLDER_OR_HUB_ID

This config has not been run on the full model. `:smoke` runs a small model of the same architecture with random
weights.

python -m dwrl_jax.plan --config=configs/qwen3_8b.py --topology=v5e:8x8
  64 x TPU v5e with 14.9 GiB each, data 2 x fsdp 4 x tensor 8: sampling takes 7.6 GiB per chip, and an update
  12.6 GiB. A step needs at least 6.4 s. Mesh, micro-batches, remat and the spread feed-forward are what --tune ranks
  first.
"""

from dwrl_jax.training.config import accelerator_run, quick_trial, variants, with_objective


@variants
def get_config(objective="dwrl", smoke=False):
    config = accelerator_run("Qwen/Qwen3-8B", data=2, tensor=8, micro_batches=16, remat="dots", spread=True)
    return with_objective(quick_trial(config, "qwen3-8b") if smoke else config, objective)
