"""The comparisons behind win rates: which answers meet, and what judges say of them.

A *personalised* method answers each seen user individually: under user tokens of the user's own, or
behind what the user says of themselves. Every other method gives all users the same, generic
answer. Users held out of training get an answer of their own from a method that reads what they
say, and the generic answer of every other.

Every answer that a user gets from a personalised method meets the answer that the same user gets
from each other method; two personalised methods meet once. An empty or degenerate answer loses, and
two equal answers tie, before any judge is asked.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prlhf.data import PROMPTED_METHOD
from prlhf.judging.fluency import HEALTHY

QUESTION_COLUMNS = (
    "user_id",
    "group",
    "prompt_id",
    "prompt",
    "first",
    "second",
    "first_finished",
    "second_finished",
)
"""A question to a judge: which of two answers, `first` or `second`, the user would take. One that
is not finished did not end by itself, but at `generate.max_new_tokens`."""

KEYS = ("method", "other", "user_id", "group", "prompt_id", "seen")
"""What identifies a comparison."""

ANSWER = {"text": "", "state": "_state", "finished": "_finished"}
"""The columns of an answer, and what each adds to `first` and `second` in a comparison."""

CHOICE_KEYS = ("pair_id", "prompt_id", "user_id", "group")
"""What identifies a user's held-out choice."""


class Judge(Protocol):
    """Compares two answers to the same prompt on behalf of a user."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def description(self) -> str:
        """What it measures and what it cannot see, for the report."""

    def knows(self, questions: pd.DataFrame) -> NDArray[np.bool_]:
        """Whether it can speak for the user of each question, `[questions]`."""

    def verdicts(self, questions: pd.DataFrame) -> pd.DataFrame:
        """Its verdicts on questions about users that it knows.

        Args:
            questions: Rows with `QUESTION_COLUMNS`; prompts in canonical form.

        Returns:
            As many rows in the same order: `verdict`, 1 if the user would take the first answer,
            -1 the second, 0 neither, missing if the judge gave no verdict; and columns of its own,
            if it has more to say.
        """

    def report(self) -> dict[str, Any]:
        """Details for judge.json, after all verdicts; none by default."""
        return {}


def is_personalized(generated: pd.DataFrame) -> bool:
    """Whether a table of generated texts has answers to single users."""
    return bool((generated["condition"] == "user").any())


def reading_order(generated: Mapping[str, pd.DataFrame | None]) -> dict[str, bool]:
    """The methods in the order of the report, and whether each is personalised.

    The order is that of `generated` (`compare.all`), with trained personalised methods last.

    Args:
        generated: `data/generated/<method>.parquet` of each method; None if it has no texts.
    """
    personalized = {
        name: table is not None and is_personalized(table) for name, table in generated.items()
    }
    order = sorted(personalized, key=lambda name: personalized[name] and name != PROMPTED_METHOD)
    return {name: personalized[name] for name in order}


def meetings(
    personalized: Mapping[str, bool], baseline: str | None = None
) -> list[tuple[str, str]]:
    """The pairs of methods whose answers meet.

    Args:
        personalized: The methods in reading order, and whether each is personalised.
        baseline: A method that is always `other`; None for no such method.

    Returns:
        `(method, other)`: every personalised method with each that is not, and with each
        personalised one after it; `prompted` counts as the last of these.
    """
    own = [name for name in personalized if personalized[name]]
    own.sort(key=lambda name: name == PROMPTED_METHOD)
    generic = [name for name in personalized if not personalized[name]]
    pairs = [(name, other) for i, name in enumerate(own, 1) for other in [*generic, *own[i:]]]
    return [(other, name) if name == baseline else (name, other) for name, other in pairs]


def comparisons(
    measured: Mapping[str, pd.DataFrame],
    personalized: Mapping[str, bool],
    unseen_users: pd.DataFrame,
) -> pd.DataFrame:
    """All comparisons of an evaluation.

    Args:
        measured: Generated texts of each method with their measures (`fluency.measure_texts`).
        personalized: The methods in reading order, and whether each is personalised.
        unseen_users: `user_id, group` of users held out of training.

    Returns:
        `KEYS`, `prompt`, and of the answers of `method` (`first`) and of `other` (`second`) the
        text, `_state` (see `fluency.measure_texts`) and `_finished` (it ended by itself), in the
        order of `meetings`.
    """
    served = {
        name: _served(table, unseen_users) for name, table in measured.items() if personalized[name]
    }
    parts = []
    for name, other in meetings({name: personalized[name] for name in measured}):
        if other in served:
            theirs, keys = served[other], ["user_id", "seen", "prompt_id"]
        else:
            theirs = measured[other][measured[other]["condition"] == "generic"]
            keys = ["prompt_id"]
        both = served[name].merge(theirs[[*keys, *ANSWER]], on=keys, suffixes=("", "_other"))
        parts.append(both.assign(method=name, other=other))
    names = {name: f"first{what}" for name, what in ANSWER.items()}
    names |= {f"{name}_other": f"second{what}" for name, what in ANSWER.items()}
    columns = [*KEYS, "prompt", *names.values()]
    if not parts:
        return pd.DataFrame(columns=columns)
    return pd.concat(parts, ignore_index=True).rename(columns=names)[columns]


def _served(measured: pd.DataFrame, unseen_users: pd.DataFrame) -> pd.DataFrame:
    """The texts that seen and unseen users get from a personalised method."""
    seen = measured[measured["condition"] == "user"].assign(seen=True)
    unseen = measured[measured["condition"] == "unseen"]
    if len(unseen):
        unseen = unseen[unseen["user_id"].isin(unseen_users["user_id"])]
    else:
        generic = measured[measured["condition"] == "generic"].drop(columns=["user_id", "group"])
        unseen = unseen_users[["user_id", "group"]].merge(generic, how="cross")
    columns = ["user_id", "group", "prompt_id", "prompt", "seen", *ANSWER]
    # An empty table would change the types of the columns that it is concatenated with.
    parts = [part[columns] for part in (seen, unseen.assign(seen=False)) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else seen[columns]


def judged_unseen_users(
    users: pd.DataFrame, generated: Iterable[pd.DataFrame], most: int | None
) -> pd.DataFrame:
    """The users held out of training whose answers are judged.

    Only those whom every method that reads what users say has answered.

    Args:
        users: The prepared users table.
        generated: Generated texts of each method.
        most: How many at most; None for all. They are evenly spread over groups and ids.

    Returns:
        Their `user_id, group`.
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


