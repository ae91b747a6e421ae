"""Published shapes of all families, each as its config.json, and small versions of them."""

import re

from dwrl_jax.core.errors import UserError
from dwrl_jax.models import families

PRESETS: dict[str, dict] = {
    name: hf_config for family in map(families.load, families.names()) for name, hf_config in family.presets.items()
}


def published(hub_id: str) -> dict:
    """The config.json in PRESETS of a hub id, with or without "-Instruct" or "-it". UserError for any other hub id."""
    name = re.sub(r"-(instruct|it|pt)\b", "", hub_id.rpartition("/")[2].lower())
    matching = [config for key, config in PRESETS.items() if key.replace("-", "") == name.replace("-", "")]
    if not matching:
        raise UserError(
            f"model.path={hub_id!r}: no such folder, and its shape is not known without a download; "
            f"give a folder with its config.json, or one of {', '.join(PRESETS)}"
        )
    return matching[0]


def shrink(hf_config: dict, vocab_size: int, **changes) -> dict:
    """A small version of an architecture: two layers of width 64, four query heads and two key/value heads.

    Ties, biases, q/k norms and the kind of rope scaling stay the same. Llama 3's scaling begins at 64 positions, so
    that it changes short sequences too. The family's `small` has what else must change. Special tokens outside the new
    vocabulary become None. `changes` replaces keys of the result. UserError for an unknown key in `changes`.
    """
    small = dict(
        hf_config,
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    small |= families.family_of(hf_config).small
    if "head_dim" in hf_config:
        square = hf_config["head_dim"] * hf_config["num_attention_heads"] == hf_config["hidden_size"]
        small["head_dim"] = 16 if square else 32
    for name in ("rope_scaling", "rope_parameters"):
        if "original_max_position_embeddings" in (hf_config.get(name) or {}):
            small[name] = hf_config[name] | {"original_max_position_embeddings": 64}
    for name in families.SPECIAL_TOKENS:
        ids = small.get(name)
        if ids is not None and max(ids if isinstance(ids, list) else [ids]) >= vocab_size:
            small[name] = None
    for key in changes.keys() - small.keys():
        raise UserError(f"shrink: {key!r} is not a key of this config; it has {', '.join(sorted(small))}")
    return small | changes
