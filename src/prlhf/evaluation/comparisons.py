"""The comparisons behind win rates: which answers meet, and which judge is asked about them.

Every answer that a user gets from a personalised method meets the answer that the same user gets
from each other method; two personalised methods meet once. An empty or degenerate answer loses, and
two that are equal tie, before any judge is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prlhf.evaluation.answers import meetings
from prlhf.evaluation.fluency import HEALTHY
from prlhf.evaluation.judges import QUESTION_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

    from prlhf.evaluation.judges import Judge

KEYS = ("method", "other", "user_id", "group", "prompt_id", "seen")
"""What names a comparison."""

CHOICE_KEYS = ("pair_id", "prompt_id", "user_id", "group")
"""What names a held-out choice of a user's."""


def comparisons(
    measured: Mapping[str, pd.DataFrame],
    personalised: Mapping[str, bool],
    unseen_users: pd.DataFrame,
) -> pd.DataFrame:
    """All comparisons of an evaluation.

    Args:
        measured: Generated texts of each method with their measures (`fluency.measure`).
        personalised: The methods in reading order, and whether each is personalised.
        unseen_users: `user_id, group` of users held out of training, who get answers of their own
            from a method that reads what they say of themselves, and generic ones from others.

    Returns:
        `KEYS`, `prompt`, `first` and `second` (the answers of `method` and of `other`) and
        `first_state` and `second_state` (see `fluency.measure`), in the order of `meetings`.
    """
    import pandas as pd

    served = {
        name: _served(table, unseen_users) for name, table in measured.items() if personalised[name]
    }
    parts = []
    for name, other in meetings({name: personalised[name] for name in measured}):
        if other in served:
            columns, keys = ["user_id", "seen", "prompt_id", "text", "state"], 3
            theirs = served[other][columns]
        else:
            columns, keys = ["prompt_id", "text", "state"], 1
            theirs = measured[other].loc[measured[other]["condition"] == "generic", columns]
        both = served[name].merge(theirs, on=columns[:keys], suffixes=("", "_other"))
        parts.append(both.assign(method=name, other=other))
    names = {"text": "first", "text_other": "second"}
    names |= {"state": "first_state", "state_other": "second_state"}
    columns = [*KEYS, "prompt", "first", "second", "first_state", "second_state"]
    if not parts:
        return pd.DataFrame(columns=columns)
    return pd.concat(parts, ignore_index=True).rename(columns=names)[columns]


