"""Qwen2.5-3B on HH-RLHF, full fine-tuning.

python -m dwrl_jax.train --config=configs/qwen3b.py --workdir=runs/qwen3b --config.model.path=FOLDER_OR_HUB_ID

The paper's accuracy of DWRL with this model is 68.5 %, read from its chart. This config has not been run on the full
model. `:smoke` runs a small model of the same architecture with random weights.

python -m dwrl_jax.plan --config=configs/qwen3b.py --topology=v5e:4x4
  16 x TPU v5e with 14.9 GiB each, fsdp 8 x tensor 2: sampling takes 7.0 GiB per chip, and an update 13.6 GiB. A step
  needs at least 9.7 s. Mesh, micro-batches, remat and the spread feed-forward are what --tune ranks first.

python -m dwrl_jax.evaluate --model=runs/qwen3b --benchmark=rewardbench2,rm_bench,judgebench,ppe \\
    --output=evaluated/qwen3b
"""

from dwrl_jax.training.config import accelerator_run, quick_trial, variants, with_objective


@variants
def get_config(objective="dwrl", smoke=False):
    config = accelerator_run("Qwen/Qwen2.5-3B-Instruct", tensor=2, micro_batches=16, remat="dots", spread=True)
    return with_objective(quick_trial(config, "qwen2.5-3b") if smoke else config, objective)
