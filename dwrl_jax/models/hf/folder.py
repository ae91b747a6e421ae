"""Model folders: where they are, and what they hold. All that reads a folder's weights reads it through `describe`.

People have the same model in many forms: with and without prefixes in tensor names, heads under several names, labels
or none, tied heads that are stored, an adapter beside its base. `describe` gives config.json and tensors in plain form.
"""

import dataclasses
import functools
from pathlib import Path

import huggingface_hub
import numpy as np

from dwrl_jax.core.errors import UserError
from dwrl_jax.models.families import Family, family_of, labelled, read_config, read_json, text_half
from dwrl_jax.models.hf import foreign, peft_merge
from dwrl_jax.models.hf.names import plain_names
from dwrl_jax.models.hf.table import EMBEDDING, LAST_NORM, LM_HEAD, VALUE_HEAD
from dwrl_jax.models.hf.tensor_files import EIGHT_BITS, FLOATS, Scaled, Stored, Tensors, find_tensors

DOWNLOADED = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "merges.txt"]
NOT_DOWNLOADED = ["consolidated*", "original/*"]  # the same weights once more, with other names
CONSTANTS = ("rotary_emb.inv_freq", "_extra_state")  # ends of names of stored tensors that are no weights
SENSES = ("vision_tower", "multi_modal_projector", "vision_model", "visual")  # parts of names beside a text half
QUANTISED = ("quantization_config", "compression_config", "quantization")  # keys of config.json
SCALES = (".weight_scale_inv", ".weight_scale")  # of 8-bit floats, in the place of ".weight"
UNUSED_SCALES = ("input_scale", "output_scale", "activation_scale", "k_scale", "v_scale", "kv_cache_scale")


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A folder's model in plain form."""

    path: Path
    hf_config: dict  # config.json of the model that the tensors make up
    tensors: Tensors  # by their names in transformers
    notes: tuple[str, ...]  # what was chosen where a folder could be read in two ways


def resolve(path_or_hub_id: str) -> Path:
    """The local folder of a model. A path that is not a folder is a hub id and is downloaded from the Hugging Face hub.

    UserError if the path is a file, or if the download fails.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return path
    foreign.refuse_file(path)
    try:
        return Path(
            huggingface_hub.snapshot_download(
                str(path_or_hub_id), allow_patterns=DOWNLOADED, ignore_patterns=NOT_DOWNLOADED
            )
        )
    except Exception as error:  # network, permission, cache and name errors have no common base class
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{path_or_hub_id}: no such folder, and not to be had from the Hugging Face hub ({reason}); "
            "give a folder with config.json and *.safetensors, or check the id, the network and the login"
        ) from error


def base_of(folder: Path) -> Path:
    """The folder itself, or the base model's for an adapter: it has config.json and the small files."""
    settings = peft_merge.settings_of(folder)
    if settings is None:
        return folder
    try:
        return resolve(peft_merge.base_name(folder, settings))
    except UserError as error:
        raise UserError(f"{folder / peft_merge.SETTINGS}: the base model is not there: {error}") from None


def base_name(folder: Path | str) -> str:
    """The name by which PEFT finds a model again: that of an adapter's base, else the absolute path, or the hub id."""
    settings = peft_merge.settings_of(folder) if isinstance(folder, Path) else None
    if settings is not None:
        return peft_merge.base_name(folder, settings)
    return str(folder.absolute()) if isinstance(folder, Path) else folder


def tokenizer_of(folder: Path) -> Path:
    """The folder with the model's tokenizer: an adapter may have its own, or leave it to its base."""
    own = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"))
    return folder if own else base_of(folder)


