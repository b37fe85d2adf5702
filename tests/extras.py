"""Why a test is skipped where an optional package is missing: the command that brings it."""

from __future__ import annotations

BROUGHT_BY = {
    "alfworld": "alfworld",
    "faiss": "dense",
    "httpx": "retrieval",
    "mkdocs": "docs",
    "peft": "lora",
    "pyarrow": "train",
    "scipy": "dev",
    "starlette": "retrieval",
    "statsmodels": "dev",
    "tantivy": "retrieval",
    "tenacity": "retrieval",
    "tensorboard": "tensorboard",
    "textworld": "alfworld",
    "transformers": "train",
    "trl": "trl",
    "uvicorn": "retrieval",
    "wandb": "wandb",
}


def missing(package: str) -> str:
    """The reason to skip a test that needs ``package``; KeyError for one that no extra brings."""
    return f"{package} is not installed: pip install 'stepopsd[{BROUGHT_BY[package]}]'"
