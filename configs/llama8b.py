"""Llama-3.1-8B on HH-RLHF, full fine-tuning.

python -m dwrl_jax.train --config=configs/llama8b.py --workdir=runs/llama8b --config.model.path=FOLDER_OR_HUB_ID

The paper's accuracy of DWRL with this model is 72.2 %, read from its chart. This config has not been run on the full
model. `:smoke` runs a small model of the same architecture with random weights.

python -m dwrl_jax.plan --config=configs/llama8b.py --topology=v5e:8x8
  64 x TPU v5e with 14.9 GiB each, data 2 x fsdp 4 x tensor 8: sampling takes 7.8 GiB per chip, and an update
  12.1 GiB. A step needs at least 6.2 s. Mesh, micro-batches, remat and the spread feed-forward are what --tune ranks
  first.
  With --topology=v5p:2x2x1 --config.mesh.data=1 --config.mesh.tensor=4 --config.model.remat=full
  --config.sampler.spread=False --config.sampler.batch_size=32: 4 x TPU v5p with 88.5 GiB each, tensor 4: sampling
  takes 57.6 GiB per chip, and an update 81.2 GiB. A step needs at least 51 s.

python -m dwrl_jax.evaluate --model=runs/llama8b --benchmark=rewardbench2,rm_bench,judgebench,ppe \\
    --output=evaluated/llama8b
"""

from dwrl_jax.training.config import accelerator_run, quick_trial, variants, with_objective


@variants
def get_config(objective="dwrl", smoke=False):
    config = accelerator_run(
        "meta-llama/Llama-3.1-8B-Instruct", data=2, tensor=8, micro_batches=16, remat="dots", spread=True
    )
    return with_objective(quick_trial(config, "llama3.1-8b") if smoke else config, objective)
