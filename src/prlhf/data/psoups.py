"""PSOUPS: six simulated users of three pairs of opposed tastes (Jang et al., 2023)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from prlhf.data.columns import typed_rows
from prlhf.data.contract import EmptyPromptError, canonical_prompt
from prlhf.data.entries import Entry
from prlhf.data.files import read_objects

if TYPE_CHECKING:
    import pandas as pd

FILE: Final = "allcombo_8_cleaned.json"
FIELDS: Final = ("user_id", "user_input", "completion_a", "completion_b")

GROUPS: Final = ("elementary", "expert", "concise", "informative", "friendly", "unfriendly")
"""What the users 1 to 6 want: P1A, P1B, P2A, P2B, P3A and P3B in the authors' names."""

_CHAT: Final = ("<|user|>\n", "<|assistant|>\n")
"""What stands around a prompt in Tulu's chat form."""


def rows(path: Path) -> pd.DataFrame:
    """All comparisons, in the order of the file; every user is a seen one.

    Raises:
        UserError: The file is damaged, or a record is not what is published.
    """
    import pandas as pd

    found: list[tuple[object, ...]] = []
    prompts: dict[str, str | None] = {}
    for number, where, record in read_objects(path, FIELDS):
        entry = Entry(record, where)
        user = entry.integer("user_id")
        if not 1 <= user <= len(GROUPS):
            raise entry.error("user_id", f"expected 1 to {len(GROUPS)}, found {user}")
        text = entry.text("user_input")
        if text not in prompts:
            prompts[text] = _prompt(text)
        pair = (entry.text("completion_a"), entry.text("completion_b"))
        found.append((number, str(user), prompts[text], *pair, GROUPS[user - 1]))
    names = ["row", "user_id", "prompt", "chosen", "rejected", "group"]
    frame = pd.DataFrame(found, columns=names)
    return typed_rows(frame.assign(source=path.name, unseen=False))


def _prompt(text: str) -> str | None:
    """The canonical prompt, freed of a chat form: the model's own template goes around it."""
    before, after = _CHAT
    if text.startswith(before) and text.endswith(after):
        text = text.removeprefix(before).removesuffix(after).strip()
    try:
        return canonical_prompt(text)
    except EmptyPromptError:
        return None
