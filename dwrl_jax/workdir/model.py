"""From a workdir to a folder for transformers and vLLM, with the shape and the parameters of the trained model."""

from pathlib import Path

from dwrl_jax.core import files, hosts
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.names import ARCHITECTURE, CARD
from dwrl_jax.core.terminal import say
from dwrl_jax.dialogue.tokenizers import load_tokenizer, set_pad_token
from dwrl_jax.models import frozen, hf, lora
from dwrl_jax.models.families import model_config, read_config
from dwrl_jax.models.hf import peft_folder
from dwrl_jax.models.places import abstract_params, abstract_trained, widest_mesh
from dwrl_jax.models.transformer import ModelConfig
from dwrl_jax.workdir import checkpoint

FORMATS = ("merged", "peft")


def export(
    workdir: Path, output: Path, which: str = "last", dtype: str | None = None, form: str = "merged", start=None
) -> None:
    """Export a checkpoint of a run: `which` is "last", "best" or a step. `dtype` None is the starting model's.

    The form "merged" is a whole model. A run with adapters also has the form "peft", the adapters alone in float32.
    `start` is the folder of the adapters' model if it is no longer where it was.
    UserError where the run or the checkpoint does not exist, and where `output` is not empty.
    """
    folder = workdir / ARCHITECTURE
    hf_config, config = read_architecture(workdir)
    adapters, mesh = frozen.read(folder), widest_mesh(config)
    if form == "peft" and adapters is None:
        raise UserError(f"{workdir}: this run trained all weights, so it has no adapters; leave out --format=peft")
    if adapters:
        like, base = abstract_trained(config, adapters.settings, mesh), frozen.folder_of(adapters, workdir, start)
    else:
        like = abstract_params(config, mesh)
    manager = checkpoint.open_manager(workdir)
    params = checkpoint.restore_params(manager, which, like)
    manager.close()
    tokenizer = load_tokenizer(folder)
    if config.value_head:  # an older run may have kept an end token that pads
        hf_config["pad_token_id"] = set_pad_token(tokenizer, config.vocab_size)
        if hf_config["pad_token_id"] is None and hosts.first():
            say("warning: the tokenizer has no token to pad with, so transformers takes one text at a time")
    documents = {CARD: files.read_json(folder / CARD)} if (folder / CARD).exists() else None
    if form == "peft":
        named = base if start or (workdir / adapters.model).is_dir() else adapters.model  # a folder, or a hub id
        matrices = lora.chosen(config, adapters.settings.targets)
        beside = {"tokenizer": tokenizer, "documents": documents}
        peft_folder.save(output, params, matrices, config, hf_config, adapters.settings, hf.base_name(named), **beside)
        return
    if adapters:
        params = frozen.merge(adapters, base, params, config, mesh)
    generation = folder / "generation_config.json"
    hf.save_model(
        output,
        params,
        config,
        hf_config,
        tokenizer=tokenizer,
        generation_config=files.read_json(generation) if generation.exists() else None,
        documents=documents,
        dtype=dtype or _dtype_of(hf_config),
    )


def _dtype_of(hf_config: dict) -> str:
    """The type of the starting model's weights; bfloat16 for a type of 8 bits, float32 where none is said."""
    name = str(hf_config.get("dtype") or hf_config.get("torch_dtype") or "float32").removeprefix("torch.")
    if name in hf.DTYPES:
        return name
    chosen = "bfloat16" if "8" in name else "float32"
    if hosts.first():
        say(f"note: weights are written in {chosen}, not in {name}, the type of the starting model; --dtype chooses")
    return chosen


def read_architecture(workdir: Path) -> tuple[dict, ModelConfig]:
    """config.json of the model that a run trains, also as ModelConfig."""
    if not (workdir / "config.json").exists() or not (workdir / ARCHITECTURE).exists():
        raise UserError(f"{workdir}: not the workdir of a training run")
    hf_config = read_config(workdir / ARCHITECTURE)
    numerics = files.read_json(workdir / "config.json")["model"]
    return hf_config, model_config(hf_config, param_dtype=numerics["param_dtype"])
