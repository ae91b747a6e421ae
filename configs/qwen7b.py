"""Qwen2.5-7B on HH-RLHF, full fine-tuning.

python -m dwrl_jax.train --config=configs/qwen7b.py --workdir=runs/qwen7b --config.model.path=FOLDER_OR_HUB_ID

The paper's accuracy of DWRL with this model is 70.4 %, read from its chart. This config has not been run on the full
model. `:smoke` runs a small model of the same architecture with random weights.

python -m dwrl_jax.plan --config=configs/qwen7b.py --topology=v5e:8x8
  64 x TPU v5e with 14.9 GiB each, fsdp 16 x tensor 4: sampling takes 5.7 GiB per chip, and an update 12.1 GiB. A
  step needs at least 5.7 s. Mesh, micro-batches, remat and the spread feed-forward are what --tune chose. At least
  272 pairs could be sampled at a time.
  With --topology=v5p:2x2x1 --config.optim.micro_batches=16 --config.model.remat=full --config.sampler.spread=False:
  4 x TPU v5p with 88.5 GiB each, tensor 4: sampling takes 52.8 GiB per chip, and an update 75.0 GiB.

python -m dwrl_jax.evaluate --model=runs/qwen7b --benchmark=rewardbench2,rm_bench,judgebench,ppe \\
    --output=evaluated/qwen7b
"""

from dwrl_jax.training.config import accelerator_run, quick_trial, variants, with_objective


@variants
def get_config(objective="dwrl", smoke=False):
    config = accelerator_run("Qwen/Qwen2.5-7B-Instruct", tensor=4, micro_batches=8, remat="dots", spread=True)
    return with_objective(quick_trial(config, "qwen2.5-7b") if smoke else config, objective)