def _served(measured: pd.DataFrame, unseen_users: pd.DataFrame) -> pd.DataFrame:
    """The texts that seen and unseen users get from a personalised method."""
    import pandas as pd

    own = measured[measured["condition"] == "user"].assign(seen=True)
    unseen = _to_unseen(measured, unseen_users).assign(seen=False)
    columns = ["user_id", "group", "prompt_id", "prompt", "seen", "text", "state"]
    # Of two tables one of which has no rows, pandas would not keep the types.
    parts = [part[columns] for part in (own, unseen) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else own[columns]


def _to_unseen(measured: pd.DataFrame, users: pd.DataFrame) -> pd.DataFrame:
    """The texts that unseen users get from one method, a row for each user and prompt."""
    own = measured[measured["condition"] == "unseen"]
    if len(own):
        return own[own["user_id"].isin(users["user_id"])]
    generic = measured[measured["condition"] == "generic"].drop(columns=["user_id", "group"])
    return users[["user_id", "group"]].merge(generic, how="cross")


def strangers(
    users: pd.DataFrame, generated: Iterable[pd.DataFrame], most: int | None
) -> pd.DataFrame:
    """The users held out of training for whom answers are judged.

    A method that reads what users say may have answered a part of them: all are judged for those.

    Args:
        users: The prepared users table.
        generated: Generated texts of each method.
        most: How many at most; None for all. They are evenly spread over groups and ids.
    """
    unseen = users.loc[~users["seen"].astype(bool), ["user_id", "group"]]
    for table in generated:
        answered = table.loc[table["condition"] == "unseen", "user_id"]
        if len(answered):
            unseen = unseen[unseen["user_id"].isin(answered)]
    ordered = unseen.sort_values(["group", "user_id"], ignore_index=True)
    if most is None or len(ordered) <= most:
        return ordered
    return ordered.iloc[np.linspace(0, len(ordered) - 1, most).round().astype(int)]


@dataclass(frozen=True)
class Judged:
    """Comparisons with their verdicts.

    Attributes:
        table: `KEYS`, `asked` (False where no judge had to be), `verdict` of the judge: 1
            (`method` wins), 0 (tie), -1 (loses), missing (no verdict could be had);
            `verdict_<kind>` of each further judge, missing also where it does not know the user;
            and what a judge says besides.
        broken: How many comparisons an empty or degenerate answer decided.
        equal: How many were between equal texts.
    """

    table: pd.DataFrame
    broken: int
    equal: int


def judge(table: pd.DataFrame, judges: Mapping[str, Judge]) -> Judged:
    """Let each judge compare the answers, as far as it knows the users.

    Args:
        table: See `comparisons`.
        judges: By kind; the first is the one that counts, and comparisons for users that it does
            not know are left out.
    """
    import pandas as pd

    first, *_ = judges.values()
    table = table[first.knows(table)].reset_index(drop=True)
    settled = settle(table)
    open_ = settled.isna().to_numpy(dtype=bool)
    columns = {}
    for kind, one in judges.items():
        known = one.knows(table)
        asked = table.loc[open_ & known, list(QUESTION_COLUMNS)].reset_index(drop=True)
        found = one.verdicts(asked)
        found.index = table.index[open_ & known]
        verdicts = settled.where(known, pd.NA)
        verdicts.loc[found.index] = found.pop("verdict")
        columns[column_of(kind, judges)] = verdicts
        columns |= {str(name): found[name].reindex(table.index) for name in found.columns}
    broken = ((table["first_state"] != HEALTHY) | (table["second_state"] != HEALTHY)).sum()
    return Judged(
        table[list(KEYS)].assign(asked=open_, **columns),
        int(broken),
        int(settled.notna().sum() - broken),
    )


def judge_choices(
    test: pd.DataFrame,
    judges: Mapping[str, Judge],
    most: Mapping[str, int | None],
    order: pd.Series,
) -> pd.DataFrame:
    """Let each judge choose between the two responses that a user chose from.

    Args:
        test: Prepared pairs that the judged models were not trained on.
        judges: As for `judge`.
        most: Pairs that a judge is asked about at most, by its kind; all where it has none.
        order: Sort key of the rows of `test`, in which pairs are taken if there are too many.

    Returns:
        `CHOICE_KEYS`, and the verdicts of the judges in columns as `judge` returns them: 1 where
        the judge takes what the user chose. Pairs that no judge was asked about are left out.
    """
    import pandas as pd

    table = test.rename(columns={"chosen": "first", "rejected": "second"}).reset_index(drop=True)
    ranks = np.argsort(np.argsort(np.asarray(order), kind="stable"))
    columns = {}
    for kind, one in judges.items():
        known = one.knows(table)
        limit = most.get(kind)
        if limit is not None:
            known = known & np.isin(ranks, np.sort(ranks[known])[:limit])
        found = one.verdicts(table.loc[known, list(QUESTION_COLUMNS)].reset_index(drop=True))
        verdicts = pd.Series(pd.NA, index=table.index, dtype="Int8")
        verdicts.loc[known] = found["verdict"].to_numpy()
        columns[column_of(kind, judges)] = verdicts
    judged = table[list(CHOICE_KEYS)].assign(**columns)
    return judged.dropna(subset=list(columns), how="all").reset_index(drop=True)


def column_of(kind: str, judges: Mapping[str, Judge]) -> str:
    """The column that a judge's verdicts stand in."""
    return "verdict" if kind == next(iter(judges)) else f"verdict_{kind}"


def settle(table: pd.DataFrame) -> pd.Series:
    """The verdicts that need no judge, Int8; missing where one has to be asked."""
    import pandas as pd

    outcome = verdicts(
        (table["first_state"] == HEALTHY).to_numpy(), (table["second_state"] == HEALTHY).to_numpy()
    )
    equal = (table["first"] == table["second"]).to_numpy()
    healthy = (table["first_state"] == HEALTHY) & (table["second_state"] == HEALTHY)
    settled = pd.Series(outcome, index=table.index).astype("Int8")
    return settled.mask(healthy & ~equal, pd.NA)


def verdicts(
    first_healthy: NDArray[np.bool_], second_healthy: NDArray[np.bool_]
) -> NDArray[np.int8]:
    """Empty and degenerate texts lose to healthy ones, and tie with each other: `[comparisons]`."""
    return first_healthy.astype(np.int8) - second_healthy.astype(np.int8)
