"""PSOUPS: six simulated users of three pairs of opposed tastes (Jang et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prlhf.data.columns import typed_rows
from prlhf.data.contract import EmptyPromptError, canonical_prompt
from prlhf.data.entries import Entry
from prlhf.data.files import read_objects

if TYPE_CHECKING:
    import pandas as pd

FILE: Final = "allcombo_8_cleaned.json"
NAMES: Final = ("P1A", "P1B", "P2A", "P2B", "P3A", "P3B")
"""The users 1 to 6 in their authors' names, and the files that hold the choices of each."""

FIELDS: Final = ("user_id", "user_input", "completion_a", "completion_b")

GROUPS: Final = ("elementary", "expert", "concise", "informative", "friendly", "unfriendly")
"""What the users 1 to 6 want."""

_CHAT: Final = ("<|user|>\n", "<|assistant|>\n")
"""What stands around a prompt in Tulu's chat form."""


def rows(files: Mapping[Path, int | None]) -> pd.DataFrame:
    """All comparisons, in the order of the files; every user is a seen one.

    Args:
        files: What is read, and whose choices a file holds: a user of 1 to 6, or None if each
            record says so.

    Raises:
        UserError: A file is damaged, or a record is not what is published.
    """
    import pandas as pd

    found: list[tuple[object, ...]] = []
    prompts: dict[str, str | None] = {}
    for path, owner in files.items():
        for number, where, record in read_objects(path, FIELDS):
            entry = Entry(record, where)
            user = entry.integer("user_id") if owner is None else owner
            if not 1 <= user <= len(GROUPS):
                raise entry.error("user_id", f"expected 1 to {len(GROUPS)}, found {user}")
            text = entry.text("user_input")
            if text not in prompts:
                prompts[text] = _prompt(text)
            pair = (entry.text("completion_a"), entry.text("completion_b"))
            found.append((number, path.name, str(user), prompts[text], *pair, GROUPS[user - 1]))
    names = ["row", "source", "user_id", "prompt", "chosen", "rejected", "group"]
    return typed_rows(pd.DataFrame(found, columns=names).assign(unseen=False))


def _prompt(text: str) -> str | None:
    """The canonical prompt, freed of a chat form: the model's own template goes around it."""
    before, after = _CHAT
    if text.startswith(before) and text.endswith(after):
        text = text.removeprefix(before).removesuffix(after).strip()
    try:
        return canonical_prompt(text)
    except EmptyPromptError:
        return None
