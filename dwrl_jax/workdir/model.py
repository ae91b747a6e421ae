"""From a workdir to a folder for transformers and vLLM, with the shape and the parameters of the trained model."""

from pathlib import Path

from dwrl_jax.core import files, hosts
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.names import ARCHITECTURE, CARD
from dwrl_jax.dialogue.tokenizers import load_tokenizer, set_pad_token
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config, read_config
from dwrl_jax.models.places import abstract_params
from dwrl_jax.models.transformer import ModelConfig
from dwrl_jax.workdir import checkpoint


def export(workdir: Path, output: Path, which: str = "last", dtype: str | None = None) -> None:
    """Export a checkpoint of a run: `which` is "last", "best" or a step. `dtype` None is the starting model's.

    UserError where the run or the checkpoint does not exist, and where `output` is not empty.
    """
    folder = workdir / ARCHITECTURE
    hf_config, config = read_architecture(workdir)
    like = abstract_params(config)
    manager = checkpoint.open_manager(workdir)
    params = checkpoint.restore_params(manager, which, like)
    manager.close()
    tokenizer = load_tokenizer(folder)
    if config.value_head:  # an older run may have kept an end token that pads
        hf_config["pad_token_id"] = set_pad_token(tokenizer, config.vocab_size)
        if hf_config["pad_token_id"] is None and hosts.first():
            print("warning: the tokenizer has no token to pad with, so transformers takes one text at a time")
    generation = folder / "generation_config.json"
    hf.save_model(
        output,
        params,
        config,
        hf_config,
        tokenizer=tokenizer,
        generation_config=files.read_json(generation) if generation.exists() else None,
        documents={CARD: files.read_json(folder / CARD)} if (folder / CARD).exists() else None,
        dtype=dtype or _dtype_of(hf_config),
    )


def _dtype_of(hf_config: dict) -> str:
    """The type of the starting model's weights; bfloat16 for a type of 8 bits, float32 where none is said."""
    name = str(hf_config.get("dtype") or hf_config.get("torch_dtype") or "float32").removeprefix("torch.")
    if name in hf.DTYPES:
        return name
    chosen = "bfloat16" if "8" in name else "float32"
    if hosts.first():
        print(f"note: weights are written in {chosen}, not in {name}, the type of the starting model; --dtype chooses")
    return chosen


def read_architecture(workdir: Path) -> tuple[dict, ModelConfig]:
    """config.json of the model that a run trains, also as ModelConfig."""
    if not (workdir / "config.json").exists() or not (workdir / ARCHITECTURE).exists():
        raise UserError(f"{workdir}: not the workdir of a training run")
    hf_config = read_config(workdir / ARCHITECTURE)
    numerics = files.read_json(workdir / "config.json")["model"]
    return hf_config, model_config(hf_config, param_dtype=numerics["param_dtype"])
