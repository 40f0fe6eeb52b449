"""Installs llm_jax: `pip install -e .`, with extras for accelerators, parity tests and development."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="llm_jax",
    version="0.1.0",
    description="A laboratory for transformer research in JAX and Flax",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The llm_jax authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    keywords=["transformer", "language model", "JAX", "Flax"],
    packages=find_packages(include=["llm_jax", "llm_jax.*"]),
    package_data={"llm_jax.interop": ["proofs.json"]},
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "etils[epath]>=1.12",  # paths at gs://, with fsspec; orbax requires it as well
        "grain>=0.2.18",
        "sentencepiece>=0.2.1",
        "tensorflow-datasets>=4.9.9",
        "importlib_resources",  # imported by tensorflow-datasets, which does not declare it
        "array-record>=0.8",
        "pyarrow>=16",  # Parquet and Zstandard; tensorflow-datasets requires it as well
        "safetensors>=0.5",
        "einops>=0.8",
        "tyro>=1.0",
        "rich>=13",
        "matplotlib>=3.9",
        "scipy>=1.13",
        "tensorboardX>=2.6",
    ],
    extras_require={
        "hf": ["tokenizers>=0.21"],
        "tpu": ["jax[tpu]", "tokamax"],
        "gpu": ["jax[cuda13]", "tokamax"],
        "gcs": ["gcsfs>=2024.12", "google-cloud-storage", "google-cloud-storage-control"],  # runs at gs://
        "wandb": ["wandb>=0.19"],
        "bleu": ["sacrebleu>=2.4"],  # scores of translations
        "parity": ["torch==2.13.0", "transformers==5.23.0"],  # what the live comparisons compare with
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6",
            "ruff>=0.8",
            "pyright[nodejs]>=1.1.400",
            "tokenizers>=0.21",
            "setuptools>=77",  # with which a test builds the wheel
        ],
    },
    entry_points={"console_scripts": ["llm-jax = llm_jax.cli:main"]},
)