def texts_to_reward(
    generated: Mapping[str, pd.DataFrame], unseen_users: pd.DataFrame, test: pd.DataFrame
) -> pd.DataFrame:
    """All texts whose rewards the judge stage may need from a reward model.

    Args:
        generated: `data/generated/<method>.parquet` of each method, in the order of `compare.all`.
        unseen_users: See `judged_unseen_users`.
        test: Held-out pairs.

    Returns:
        `user_id, prompt, text` without repetitions: both answers of every comparison, and both
        responses of every pair.
    """
    order = reading_order(generated)
    # Which texts are degenerate is decided in the judge stage: all are compared here.
    healthy = {name: generated[name].assign(state=HEALTHY) for name in order}
    met = comparisons(healthy, order, unseen_users)
    pairs = test.rename(columns={"chosen": "first", "rejected": "second"})
    sides = [
        table[["user_id", "prompt", side]].rename(columns={side: "text"})
        for table in (met, pairs)
        for side in ("first", "second")
    ]
    return pd.concat(sides, ignore_index=True).drop_duplicates(ignore_index=True)


@dataclass(frozen=True)
class Judged:
    """Comparisons with their verdicts.

    Attributes:
        table: `KEYS`; `finished` (both answers ended by themselves); `asked` (False if the
            comparison was settled without a judge); `verdict` of the first judge: 1 (`method`
            wins), 0 (tie), -1 (loses), missing (it gave none); `verdict_<kind>` of each further
            judge, also missing if it does not know the user; and the judges' own columns.
        broken: How many comparisons an empty or degenerate answer decided.
        equal: How many were between equal texts.
    """

    table: pd.DataFrame
    broken: int
    equal: int


