"""Shared by all tests, as the modules of `helpers/` are, which can be imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from prlhf.models.base import BaseModel

# What a cluster, a Git hook or a user's shell sets for its own purposes changes no test: neither in
# this process nor in those that tests start.
FOREIGN = ("DVC_", "GIT_", "HF_", "OPENAI_", "PREFECT_", "PRLHF_", "TORCHELASTIC_", "TRANSFORMERS_")
FOREIGN += ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_", "TQDM_DISABLE")
for _name in list(os.environ):
    if _name.startswith(FOREIGN) and _name != "PRLHF_REAL_DATA":
        del os.environ[_name]

pytest_plugins = ["data_fixtures"]

# The same examples every time, and no time limits: a busy machine is no fault of the code.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny base model; read only."""
    from personal import enliven
    from prlhf.infra.progress import quiet_transformers
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
