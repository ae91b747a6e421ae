"""Qwen2.5-7B on HH-RLHF, full fine-tuning.

python -m dwrl_jax.train --config=configs/qwen7b.py --workdir=runs/qwen7b --config.model.path=FOLDER_OR_HUB_ID

The paper's accuracy for DWRL here is 70.4 % (read off its chart); this config has not been run on the full
model. `:smoke` runs the same architecture in small with random weights.

python -m dwrl_jax.plan --config=configs/qwen7b.py --topology=v5e:8x8
  64 x TPU v5e, fsdp 16 x tensor 4: 8.6 GiB per chip in sampling and 7.4 in an update, of 14.9; a step needs at least
  9 s. Micro-batches of up to 40 pairs would fit (here they have 8), and batches of at least 184.
  With --topology=v5p:2x2x1 --config.optim.micro_batches=16: 4 x TPU v5p, tensor 4: 52.8 GiB per chip in sampling and
  75.0 in an update, of 88.5.
"""

from dwrl_jax.training.config import accelerator_run, quick_trial, variants, with_objective


@variants
def get_config(objective="dwrl", smoke=False):
    config = accelerator_run("Qwen/Qwen2.5-7B-Instruct", tensor=4, micro_batches=8)
    return with_objective(quick_trial(config, "qwen2.5-7b") if smoke else config, objective)
