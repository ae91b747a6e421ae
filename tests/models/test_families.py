"""Hugging Face's config.json: published models, and what the decoder does not do."""

import numpy as np
import pytest

from dwrl_jax.core.errors import UserError
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config
from dwrl_jax.models.families.presets import PRESETS, shrink
from tests.small import VOCAB


def test_exact_presets():
    """Parameter counts of the published models, from the table alone (model cards: 3.09 B, 7.62 B ...)."""
    published = {
        "qwen2.5-3b": 3_085_938_688,
        "qwen2.5-7b": 7_615_616_512,
        "llama3.2-3b": 3_212_749_824,
        "llama3.1-8b": 8_030_261_248,
        "qwen3-4b": 4_022_468_096,
    }
    for name, hf_config in PRESETS.items():
        tensors = hf.hf_tensors(model_config(hf_config))
        assert sum(int(np.prod(weight.hf_shape)) for _, weight, _ in tensors) == published[name]
    with pytest.raises(UserError, match="num_layers"):
        shrink(PRESETS["qwen3-4b"], VOCAB, num_layers=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma2"}, "model_type = 'gemma2' is not supported; choose a model of llama, qwen2, qwen3$"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type = 'yarn'"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_parameters.rope_type = 'dynamic'"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "rope_scaling.low_freq_factor is missing"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_exact_errors_of_configs(change, message):
    with pytest.raises(UserError, match=message):
        model_config(PRESETS["qwen3-4b"] | change)
