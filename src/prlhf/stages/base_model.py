"""Stage `base_model`: the frozen base language model, pinned, in one place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from prlhf.io import atomic_path
from prlhf.models.resolve import resolve
from prlhf.models.tokenizer import TokenizerSource
from prlhf.progress import say

if TYPE_CHECKING:
    from prlhf.params import ModelParams

PARAMS: Final = ("model",)

OUTPUT: Final = Path("models/base")


def run(*, model: ModelParams) -> None:
    """Write `models/base`.

    Raises:
        UserError: see `prlhf.models.resolve.resolve`.
    """
    tokenizer = TokenizerSource(**model.tokenizer.model_dump())
    with atomic_path(OUTPUT, directory=True) as directory:
        record = resolve(model.name, model.revision, directory, tokenizer)
    pinned = record.get("commit") or record.get("sha256")
    say(f"base_model: {record['name']} ({record['kind']}, {str(pinned)[:12]})")
