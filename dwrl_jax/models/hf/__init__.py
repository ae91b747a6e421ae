"""Read and write Hugging Face folders: safetensors <-> our parameters."""

from dwrl_jax.models.hf.folder import base_name, base_of, describe, resolve, tokenizer_of
from dwrl_jax.models.hf.load import load_params, random_params, with_value_head
from dwrl_jax.models.hf.save import DTYPES, save_model
from dwrl_jax.models.hf.table import hf_tensors, weight_table
from dwrl_jax.models.hf.tensor_files import INDEX, SINGLE

__all__ = [
    "DTYPES",
    "INDEX",
    "SINGLE",
    "base_name",
    "base_of",
    "describe",
    "hf_tensors",
    "load_params",
    "random_params",
    "resolve",
    "save_model",
    "tokenizer_of",
    "weight_table",
    "with_value_head",
]
