"""dwrl_jax: Dual-Weighted Reinforcement Learning of generative preference models, in JAX."""

__version__ = "0.1.0"
