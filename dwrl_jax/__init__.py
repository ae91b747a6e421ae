"""dwrl_jax: Dual-Weighted Reinforcement Learning of generative preference models, in JAX."""

import os

# The program uses only the tokenizers of transformers, which need no torch: no warning that torch is missing.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"
