"""dwrl_jax: Dual-Weighted Reinforcement Learning of generative preference models, in JAX."""

import os

# Only the tokenizers of transformers are used here: that torch is missing is nothing to warn about.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"
