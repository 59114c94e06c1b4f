"""The data contract: the columns of every table, the sides of a split, the generic user.

It imports nothing heavy, so that the command line may read it.
"""

from collections.abc import Iterable
from typing import Any, Final

from prlhf.infra.errors import UserError

ROW_COLUMNS: Final = (
    "row",
    "source",
    "user_id",
    "prompt",
    "chosen",
    "rejected",
    "user_text",
    "weight",
    "group",
    "unseen",
)
"""`ingested/rows.parquet`: every source row, in source order."""

SPLIT_COLUMNS: Final = ("side", "unit")
"""Further columns of a data set that brings its own split: `side` is "train" or "test", and the
rows of one `unit` (a dialogue) stay together; the prompt is the unit of a row without one."""

PAIR_COLUMNS: Final = (
    "pair_id",
    "prompt_id",
    "user_id",
    "user_index",
    "prompt",
    "chosen",
    "rejected",
    "user_text",
    "weight",
    "group",
    "row",
)
"""`prepared/{train,validation,test}.parquet`; `unseen.parquet` adds `prompt_split`."""

USER_COLUMNS: Final = (
    "user_id",
    "user_index",
    "group",
    "user_text",
    "seen",
    "pairs_train",
    "pairs_validation",
    "pairs_test",
)
"""`prepared/users.parquet`."""

SPLITS: Final = ("train", "validation", "test")
"""The sides a prompt can be on."""

GENERIC: Final = 0
"""The `user_index` of the generic user, which unseen users share; seen users are 1..N."""

BASE_METHOD: Final = "base"
"""The method that is the untuned base model."""

PROMPTED_METHOD: Final = "prompted"
"""The method that is the untuned base model reading the user's text in front of the prompt."""


def index_users(ids: Iterable[str]) -> dict[str, int]:
    """The index of each seen user, counted from 1 (0 is the generic user)."""
    return {user: index for index, user in enumerate(ids, GENERIC + 1)}


def clean_user_text(value: object) -> str | None:
    """A value of `user_text` without surrounding white space; None if nothing is left."""
    return value.strip() or None if isinstance(value, str) else None


def require_user_texts(texts: Iterable[object], where: str) -> None:
    """Make sure that a method which reads users' texts has some to read.

    Raises:
        UserError: No user has a text.
    """
    if all(clean_user_text(text) is None for text in texts):
        raise UserError(
            "reads user_text, but no user of this data set has one",
            where=where,
            fix="map data.columns.user_text, or leave the method out of compare",
        )


def agreement(margin: Any) -> Any:
    """Whether a model agrees with a choice: 1 where the chosen response is ahead, 0.5 for a tie.

    Args:
        margin: By how much it is ahead, an array or tensor of floats. NaN does not agree.

    Returns:
        1, 0.5 or 0 for each margin; an array of the same library, in its default float type.
    """
    return (margin > 0) + 0.5 * (margin == 0)
