"""PSOUPS: six simulated users of three pairs of opposed tastes (Jang et al., 2023)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pandas as pd

from prlhf.data.prompts import canonical_or_none
from prlhf.infra.progress import say
from prlhf.ingest.columns import Source, typed_rows
from prlhf.ingest.published import file_named, files_named, published_files, read_nodes
from prlhf.params import DataParams

FILE: Final = "allcombo_8_cleaned.json"
NAMES: Final = ("P1A", "P1B", "P2A", "P2B", "P3A", "P3B")
"""The users 1 to 6 in their authors' names, and the files that hold the choices of each."""

FIELDS: Final = ("user_id", "user_input", "completion_a", "completion_b")

GROUPS: Final = ("elementary", "expert", "concise", "informative", "friendly", "unfriendly")
"""What the users 1 to 6 want."""

WISHES: Final = (
    "Generate a response that can be easily understood by an elementary school student.",
    "Generate a response that only a PhD Student in that specific field could understand.",
    "Generate a response that is concise and to the point without being verbose.",
    "Generate a response that is very informative without missing any background information.",
    "Generate a response that is friendly, witty, funny, and humorous, like a close friend.",
    "Generate a response in an unfriendly manner.",
)
"""What the published prompts of the users 1 to 6 ask for, in the files of each.

A prompt that says what its user wants leaves nothing for a user model to know.
"""

_CHAT: Final = ("<|user|>\n", "<|assistant|>\n")
"""What stands around a prompt in Tulu's chat form."""


def read(data: DataParams, *, seed: int) -> Source:
    """See `sources.read`; nothing is drawn with the seed."""
    root = published_files(data, [f"*{FILE}", *(f"*{name}.json" for name in NAMES)])
    return Source(rows(soups(root)), "psoups")


def soups(root: Path) -> dict[Path, int | None]:
    """The file with the choices of all six users, or that of each, below a directory.

    Or the file that `root` is.

    Raises:
        UserError: There is neither, or one of the six is missing.
    """
    if root.is_file():
        return {root: None}
    raw = [f"{name}.json" for name in NAMES]
    if files_named(root, FILE) or not any(files_named(root, name) for name in raw):
        return {file_named(root, FILE): None}
    return {file_named(root, name): user for user, name in enumerate(raw, 1)}


def rows(files: Mapping[Path, int | None]) -> pd.DataFrame:
    """All comparisons, in the order of the files; every user is a seen one.

    The six files of one user each are cleaned as their authors did to make the combined one: the
    user's wish is taken out of the prompts, and repeated comparisons and those of equal answers are
    left out. A message says how many.

    Args:
        files: What is read, and whose choices a file holds: a user of 1 to 6, or None if each
            record says so.

    Raises:
        UserError: A file is damaged, or a record is not what is published.
    """
    found: list[tuple[object, ...]] = []
    prompts: dict[str, str | None] = {}
    came: set[tuple[object, ...]] = set()
    equal = again = 0
    for path, owner in files.items():
        for number, node in read_nodes(path, FIELDS):
            user = node.integer("user_id") if owner is None else owner
            if not 1 <= user <= len(GROUPS):
                raise node.error("user_id", f"expected 1 to {len(GROUPS)}, found {user}")
            text = node.text("user_input")
            pair = (node.text("completion_a"), node.text("completion_b"))
            if owner is not None:
                text = text.replace(WISHES[owner - 1], "").strip()
                if pair[0] == pair[1]:
                    equal += 1
                    continue
                if (owner, text, *pair) in came:
                    again += 1
                    continue
                came.add((owner, text, *pair))
            if text not in prompts:
                prompts[text] = _prompt(text)
            found.append((number, path.name, str(user), prompts[text], *pair, GROUPS[user - 1]))
    if equal or again:
        say(
            f"ingest: psoups: {equal + again} comparisons left out: {again} that came before, "
            f"{equal} between equal answers; {len(found)} remain"
        )
    names = ["row", "source", "user_id", "prompt", "chosen", "rejected", "group"]
    return typed_rows(pd.DataFrame(found, columns=names).assign(unseen=False))


def _prompt(text: str) -> str | None:
    """The canonical prompt, freed of a chat form: the model's own template goes around it."""
    before, after = _CHAT
    if text.startswith(before) and text.endswith(after):
        text = text.removeprefix(before).removesuffix(after).strip()
    return canonical_or_none(text)