def describe(folder: Path, *, weights: bool = True, low_rank: bool = True) -> ModelFolder:
    """What a folder holds. `weights=False` reads config.json alone, and knows nothing of what the tensors would say.

    `low_rank=False` leaves the low-rank changes of an adapter out: the result is its base, with its whole tensors.
    UserError if it holds no model that can be read; the message says what it is and what to do.
    """
    folder = Path(folder)
    for name in ("config.json", "tokenizer.json", "tokenizer.model"):
        foreign.refuse_pointer(folder / name)
    settings = peft_merge.settings_of(folder)
    if settings is not None:
        return _with_adapter(folder, settings, weights, low_rank)
    whole = _config(folder)
    hf_config = text_half(whole)
    family = family_of(hf_config)
    _check_class(folder, hf_config)
    if not weights:
        return ModelFolder(folder, _dequantised(folder, hf_config), {}, ())
    try:
        tensors, notes = find_tensors(folder)
    except UserError:
        if (how := _quantisation(folder, hf_config)) and not _has_8_bits(how):
            raise foreign.quantised(folder, how) from None
        raise
    if hf_config is not whole:
        tensors = {key: tensor for key, tensor in tensors.items() if not set(key.split(".")) & set(SENSES)}
        notes.append(f"{folder}: the text half of a {whole.get('model_type')} model is read, and nothing beside it")
    tensors = _weights(plain_names(tensors, family.tensor_name(LAST_NORM)))
    tensors, hf_config = _scaled(folder, tensors, hf_config)
    return _plain(folder, hf_config, family, tensors, notes)


def _with_adapter(folder: Path, settings: dict, weights: bool, low_rank: bool) -> ModelFolder:
    name = peft_merge.base_name(folder, settings)
    if not weights and not Path(name).expanduser().is_dir():
        raise UserError(f"{folder}: its base model {name} is not on this machine; give the base model instead")
    path = base_of(folder)
    if peft_merge.settings_of(path) is not None:
        raise UserError(f"{folder}: an adapter of an adapter, {path}; {peft_merge.MERGE}")
    try:
        base = describe(path, weights=weights)
    except UserError as error:
        raise UserError(f"{error} (the base model in {folder / peft_merge.SETTINGS})") from None
    if not weights:
        return dataclasses.replace(base, path=folder)
    family, hf_config = family_of(base.hf_config), dict(base.hf_config)
    tensors = peft_merge.merge(folder, settings, base.tensors, family.tensor_name(LAST_NORM), low_rank)
    embedding = family.tensor_name(EMBEDDING)
    if tensors.get(embedding) is not base.tensors.get(embedding):  # the adapter's own, which may have more rows
        hf_config["vocab_size"] = tensors[embedding].shape[0]
    if settings.get("task_type") == "SEQ_CLS":
        hf_config["architectures"] = [family.reward_model]
    done = f"it is merged into {path}" if low_rank else f"training goes on with it, and {path} stays as it is"
    notes = [*base.notes, f"{folder} is an adapter; {done}"]
    return _plain(folder, hf_config, family, tensors, notes)


def _config(folder: Path) -> dict:
    weights = (folder / "config.json").exists() or any(folder.glob("*.safetensors"))
    if not weights and (form := foreign.form_of(folder)):
        raise UserError(f"{folder}: {form}")
    return read_config(folder)


def _check_class(folder: Path, hf_config: dict) -> None:
    for name in hf_config.get("architectures") or ():
        if "TokenClassification" in name or "ProcessReward" in name:
            raise UserError(
                f"{folder}: {name} gives a score for each step or token (a process reward model); "
                "give a language model or a reward model with scores of whole responses"
            )


def _weights(tensors: Tensors) -> Tensors:
    """The tensors without constants. UserError if one of the others is empty."""
    tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith(CONSTANTS)}
    for key, tensor in tensors.items():
        if 0 in tensor.shape:
            raise UserError(
                f"{tensor.path}: tensor {key} is empty, shape {tensor.shape}: saved by DeepSpeed ZeRO-3 without its "
                "values; merge the run's shards (zero_to_fp32.py), or save again with "
                "stage3_gather_16bit_weights_on_model_save"
            )
    return tensors


def _quantisation(folder: Path, hf_config: dict) -> dict | None:
    """What the folder says about quantised weights: in config.json, or in the file of AutoGPTQ."""
    said = next(filter(None, map(hf_config.get, QUANTISED)), None)
    if said is None and (folder / "quantize_config.json").is_file():
        return {"quant_method": "gptq"} | read_json(folder / "quantize_config.json")
    return said


def _has_8_bits(how: dict) -> bool:
    return "fp8" in str(how.get("quant_method")) or how.get("format") == "float-quantized"


def _dequantised(folder: Path, hf_config: dict) -> dict:
    """The config of the same model in plain numbers."""
    left_out = QUANTISED if _quantisation(folder, hf_config) else ()
    return {key: value for key, value in hf_config.items() if key not in left_out}


