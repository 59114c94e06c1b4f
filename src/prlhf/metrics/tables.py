"""Tables and samples that `evaluate` leaves for `dvc plots` and the report."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from prlhf.metrics import preferences
from prlhf.metrics.metrics import Evaluation

MAX_POINTS = 5_000
"""Users, or answers of one method to one group, in the tables behind a plot: a sample beyond."""

SHOWN = ["text", "words", "state", "finished"]
"""What samples show of an answer."""


def per_user(evaluation: Evaluation) -> pd.DataFrame:
    """One row per user: `user_id, group, seen, pairs` and the accuracy of every method.

    `accuracy_<method>` is the user's accuracy as the user is served; `accuracy_<method>_generic`
    that of the same method serving the user as an unknown one; `validation_<method>` that on the
    pairs of validation, which settings may be chosen by, `pairs_validation` in number.
    """
    columns = ["user_id", "group", "seen", "pairs"]
    if not evaluation.users:
        return pd.DataFrame(columns=columns)
    table = _served(evaluation)[columns].drop_duplicates("user_id").set_index("user_id")
    for name, users in evaluation.users.items():
        if len(own := preferences.validated(evaluation.predictions[name]).set_index("user_id")):
            table["pairs_validation"] = own["pairs"].reindex(table.index).astype("Int64")
            table[f"validation_{name}"] = own["accuracy"]
        parts = {"": preferences.served(users), "_generic": preferences.as_generic(users)}
        for suffix, part in parts.items():
            if len(part):
                table[f"accuracy_{name}{suffix}"] = part.set_index("user_id")["accuracy"]
    return table.reset_index().sort_values(
        ["seen", "group", "user_id"], ascending=[False, True, True], ignore_index=True
    )


def per_user_wins(evaluation: Evaluation) -> pd.DataFrame:
    """`method, other, user_id, seen, wins, ties, losses, score`: a user's comparisons, counted.

    Of all users that answers were judged for; seen ones come first.
    """
    columns = ["method", "other", "user_id", "seen", *preferences.OUTCOMES, "score"]
    if evaluation.verdicts is None:
        return pd.DataFrame(columns=columns)
    table = preferences.wins_by_user(evaluation.verdicts.comparisons).reset_index()[columns]
    order = {"method": True, "other": True, "seen": False, "user_id": True}
    return table.sort_values([*order], ascending=[*order.values()], ignore_index=True)


def user_accuracy(evaluation: Evaluation, seed: int) -> pd.DataFrame:
    """`user_id, group, seen, method, accuracy, pairs` of each user as the user is served."""
    columns = ["user_id", "group", "seen", "method", "accuracy", "pairs"]
    served = _served(evaluation)
    users = np.unique(served["user_id"].to_numpy(dtype=str))
    if len(users) > MAX_POINTS:
        users = np.random.default_rng(seed).choice(users, MAX_POINTS, replace=False)
        served = served[served["user_id"].isin(users)]
    return served[columns].sort_values(["method", "group", "user_id"], ignore_index=True)


def _served(evaluation: Evaluation) -> pd.DataFrame:
    """The users of every method as they are served, with `method`."""
    parts = {name: preferences.served(table) for name, table in evaluation.users.items()}
    return _stacked(parts, [*preferences.COUNTS, "method"])


def lengths(evaluation: Evaluation, seed: int) -> pd.DataFrame:
    """`method, group, words` of each answer that seen users get."""
    parts = {
        name: pd.concat(
            [_sample(part, seed) for _, part in table.groupby("group", dropna=False, sort=True)]
        )
        for name, table in evaluation.given.items()
        if len(table)
    }
    return _stacked(parts, ["method", "group", "words"])


def embeddings(maps: Mapping[str, pd.DataFrame], seed: int) -> pd.DataFrame:
    """`user_id, group, x, y, method` of each method's user map; a null user is the generic one."""
    parts = {}
    for name, table in maps.items():
        known = _sample(table[table["user_id"].notna()], seed)
        generic = table[table["user_id"].isna()].assign(group="(generic user)")
        parts[name] = pd.concat([known, generic], ignore_index=True)
    return _stacked(parts, ["user_id", "group", "x", "y", "method"])


