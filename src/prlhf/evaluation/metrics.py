"""`reports/metrics.json`: every figure of an evaluation, and the interval of each.

The tree of figures and the tree under `interval` have the same shape, except that a gain in
accuracy has a second interval, `same_users`, which keeps the users and draws other prompts. A
figure that cannot be computed is left out, never NaN, and `Evaluation.notes` says why. No times, no
machine names: equal inputs give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prlhf.evaluation import accuracy, answers, fluency, wins
from prlhf.evaluation.measured import Tables, Thresholds, measure, reading_order
from prlhf.evaluation.statistics import Bootstrap, Floats, ratio
from prlhf.evaluation.tree import MetricTree, by_prompt

if TYPE_CHECKING:
    import pandas as pd

    from prlhf.evaluation.wins import Verdicts


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    Attributes:
        metrics: The content of metrics.json.
        notes: What was left out or looks wrong, one sentence each.
        personalised: The methods in reading order, and whether each is personalised.
        users: `accuracy.per_user` of every method, with column `method`.
        measured: Generated texts of each method with their measures (`fluency.measure`).
        given: The texts of each method that seen users get (`answers.answers_to_users`).
        wins: `wins.by_user` of all comparisons; None without a judge.
    """

    metrics: dict[str, Any]
    notes: list[str]
    personalised: dict[str, bool]
    users: pd.DataFrame
    measured: dict[str, pd.DataFrame]
    given: dict[str, pd.DataFrame]
    wins: pd.DataFrame | None = None


def evaluate(
    methods: Mapping[str, Tables],
    test: pd.DataFrame,
    unseen_users: pd.DataFrame,
    *,
    verdicts: Verdicts | None,
    bootstrap: Bootstrap,
    thresholds: Thresholds,
    reward_models: Mapping[str, pd.DataFrame] | None = None,
) -> Evaluation:
    """Compute all metrics.

    Args:
        methods: The tables of each method, `base` among them.
        test: `prepared/test.parquet`: held-out pairs of seen users.
        unseen_users: `user_id, group` of users held out of training.
        verdicts: Of the judge; None leaves win rates out.
        bootstrap: Makes the intervals.
        thresholds: When a text is degenerate.
        reward_models: Scored pairs of each trained reward model, by its method.
    """
    tree = MetricTree(bootstrap)
    notes: list[str] = []
    personalised = reading_order(methods)
    groups = sorted(test["group"].dropna().unique())
    if not groups:
        notes.append("The data set names no preference groups: figures by group are left out.")

    _counts(tree, methods, test, unseen_users)
    users = _accuracy(tree, methods, personalised, notes)
    for name, pairs in (reward_models or {}).items():
        of = f"reward model of {name}"
        _put_accuracy(tree, ("reward_models", name), _per_user(pairs, of, notes))
    _generic_gains(tree, methods, [name for name in personalised if personalised[name]])
    measured = measure(methods, list(personalised), thresholds, notes)
    given = {name: answers.answers_to_users(table, groups) for name, table in measured.items()}
    for name, table in given.items():
        _fluency(tree, ("fluency", name), table)
        _lengths(tree, name, table, groups)
        for group in groups:
            _fluency(tree, ("fluency", name, "groups", group), table[table["group"] == group])
        if personalised[name]:
            generic = measured[name][measured[name]["condition"] == "generic"]
            _fluency(tree, ("fluency", name, "generic"), generic)
            tree.put_mean(("length", name, "generic"), generic, generic["words"])
        if answers.BASE in measured:
            base = measured[answers.BASE]
            tree.put_mean(("fluency", name, "base_mean_nll"), base, base["nll"])
    if verdicts is None:
        notes.append(
            "No judge knows what the users of this data set prefer: win rates are left out. "
            "Preference accuracy rests on their own choices and is not affected."
        )
    else:
        wins.put_agreement(tree, verdicts)
        for name, other in answers.meetings({name: personalised[name] for name in measured}):
            wins.put_win_rates(tree, verdicts, name, other, notes)
        wins.put_judges(tree, verdicts)
    return Evaluation(
        metrics=tree.result(),
        notes=notes,
        personalised=personalised,
        users=users,
        measured=measured,
        given=given,
        wins=None if verdicts is None else wins.by_user(verdicts.comparisons),
    )


def _counts(
    tree: MetricTree, methods: Mapping[str, Tables], test: pd.DataFrame, unseen: pd.DataFrame
) -> None:
    by_user = test.drop_duplicates("user_id")
    tree.count(("counts", "users", "seen"), len(by_user))
    tree.count(("counts", "users", "unseen"), len(unseen))
    for group, size in sorted(by_user["group"].value_counts().items()):
        tree.count(("counts", "groups", str(group)), size)
    tree.count(("counts", "pairs", "seen"), len(test))
    tree.count(("counts", "prompts", "judged"), test["prompt_id"].nunique())
    for tables in methods.values():
        if tables.pairs is not None:
            held_out = (tables.pairs["split"] == "unseen").sum()
            tree.count(("counts", "pairs", "unseen"), held_out)
        if tables.generated is not None:
            answered = tables.generated["prompt_id"].nunique()
            tree.count(("counts", "prompts", "answered"), answered)


