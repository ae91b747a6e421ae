"""Folders and files that hold a model in another form: what they are, and how to make them readable."""

from pathlib import Path

from dwrl_jax.core.errors import UserError

WANTED = "a folder with config.json and *.safetensors"
ORIGINAL = "give the original model's folder in full precision"
# the first line that has a file in the folder describes it
FORMS = (
    (("*.gguf",), f"GGUF, a quantised form for llama.cpp; {ORIGINAL}, with *.safetensors"),
    (
        ("model_world_size_*_rank_*.pt", "*/model_world_size_*_rank_*.pt", "*/*/model_world_size_*_rank_*.pt"),
        "the shards of a verl run (FSDP); merge them: "
        "python -m verl.model_merger merge --backend fsdp --local_dir FOLDER --target_dir OUT",
    ),
    (
        ("zero_to_fp32.py", "*zero_pp_rank_*", "mp_rank_*", "global_step[0-9]*"),
        "the shards of a DeepSpeed ZeRO run; merge them: python zero_to_fp32.py FOLDER OUT --safe_serialization",
    ),
    (
        ("*.distcp", "*/*.distcp"),
        "the shards of an FSDP run (torch.distributed.checkpoint); merge them: accelerate merge-weights SHARDS OUT",
    ),
    (
        ("adapter_model.bin",),
        "an adapter in PyTorch's format (.bin), which is not read; convert it to safetensors once, with peft: "
        "PeftModel.from_pretrained(BASE, FOLDER).save_pretrained(OUT, safe_serialization=True)",
    ),
    (
        ("pytorch_model*.bin",),
        "PyTorch files (.bin), which are not read; convert them to safetensors once, with transformers: "
        "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OUT)",
    ),
    (
        ("model-*-of-*.safetensors",),
        "shards without model.safetensors.index.json, which says what is where; download it too",
    ),
    (
        ("consolidated*", "params.json"),
        "weights with the names of their makers (consolidated, params.json); give the folder for transformers, or "
        "convert them with transformers' convert_llama_weights_to_hf.py",
    ),
    (
        ("model*.pt", "model*.pth", "*.ckpt", "*.nemo", "*.h5", "*.msgpack", "*.onnx", "*.npz"),
        f"weights of another library; convert them for transformers (save_pretrained), to {WANTED}",
    ),
)


def form_of(folder: Path) -> str | None:
    """The form of a folder without readable weights, and what to do; None if it is not known."""
    for patterns, words in FORMS:
        for pattern in patterns:
            if names := sorted(str(path.relative_to(folder)) for path in folder.glob(pattern)):
                return f"{names[0]}: {words}"
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    return f"no weights here; give a folder inside it, such as {folder / inside[-1]}" if inside else None


def no_weights(folder: Path) -> UserError:
    form = form_of(folder)
    return UserError(
        f"{folder}: {form}"
        if form
        else f"{folder}: neither model.safetensors nor model.safetensors.index.json is there"
    )


def refuse_file(path: Path) -> None:
    """UserError for a path that is a file and no folder."""
    if path.is_file():
        form = FORMS[0][1] if path.suffix == ".gguf" else f"a file; give the folder that it is in, {WANTED}"
        raise UserError(f"{path}: {form}")


def refuse_pointer(path: Path) -> None:
    """UserError if a file is the pointer that Git leaves in the place of a large file."""
    try:
        with path.open("rb") as file:
            pointer = file.read(24) == b"version https://git-lfs."
    except OSError:
        return
    if pointer:
        raise UserError(
            f"{path}: a pointer of Git LFS and not the file; run `git lfs pull` there, or download it again"
        )


def quantised(folder: Path, settings: dict) -> UserError:
    """The error for weights in a quantised form. `settings` is what config.json says about it."""
    kind = " ".join(
        str(settings[key]) for key in ("quant_method", "format", "bnb_4bit_quant_type") if settings.get(key)
    )
    bits = f", {settings['bits']} bits" if settings.get("bits") else ""
    return UserError(
        f"{folder}: quantised weights ({kind or 'of an unknown kind'}{bits}), which cannot be trained on; {ORIGINAL}, "
        "or dequantise it (transformers: model.dequantize()) and save it again"
    )
