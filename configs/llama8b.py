"""Llama-3.1-8B on HH-RLHF, full fine-tuning.

python -m dwrl_jax.train --config=configs/llama8b.py --workdir=runs/llama8b --config.model.path=FOLDER_OR_HUB_ID

The paper's accuracy for DWRL here is 72.2 % (read off its chart); this config has not been run on the full
model. `:smoke` runs the same architecture in small with random weights.

python -m dwrl_jax.plan --config=configs/llama8b.py --topology=v5e:8x8
  64 x TPU v5e, fsdp 16 x tensor 4: 8.4 GiB per chip in sampling, of 32 pairs at a time, and 7.4 in an update, of 14.9;
  a step needs at least 13 s. Micro-batches of up to 32 pairs would fit (here they have 8), and sampling all 64 at once.
  With --topology=v5p:2x2x1 --config.optim.micro_batches=16: 4 x TPU v5p, tensor 4: 57.6 GiB per chip in sampling and
  81.2 in an update, of 88.5; a step needs at least 51 s. With 8 micro-batches an update would need 97.5 GiB.
"""

from dwrl_jax.training.config import accelerator_run, quick_trial, variants, with_objective


@variants
def get_config(objective="dwrl", smoke=False):
    config = accelerator_run("meta-llama/Llama-3.1-8B-Instruct", tensor=4, micro_batches=8, sampled=32)
    return with_objective(quick_trial(config, "llama3.1-8b") if smoke else config, objective)