def curves(trained: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """`method, split, step, loss, accuracy` of all training curves, in one table.

    `accuracy` is that of users as the method serves them: the generic user's if it knows no other.

    Args:
        trained: `reports/curves/<method>.csv` of each method.
    """
    parts = {}
    for name, table in trained.items():
        served = "accuracy_user" if "accuracy_user" in table else "accuracy_generic"
        parts[name] = table.assign(accuracy=table[served])
    return _stacked(parts, ["method", "split", "step", "loss", "accuracy"])


def _stacked(parts: Mapping[str, pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """The tables of all methods in one, with the method's name in the column `method`."""
    found = [table.assign(method=name)[list(columns)] for name, table in parts.items()]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(columns))


def _sample(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """At most `MAX_POINTS` rows, in their old order."""
    if len(table) <= MAX_POINTS:
        return table
    kept = np.random.default_rng(seed).choice(len(table), MAX_POINTS, replace=False)
    return table.iloc[np.sort(kept)]


def samples(evaluation: Evaluation, *, prompts: int, users: int, seed: int) -> dict[str, Any]:
    """Answers to the same prompts for different users, drawn at random, to be read side by side.

    Args:
        evaluation: Its texts are sampled; prompts that some method did not answer are passed over.
        prompts: How many prompts at most.
        users: How many users at most, taken in turn from each preference group.
        seed: Seed of the draw.

    Returns:
        `{"users": [{"user_id", "group"}], "prompts": [{"messages", "answers"}]}`; an answer is
        `{"method", "user_id", "group", "text", "words", "state", "finished"}`, its user null for a
        generic answer that all users get.
    """
    measured = evaluation.measured
    rng = np.random.default_rng(seed)
    if not measured:
        return {"users": [], "prompts": []}
    shared = set.intersection(*(set(table["prompt_id"]) for table in measured.values()))
    chosen = [str(p) for p in rng.permutation(sorted(shared))[:prompts]]
    picked = _pick_users(evaluation, users, rng)
    shown = []
    for prompt_id in chosen:
        answers: list[dict[str, Any]] = []
        for name, table in measured.items():
            rows = table[table["prompt_id"] == prompt_id]
            if not answers:
                messages = json.loads(str(rows["prompt"].iloc[0]))
            personal = evaluation.personalized[name]
            rows = rows[rows["condition"] == ("user" if personal else "generic")]
            for user, group in picked if personal else [(None, None)]:
                own = rows[rows["user_id"] == user] if personal else rows
                recipient = {"method": name, "user_id": user, "group": group}
                answers += [
                    recipient | dict(zip(SHOWN, row, strict=True))
                    for row in own[SHOWN].head(1).to_numpy()
                ]
        shown.append({"messages": messages, "answers": answers})
    people = [{"user_id": user, "group": group} for user, group in picked]
    return {"users": people, "prompts": shown}


def _pick_users(
    evaluation: Evaluation, count: int, rng: np.random.Generator
) -> list[tuple[str, str | None]]:
    """Users who got answers of their own, taken from each group in turn, and their groups."""
    own = [table for name, table in evaluation.given.items() if evaluation.personalized[name]]
    if not own:
        return []
    queues = []
    for group, part in own[0].drop_duplicates("user_id").groupby("group", dropna=False, sort=True):
        label = group if isinstance(group, str) else None
        queues.append([(str(user), label) for user in rng.permutation(sorted(part["user_id"]))])
    turns = [user for turn in itertools.zip_longest(*queues) for user in turn if user is not None]
    # Users of one group stand next to each other, to show what they share.
    return sorted(turns[:count], key=lambda user: (user[1] or "", user[0]))
