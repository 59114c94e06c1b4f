"""The data contract: the columns of every table, the sides of a split, the generic user.

It imports nothing heavy, so that the command line may read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from prlhf.infra.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

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

SPLIT_COLUMNS: Final = ("side", "unit", "time")
"""Further columns of rows whose data set says how to divide it: `side` is one of `SPLITS`, the rows
of one `unit` (a dialogue, a document) stay on one side, `time` is when the choice was made (seconds
since 1970, UTC). A data set has any of them or none."""

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
    "unit",
    "row",
)
"""`prepared/{train,validation,test}.parquet`; `unseen.parquet` adds `prompt_split`, the side that
the pair is on. `unit` names what stays on one side: who divides the training pairs further keeps
the pairs of a unit together. It is missing for pairs between two units (`split.by: response`),
which then belong to neither part."""

USER_COLUMNS: Final = (
    "user_id",
    "user_index",
    "group",
    "user_text",
    "seen",
    "few",
    "pairs_train",
    "pairs_validation",
    "pairs_test",
)
"""`prepared/users.parquet`; `few` marks seen users with too few pairs to be trained on as
themselves."""

SPLITS: Final = ("train", "validation", "test")
"""The sides a pair can be on."""

GENERIC: Final = 0
"""The `user_index` of the generic user, which unseen users share; seen users are 1..N."""

BASE_METHOD: Final = "base"
"""The method that is the untuned base model."""

PROMPTED_METHOD: Final = "prompted"
"""The method that is the untuned base model reading the user's text in front of the prompt."""


def index_users(ids: Iterable[str]) -> dict[str, int]:
    """The index of each seen user, counted from 1 (0 is the generic user)."""
    return {user: index for index, user in enumerate(ids, GENERIC + 1)}


def as_trained(pairs: pd.DataFrame, users: pd.DataFrame) -> pd.DataFrame:
    """Pairs as training sees them: those of users with too few are the generic user's.

    Args:
        pairs: Prepared pairs (`PAIR_COLUMNS`).
        users: All users (`USER_COLUMNS`).
    """
    of_few = pairs["user_id"].isin(users.loc[users["few"], "user_id"])
    return pairs.assign(user_index=pairs["user_index"].mask(of_few, GENERIC))


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


ROUNDING: Final = 1e-3
"""Nats: a margin of a language model up to this, either way, is rounding, and a tie.

It is made of four log-probabilities of whole responses. Float32 holds one of up to 1,000 nats
in steps of 2^-14 = 6e-5, and which texts share a batch moves it by up to four steps (measured on
SmolLM2-135M, 64 to 1,024 tokens): 4 * 4 * 6e-5 = 1e-3 in all. As a preference it is nothing: at
beta = 0.5 a probability of 0.5001."""


def agreement(margin: Any, rounding: float = 0.0) -> Any:
    """Whether a model agrees with a choice: 1 where the chosen response is ahead, 0.5 for a tie.

    Args:
        margin: By how much it is ahead, an array or tensor of floats. NaN does not agree.
        rounding: Up to which a margin is a tie: `ROUNDING` for those of language models in float32.

    Returns:
        1, 0.5 or 0 for each margin; an array of the same library, in its default float type.
    """
    return (margin > rounding) + 0.5 * (abs(margin) <= rounding)
