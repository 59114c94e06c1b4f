"""Tables and samples that `evaluate` leaves for `dvc plots` and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from prlhf.evaluation import accuracy

if TYPE_CHECKING:
    import pandas as pd

    from prlhf.evaluation.metrics import Evaluation

MAX_POINTS = 5_000
"""Users, or answers of one method to one group, in the tables behind a plot: a sample beyond."""


def per_user(evaluation: Evaluation) -> pd.DataFrame:
    """One row per user: `user_id, group, seen, pairs` and the accuracy of every method.

    `accuracy_<method>` is the user's accuracy as the user is served; `accuracy_<method>_generic`
    that of the same method serving the user as an unknown one.
    """
    import pandas as pd

    users = evaluation.users
    if users.empty:
        return pd.DataFrame(columns=["user_id", "group", "seen", "pairs"])
    served = accuracy.served(users)
    table = served.drop_duplicates("user_id").set_index("user_id")[["group", "seen", "pairs"]]
    for name in evaluation.personalised:
        for suffix, part in (("", served), ("_generic", accuracy.as_generic(users))):
            rows = part[part["method"] == name]
            if len(rows):
                table[f"accuracy_{name}{suffix}"] = rows.set_index("user_id")["accuracy"]
    return table.reset_index().sort_values(
        ["seen", "group", "user_id"], ascending=[False, True, True], ignore_index=True
    )


def per_user_wins(evaluation: Evaluation) -> pd.DataFrame:
    """`method, other, user_id, seen, wins, ties, losses, score`: a user's comparisons, counted.

    Of all users that answers were judged for; seen ones come first.
    """
    import pandas as pd

    columns = ["method", "other", "user_id", "seen", "wins", "ties", "losses", "score"]
    if evaluation.wins is None:
        return pd.DataFrame(columns=columns)
    return (
        evaluation.wins.reset_index()[columns]
        .sort_values(["method", "other", "seen", "user_id"], ascending=[True, True, False, True])
        .reset_index(drop=True)
    )


def user_accuracy(evaluation: Evaluation, seed: int) -> pd.DataFrame:
    """`user_id, group, seen, method, accuracy, pairs` of each user as the user is served."""
    columns = ["user_id", "group", "seen", "method", "accuracy", "pairs"]
    served = accuracy.served(evaluation.users)
    users = np.unique(served["user_id"].to_numpy(dtype=str))
    if len(users) > MAX_POINTS:
        users = np.random.default_rng(seed).choice(users, MAX_POINTS, replace=False)
        served = served[served["user_id"].isin(users)]
    return served[columns].sort_values(["method", "group", "user_id"], ignore_index=True)


def lengths(evaluation: Evaluation, seed: int) -> pd.DataFrame:
    """`method, group, words` of each answer that seen users get."""
    import pandas as pd

    columns = ["method", "group", "words"]
    parts = [
        _sample(part, seed)
        for name, table in evaluation.given.items()
        for _, part in table.assign(method=name).groupby("group", dropna=False, sort=True)
    ]
    if not parts:
        return pd.DataFrame(columns=columns)
    return pd.concat([part[columns] for part in parts], ignore_index=True)


def embeddings(maps: Mapping[str, pd.DataFrame], seed: int) -> pd.DataFrame:
    """`user_id, group, x, y, method` of each method's user map; a null user is the generic one."""
    import pandas as pd

    columns = ["user_id", "group", "x", "y", "method"]
    parts = []
    for name, table in maps.items():
        known = _sample(table[table["user_id"].notna()], seed)
        generic = table[table["user_id"].isna()].assign(group="(generic user)")
        parts.append(pd.concat([known, generic], ignore_index=True).assign(method=name)[columns])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def curves(trained: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """`method, split, step, loss, accuracy` of all training curves, in one table.

    `accuracy` is that of users as the method serves them: the generic user's where it knows no
    other.

    Args:
        trained: `reports/curves/<method>.csv` of each method.
    """
    import pandas as pd

    columns = ["method", "split", "step", "loss", "accuracy"]
    parts = []
    for name, table in trained.items():
        served = "accuracy_user" if "accuracy_user" in table else "accuracy_generic"
        parts.append(table.assign(method=name, accuracy=table[served])[columns])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


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
        text = None
        for name, table in measured.items():
            rows = table[table["prompt_id"] == prompt_id]
            text = rows["prompt"].iloc[0] if text is None else text
            if not evaluation.personalised[name]:
                answers += _answers(name, rows[rows["condition"] == "generic"], {None: None})
            else:
                answers += _answers(name, rows[rows["condition"] == "user"], picked)
        shown.append({"messages": json.loads(str(text)), "answers": answers})
    return {
        "users": [{"user_id": user, "group": group} for user, group in picked.items()],
        "prompts": shown,
    }


def _answers(
    method: str, rows: pd.DataFrame, users: Mapping[str, str | None] | Mapping[None, None]
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for user, group in users.items():
        own = rows if user is None else rows[rows["user_id"] == user]
        recipient: dict[str, Any] = {"method": method, "user_id": user, "group": group}
        texts = own[["text", "words", "state", "finished"]].head(1)
        names = [str(name) for name in texts.columns]
        found += [recipient | dict(zip(names, row, strict=True)) for row in texts.to_numpy()]
    return found


def _pick_users(
    evaluation: Evaluation, count: int, rng: np.random.Generator
) -> dict[str, str | None]:
    """Users who got answers of their own, one group after the other, and the group of each."""
    for name, personal in evaluation.personalised.items():
        if personal and name in evaluation.given:
            known = evaluation.given[name].drop_duplicates("user_id")
            break
    else:
        return {}
    queues = []
    for group, part in known.groupby("group", dropna=False, sort=True):
        label = group if isinstance(group, str) else None
        queues.append([(str(u), label) for u in rng.permutation(sorted(part["user_id"]))])
    picked: list[tuple[str, str | None]] = []
    while any(queues) and len(picked) < count:
        for queue in queues:
            if queue and len(picked) < count:
                picked.append(queue.pop(0))
    # Users of one group next to each other: what they share is what there is to see.
    return dict(sorted(picked, key=lambda item: (item[1] or "", item[0])))


def _sample(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """At most `MAX_POINTS` rows, in their old order."""
    if len(table) <= MAX_POINTS:
        return table
    kept = np.random.default_rng(seed).choice(len(table), MAX_POINTS, replace=False)
    return table.iloc[np.sort(kept)]