def _scaled(folder: Path, tensors: Tensors, hf_config: dict) -> tuple[Tensors, dict]:
    """The tensors with 8-bit floats times their scales, and the config of such a model. UserError for other forms."""
    how = _quantisation(folder, hf_config)
    codes = {key for key, tensor in tensors.items() if tensor.dtype in EIGHT_BITS and key.endswith(".weight")}
    block, plain = (how or {}).get("weight_block_size"), {}
    if block and not (isinstance(block, list) and len(block) == 2 and all(isinstance(x, int) and x > 0 for x in block)):
        raise UserError(f"{folder}: weight_block_size = {block!r} is not possible: it must be two positive numbers")
    for key, tensor in tensors.items():
        if key.endswith(SCALES) and key[: key.rindex(".")] + ".weight" in codes:
            continue
        if how and key.endswith(UNUSED_SCALES):
            continue
        if tensor.dtype not in FLOATS and key not in codes and (how or not key.endswith(".weight")):
            raise foreign.quantised(folder, how or {"quant_method": f"{key} has type {tensor.dtype}"})
        if key in codes:
            scales = next((tensors[key[:-7] + end] for end in SCALES if key[:-7] + end in tensors), None)
            made = scales and Scaled(tensor, scales, tuple(block) if block else None)
            if not made or not made.fits:
                raise UserError(
                    f"{tensor.path}: tensor {key} has type {tensor.dtype} without scales that fit its shape"
                )
            tensor = made
        plain[key] = tensor
    return plain, _dequantised(folder, hf_config)


def _plain(folder: Path, hf_config: dict, family: Family, tensors: Tensors, notes: list[str]) -> ModelFolder:
    """The model with the head that its tensors have. A head decides, and not what config.json calls the class."""
    embedding, head, score = map(family.tensor_name, (EMBEDDING, LM_HEAD, VALUE_HEAD))
    tensors, hf_config, notes = dict(tensors), dict(family.defaults) | hf_config, list(notes)
    if not hf_config.get("num_key_value_heads"):  # transformers' default is not the same for all families
        hf_config["num_key_value_heads"] = hf_config.get("num_attention_heads")
    for alias in (hf_config.get("value_head_prefix"), "value_head"):
        if f"{alias}.weight" in tensors and score not in tensors:
            tensors[score] = tensors.pop(f"{alias}.weight")
            notes.append(f"{folder}: {alias}.weight is read as {score}, the head of a reward model")
    classes = [name.removeprefix("FSDP") for name in hf_config.get("architectures") or ()]
    if score in tensors and (classes == [family.reward_model] or head not in tensors):
        if classes != [family.reward_model]:
            notes.append(f"{folder}: read as a reward model, because it has {score} and no {head}")
        tensors.pop(head, None)
        hf_config = labelled(hf_config, tensors[score].shape[0])
    elif classes != [family.reward_model]:
        hf_config, said = _tied(hf_config, tensors, embedding, head)
        notes += said
    return ModelFolder(folder, hf_config, tensors, tuple(notes))


def _tied(hf_config: dict, tensors: Tensors, embedding: str, head: str) -> tuple[dict, list[str]]:
    """The config of a language model, tied only if its stored head and embedding are the same."""
    if not hf_config.get("tie_word_embeddings") or head not in tensors:
        return hf_config, []
    if embedding not in tensors:
        tensors[embedding] = tensors.pop(head)
        return hf_config, []
    ours, theirs = tensors[embedding], tensors[head]
    changed = tuple(tensor.path.stat().st_mtime_ns for tensor in (ours, theirs))
    if ours.shape != theirs.shape or _equal(ours, theirs, changed):
        return hf_config, []
    note = f"{theirs.path}: {head} differs from {embedding}; the two are not tied, although tie_word_embeddings is true"
    return hf_config | {"tie_word_embeddings": False}, [note]


@functools.lru_cache
def _equal(ours: Stored, theirs: Stored, changed: tuple[int, ...]) -> bool:
    """Whether two matrices are the same. It reads both, so it is done once for files that were last `changed` then."""
    return all(map(np.array_equal, ours.view(), theirs.view()))  # row by row: holds two rows at a time
