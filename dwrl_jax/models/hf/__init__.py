"""Read and write Hugging Face folders: safetensors <-> our parameters."""

from dwrl_jax.models.hf.load import load_params, random_params, resolve, with_value_head
from dwrl_jax.models.hf.save import save_model
from dwrl_jax.models.hf.table import hf_tensors, weight_table
from dwrl_jax.models.hf.tensor_files import INDEX, SINGLE

__all__ = [
    "INDEX",
    "SINGLE",
    "hf_tensors",
    "load_params",
    "random_params",
    "resolve",
    "save_model",
    "weight_table",
    "with_value_head",
]