def judge(table: pd.DataFrame, judges: Mapping[str, Judge]) -> Judged:
    """Let each judge compare the answers to users that it knows.

    Args:
        table: See `comparisons`.
        judges: By kind. The first one counts: users that it does not know are left out.
    """
    first, *_ = judges.values()
    table = table[first.knows(table)].reset_index(drop=True)
    settled = settle(table)
    open_ = settled.isna().to_numpy(dtype=bool)
    columns = {}
    for kind, one in judges.items():
        known = one.knows(table)
        found = _ask(one, table, open_ & known)
        verdicts = found.pop("verdict").where(open_, settled)
        columns[verdict_column(kind, judges)] = verdicts.where(known, pd.NA)
        columns |= {str(name): found[name] for name in found.columns}
    broken = ((table["first_state"] != HEALTHY) | (table["second_state"] != HEALTHY)).sum()
    return Judged(
        table[list(KEYS)].assign(
            finished=table["first_finished"] & table["second_finished"], asked=open_, **columns
        ),
        int(broken),
        int(settled.notna().sum() - broken),
    )


def _ask(one: Judge, table: pd.DataFrame, rows: NDArray[np.bool_]) -> pd.DataFrame:
    """A judge's verdicts on some rows of a table; missing in the others."""
    found = one.verdicts(table.loc[rows, list(QUESTION_COLUMNS)].reset_index(drop=True))
    return found.set_axis(table.index[rows]).reindex(table.index)


def judge_choices(
    test: pd.DataFrame,
    judges: Mapping[str, Judge],
    most: Mapping[str, int | None],
    order: pd.Series,
) -> pd.DataFrame:
    """Let each judge choose between the two responses that a user chose from, as finished ones.

    Args:
        test: Prepared pairs that the judged models were not trained on.
        judges: As for `judge`.
        most: How many pairs a judge is asked about at most, by its kind; None or missing: all.
        order: Sort key of the rows of `test`; if there are too many pairs, the first are taken.

    Returns:
        `CHOICE_KEYS`, and the verdicts of the judges in columns as `judge` returns them: 1 if the
        judge takes what the user chose. Pairs without any verdict are left out.
    """
    table = test.rename(columns={"chosen": "first", "rejected": "second"}).reset_index(drop=True)
    table = table.assign(first_finished=True, second_finished=True)
    ranks = np.argsort(np.argsort(np.asarray(order), kind="stable"))
    columns = {}
    for kind, one in judges.items():
        known = one.knows(table)
        if (limit := most.get(kind)) is not None:
            known = known & np.isin(ranks, np.sort(ranks[known])[:limit])
        columns[verdict_column(kind, judges)] = _ask(one, table, known)["verdict"]
    judged = table[list(CHOICE_KEYS)].assign(**columns)
    return judged.dropna(subset=list(columns), how="all").reset_index(drop=True)


def verdict_column(kind: str, kinds: Iterable[str]) -> str:
    """The column with the verdicts of a judge; `kinds` are all, the one that counts first."""
    return "verdict" if kind == next(iter(kinds)) else f"verdict_{kind}"


def settle(table: pd.DataFrame) -> pd.Series:
    """The verdicts that need no judge, Int8; missing where a judge has to be asked.

    Empty and degenerate texts lose to healthy ones and tie with each other; equal texts tie.
    """
    first, second = (table[f"{side}_state"] == HEALTHY for side in ("first", "second"))
    outcome = first.astype("Int8") - second.astype("Int8")
    return outcome.mask(first & second & (table["first"] != table["second"]), pd.NA)
