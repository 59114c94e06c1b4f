"""Shared by all tests. This directory is importable, so that they can share their helpers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from prlhf.models.base import BaseModel

# The same examples every time, and no time limits: a busy machine is no fault of the code.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny base model; read only."""
    from personal import enliven
    from prlhf.models.base import quiet_transformers
    from tiny import tiny_llama, tiny_tokenizer

    quiet_transformers()
    path = tmp_path_factory.mktemp("base") / "tiny"
    enliven(tiny_llama()).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def tiny_base(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> BaseModel:
    """That model, loaded afresh, on the CPU."""
    from prlhf.models.base import load_base

    monkeypatch.setenv("PRLHF_DEVICE", "cpu")
    return load_base(tiny_path, "float32")
