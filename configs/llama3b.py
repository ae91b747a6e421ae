"""Llama-3.2-3B on HH-RLHF, full fine-tuning.

python -m dwrl_jax.train --config=configs/llama3b.py --workdir=runs/llama3b --config.model.path=FOLDER_OR_HUB_ID

The paper's accuracy of DWRL with this model is 70.5 %, read from its chart. This config has not been run on the full
model. `:smoke` runs a small model of the same architecture with random weights.

python -m dwrl_jax.plan --config=configs/llama3b.py --topology=v5e:4x4
  16 x TPU v5e with 14.9 GiB each, fsdp 2 x tensor 8: sampling takes 8.5 GiB per chip for 32 pairs at a time, and an
  update 11.9 GiB. A step needs at least 11.3 s. Mesh, micro-batches, remat, the spread feed-forward and the 32 pairs
  are what --tune ranks first.

python -m dwrl_jax.evaluate --model=runs/llama3b --benchmark=rewardbench2,rm_bench,judgebench,ppe \\
    --output=evaluated/llama3b
"""

from dwrl_jax.training.config import accelerator_run, quick_trial, variants, with_objective


@variants
def get_config(objective="dwrl", smoke=False):
    config = accelerator_run(
        "meta-llama/Llama-3.2-3B-Instruct", tensor=8, micro_batches=32, remat="dots", sampled=32, spread=True
    )
    return with_objective(quick_trial(config, "llama3.2-3b") if smoke else config, objective)
