"""The table of tensors in Hugging Face files and of our parameters, and how their axes correspond.

Both reading and writing use `weight_table`. Letters as in `transformer`: D width, N query heads, K key/value heads,
H head size, F feed-forward width, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from dwrl_jax.models.transformer import ModelConfig

EMBEDDING, LM_HEAD, VALUE_HEAD = "model.embed_tokens.weight", "lm_head.weight", "score.weight"
LAST_NORM = "model.norm.weight"
NORMS = {  # tensors of a layer's norms in transformers, by where the norms stand
    "pre": {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    "post": {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"},
    "both": {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
}


class Weight(NamedTuple):
    """A parameter of ours and its tensor in a Hugging Face file.

    `groups` has a tuple for each axis of the tensor, with the sizes that this axis joins: ((N, H), (D,)) is a
    [N*H, D] matrix. Splitting all axes gives [N, H, D], and `order` permutes them: (2, 0, 1) gives [D, N, H].
    """

    key: str  # "{layer}" in it means a tensor for each layer, "{expert}" one for each expert; ours stacks them in front
    path: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]

    @property
    def stacked(self) -> bool:
        return "{layer}" in self.key

    @property
    def by_expert(self) -> bool:
        return "{expert}" in self.key

    @property
    def hf_shape(self) -> tuple[int, ...]:
        return tuple(math.prod(group) for group in self.groups)

    @property
    def split(self) -> tuple[int, ...]:
        return sum(self.groups, ())

    @property
    def our_shape(self) -> tuple[int, ...]:
        """The shape of the parameter, without the axes of layers and experts."""
        return tuple(self.split[axis] for axis in self.order)

    @property
    def module(self) -> tuple[str, ...]:
        """The place of the parameter's module: that of a matrix's adapter in the tree of all adapters."""
        return tuple(name for name in self.path if name not in ("kernel", "embedding"))

    def from_hf(self, tensor: np.ndarray) -> np.ndarray:
        """A view of the tensor in our order of axes. Slicing the view reads only that slice of the tensor."""
        return tensor.reshape(self.split).transpose(self.order)

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        return array.transpose(np.argsort(self.order)).reshape(self.hf_shape)


def weight_table(config: ModelConfig, tensor_name: Callable[[str], str] = str) -> list[Weight]:
    """All parameters of a model of this shape. `tensor_name` is that of its family."""
    c = config
    D, N, K, H, F, V = c.hidden_size, c.heads, c.kv_heads, c.head_dim, c.mlp_size, c.vocab_size
    block = "model.layers.{layer}."
    heads = {"q": N, "k": K, "v": K}

    def layer(key, *path, groups, order):
        return Weight(block + key, ("layers", *path), groups, order)

    table = [
        Weight(EMBEDDING, ("embed", "embedding"), ((V,), (D,)), (0, 1)),
        Weight(LAST_NORM, ("norm", "scale"), ((D,),), (0,)),
        *(layer(f"{key}.weight", name, "scale", groups=((D,),), order=(0,)) for name, key in NORMS[c.norms].items()),
        layer("self_attn.o_proj.weight", "o", "kernel", groups=((D,), (N, H)), order=(1, 2, 0)),
    ]
    if c.o_bias:
        table.append(layer("self_attn.o_proj.bias", "o", "bias", groups=((D,),), order=(0,)))
    if c.experts:
        F = c.expert_size
        table.append(layer("mlp.gate.weight", "experts", "router", groups=((c.experts,), (D,)), order=(1, 0)))
    for name, out, into in (("gate", F, D), ("up", F, D), ("down", D, F)):
        if c.experts:
            key = f"mlp.experts.{{expert}}.{name}_proj.weight"
            table.append(layer(key, "experts", name, groups=((out,), (into,)), order=(1, 0)))
            continue
        table.append(layer(f"mlp.{name}_proj.weight", name, "kernel", groups=((out,), (into,)), order=(1, 0)))
        if c.mlp_bias:
            table.append(layer(f"mlp.{name}_proj.bias", name, "bias", groups=((out,),), order=(0,)))
    for name, count in heads.items():
        key = f"self_attn.{name}_proj"
        table.append(layer(f"{key}.weight", name, "kernel", groups=((count, H), (D,)), order=(2, 0, 1)))
        if c.qkv_bias:
            table.append(layer(f"{key}.bias", name, "bias", groups=((count, H),), order=(0, 1)))
    if c.qk_norm:
        for name, count in (("q_norm", N), ("k_norm", K)):
            group, order = ((count, H), (0, 1)) if c.qk_norm_of_all else ((H,), (0,))
            table.append(layer(f"self_attn.{name}.weight", name, "scale", groups=(group,), order=order))
    if c.value_head:
        table.append(Weight(VALUE_HEAD, ("value_head",), ((c.value_head,), (D,)), (0, 1)))
    elif not c.tied:
        table.append(Weight(LM_HEAD, ("lm_head",), ((V,), (D,)), (0, 1)))
    return [weight._replace(key=tensor_name(weight.key)) for weight in table]


def hf_tensors(
    config: ModelConfig, tensor_name: Callable[[str], str] = str
) -> Iterator[tuple[str, Weight, int | tuple[int, int] | None]]:
    """(key, parameter, layer) of every tensor, in the order of the layers. The layer is None outside the layers.

    For the tensor of an expert the third is (layer, expert).
    """
    table = weight_table(config, tensor_name)
    yield from ((weight.key, weight, None) for weight in table if not weight.stacked)
    for layer in range(config.layers):
        for weight in (weight for weight in table if weight.stacked):
            if weight.by_expert:
                for expert in range(config.experts):
                    yield weight.key.format(layer=layer, expert=expert), weight, (layer, expert)
            else:
                yield weight.key.format(layer=layer), weight, layer