def _accuracy(
    tree: MetricTree,
    methods: Mapping[str, Tables],
    personalised: Mapping[str, bool],
    notes: list[str],
) -> pd.DataFrame:
    """`accuracy` and `accuracy_gain`; returns the counts of every user under every method."""
    import pandas as pd

    tables: list[pd.DataFrame] = []
    macro: dict[str, pd.Series] = {}
    for name in personalised:
        pairs = methods[name].pairs
        if pairs is None:
            continue
        table = _per_user(pairs, name, notes)
        tables.append(table.assign(method=name))
        seen = _put_accuracy(tree, ("accuracy", name), table)
        macro[name] = seen.set_index("user_id")["accuracy"]
    compared = [(name, answers.BASELINE) for name in macro if name != answers.BASELINE]
    compared += answers.meetings({name: personalised[name] for name in macro})
    for name, other in dict.fromkeys(compared):
        if other in macro:
            _gain(tree, methods, name, other, macro[name] - macro[other])
    if not tables:
        notes.append("No method has scored pairs: preference accuracy is left out.")
        return pd.DataFrame(columns=[*accuracy.COLUMNS, "method"])
    return pd.concat(tables, ignore_index=True)


def _per_user(pairs: pd.DataFrame, name: str, notes: list[str]) -> pd.DataFrame:
    """`accuracy.per_user`, with a note of margins that are no numbers."""
    broken = int((~np.isfinite(pairs["margin"].astype(float))).sum())
    if broken:
        notes.append(
            f"{name}: {broken} of {len(pairs)} margins are not finite numbers and count as "
            "wrong; the model has probably diverged."
        )
    return accuracy.per_user(pairs)


def _put_accuracy(tree: MetricTree, at: tuple[str, ...], table: pd.DataFrame) -> pd.DataFrame:
    """The accuracies of one model; returns its seen users as they are served."""
    bootstrap = tree.bootstrap
    served = accuracy.served(table)
    seen, unseen = served[served["seen"]], served[~served["seen"]]
    overall = bootstrap.mean(seen["accuracy"])
    tree.put((*at, "macro"), overall)
    # The same figure again, under the name that stands beside `unseen`.
    tree.put((*at, "seen"), overall)
    tree.put((*at, "unseen"), bootstrap.mean(unseen["accuracy"]))
    tree.put((*at, "generic"), bootstrap.mean(accuracy.as_generic(table)["accuracy"]))
    worst = bootstrap.minimum(seen["losses"], seen["ties"], seen["wins"])
    tree.put((*at, "worst_user"), worst)
    for place, part in (("groups", seen), ("unseen_groups", unseen)):
        for group, rows in part.groupby("group", sort=True):
            tree.put((*at, place, str(group)), bootstrap.mean(rows["accuracy"]))
    return seen


def _gain(
    tree: MetricTree, methods: Mapping[str, Tables], name: str, other: str, differences: pd.Series
) -> None:
    """`accuracy_gain.<name>_vs_<other>`, with one interval for other users and one for these.

    Few users with opposed tastes make the first wide however sure the gain of each is; the second
    keeps the users and draws other prompts.
    """
    at = ("accuracy_gain", f"{name}_vs_{other}")
    tree.put(at, tree.bootstrap.mean(differences.dropna()))
    own, theirs = methods[name].pairs, methods[other].pairs
    assert own is not None
    assert theirs is not None
    gains = accuracy.pair_gains(own, theirs)
    rows = by_prompt(gains, [gains["weight"] * gains["gain"], gains["weight"]])
    tree.put_interval((*at, "same_users"), tree.bootstrap.ratio(rows))


def _generic_gains(
    tree: MetricTree, methods: Mapping[str, Tables], personalised: Sequence[str]
) -> None:
    """`generic_gain.<name>_vs_dpo`: below zero it is what personalising costs unknown users.

    `unseen` is over users held out of training, `seen` over those it knows, served as if it did
    not; the interval draws users, each with the difference of both methods.
    """
    baseline = methods[answers.BASELINE].pairs if answers.BASELINE in methods else None
    for name in personalised:
        pairs = methods[name].pairs
        if baseline is None or pairs is None:
            continue
        gains = accuracy.generic_gains(pairs, baseline)
        at = ("generic_gain", f"{name}_vs_{answers.BASELINE}")
        for place, part in (("unseen", gains[~gains["seen"]]), ("seen", gains[gains["seen"]])):
            tree.put((*at, place), tree.bootstrap.mean(part["gain"]))


def _fluency(tree: MetricTree, at: tuple[str, ...], table: pd.DataFrame) -> None:
    tree.put_mean((*at, "mean_nll"), table, table["nll"])
    tree.put_mean((*at, "repetition"), table, table["repetition"])
    tree.put_mean((*at, "unfinished"), table, ~table["finished"].astype(bool))
    for state in (fluency.EMPTY, fluency.DEGENERATE):
        tree.put_mean((*at, state), table, table["state"] == state)


def _lengths(tree: MetricTree, name: str, table: pd.DataFrame, groups: Sequence[str]) -> None:
    at = ("length", name)
    tree.put_mean((*at, "mean"), table, table["words"])
    for group in groups:
        part = table[table["group"] == group]
        tree.put_mean((*at, "groups", group), part, part["words"])
    if set(groups) == {"longer", "shorter"}:
        short, long = table["group"] == "shorter", table["group"] == "longer"
        rows = by_prompt(table, [table["words"] * short, short, table["words"] * long, long])
        tree.put((*at, "ratio"), tree.bootstrap.statistic(rows, _ratio_of_means))


def _ratio_of_means(sums: Floats) -> Floats:
    """`[n, 4]` sum and count of two kinds of texts -> `[n]` mean of the first over the second."""
    return ratio(np.column_stack([ratio(sums[:, :2]), ratio(sums[:, 2:])]))
