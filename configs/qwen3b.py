"""Qwen2.5-3B on HH-RLHF, full fine-tuning.

python -m dwrl_jax.train --config=configs/qwen3b.py --workdir=runs/qwen3b --config.model.path=FOLDER_OR_HUB_ID

The paper's accuracy for DWRL here is 68.5 % (read off its chart); this config has not been run on the full
model. `:smoke` runs the same architecture in small with random weights.

python -m dwrl_jax.plan --config=configs/qwen3b.py --topology=v5e:4x4
  16 x TPU v5e, fsdp 8 x tensor 2: 9.9 GiB per chip in sampling and 10.6 in an update, of 14.9; a step needs at least
  14 s. Micro-batches of up to 20 pairs would fit (here they have 8), and batches of at least 128.
"""

from dwrl_jax.training.config import accelerator_run, quick_trial, variants, with_objective


@variants
def get_config(objective="dwrl", smoke=False):
    config = accelerator_run("Qwen/Qwen2.5-3B-Instruct", tensor=2, micro_batches=8)
    return with_objective(quick_trial(config, "qwen2.5-3b") if smoke else config, objective)
