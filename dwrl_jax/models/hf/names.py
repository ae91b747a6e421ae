"""Tensor names as transformers writes them, from the names that wrappers of a model leave in its files."""

from dwrl_jax.core.errors import UserError

WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # parts of names
WRAPPERS |= {"language_model"}  # around the text half of a multimodal model


def plain_names(tensors: dict, anchor: str) -> dict:
    """The tensors by their plain names. `anchor` is the plain name of a tensor that every model has.

    Wrappers put their names into those of tensors, such as `_orig_mod.` (torch.compile) and `module.` (data parallel).
    A bare decoder has no `model.` in front. UserError if two tensors then have the same name.
    """
    by_name = {key: ".".join(part for part in key.split(".") if part not in WRAPPERS) for key in tensors}
    base = anchor[: anchor.index(".") + 1]
    names = list(by_name.values())
    for start in _shared_starts(names):
        if start + anchor in names:
            by_name = {key: name.removeprefix(start) for key, name in by_name.items()}
            break
        if start + anchor.removeprefix(base) in names:
            by_name = {key: _in_front(base, name.removeprefix(start)) for key, name in by_name.items()}
            break
    plain = {}
    for key, name in by_name.items():
        if name in plain:
            raise UserError(f"{tensors[key].path}: tensor {key} is there twice, under two names; keep one of them")
        plain[name] = tensors[key]
    return plain


def _shared_starts(names: list[str]) -> list[str]:
    """The parts with which all names begin, from nothing on: "", "a.", "a.b."."""
    starts, parts = [""], names[0].split(".") if names else []
    for count in range(1, len(parts)):
        start = ".".join(parts[:count]) + "."
        if not all(name.startswith(start) for name in names):
            break
        starts.append(start)
    return starts


def _in_front(base: str, name: str) -> str:
    """The name of a bare decoder's tensor in a whole model. Heads stand beside the decoder."""
    return name if name.split(".")[0] in ("lm_head", "score", "value_head", "v_head") else base + name
