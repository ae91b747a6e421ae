"""Llama-3.1-8B on HH-RLHF, full fine-tuning.

python -m dwrl_jax.train --config=configs/llama8b.py --workdir=runs/llama8b --config.model.path=FOLDER_OR_HUB_ID

The paper's accuracy of DWRL with this model is 72.2 %, read from its chart. This config has not been run on the full
model. `:smoke` runs a small model of the same architecture with random weights.

python -m dwrl_jax.plan --config=configs/llama8b.py --topology=v5e:8x8
  64 x TPU v5e with 14.9 GiB each, fsdp 16 x tensor 4: sampling takes 8.4 GiB per chip for 32 pairs at a time, and an
  update 7.4 GiB. A step needs at least 13 s. Micro-batches of up to 32 pairs would fit (here they have 8 pairs), and
  all 64 pairs could be sampled at once.
  With --topology=v5p:2x2x1 --config.optim.micro_batches=16: 4 x TPU v5p with 88.5 GiB each, tensor 4: sampling takes
  57.6 GiB per chip, and an update 81.2 GiB. A step needs at least 51 s. With 8 micro-batches an update would need
  97.5 GiB.

python -m dwrl_jax.evaluate --model=runs/llama8b --benchmark=rewardbench2,rm_bench,judgebench,ppe \\
    --output=evaluated/llama8b
"""

from dwrl_jax.training.config import accelerator_run, quick_trial, variants, with_objective


@variants
def get_config(objective="dwrl", smoke=False):
    config = accelerator_run("meta-llama/Llama-3.1-8B-Instruct", tensor=4, micro_batches=8, sampled=32)
    return with_objective(quick_trial(config, "llama3.1-8b") if smoke else config, objective)
