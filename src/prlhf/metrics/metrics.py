"""`reports/metrics.json`: every figure of an evaluation, and the interval of each.

The tree of figures and the tree under `interval` have the same shape, except that a gain in
accuracy has a second interval, `same_users`, which keeps the users and draws other prompts. A
figure that cannot be computed is left out, never NaN, and `Evaluation.notes` says why. No times, no
machine names: equal inputs give equal bytes.

A new figure is one more function in `METRICS`, and its line in docs/metrics.md.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from prlhf.data import BASE_METHOD
from prlhf.judging.comparisons import is_personalized, meetings, reading_order
from prlhf.judging.fluency import DEGENERATE, EMPTY, Tables, measure_methods
from prlhf.metrics import preferences
from prlhf.metrics.bootstrap import DIGITS, Bootstrap, Floats, MetricTree, by_prompt, ratio
from prlhf.metrics.preferences import Verdicts
from prlhf.metrics.reading import broken, figure, method_names


@dataclass
class Evaluation:
    """The figures of a run, and the tables that they are computed from.

    Attributes:
        methods: The tables of each method in the order of `compare.all`, `base` among them.
        test: `prepared/test.parquet`: held-out pairs of seen users.
        unseen_users: `user_id, group` of users held out of training.
        verdicts: Of the judges; None leaves win rates out.
        bootstrap: Makes the intervals.
        degenerate: When a text is degenerate: see `fluency.measure_texts`.
        baseline: The method that gains are measured against.
        reward_pairs: Scored pairs of each trained reward model, by its method.
        personalized: The methods in reading order, and whether each is personalised.
        groups: The preference groups of seen users; empty if none are known.
        users: `accuracy_by_user` of each scored method.
        reward_models: `accuracy_by_user` of each trained reward model.
        measured: `fluency.measure_texts` of each method's generated texts.
        given: Those of them that seen users get (see `answers_to_users`).
        notes: What was left out or looks wrong, one sentence each.
        metrics: The content of metrics.json.
    """

    methods: Mapping[str, Tables]
    test: pd.DataFrame
    unseen_users: pd.DataFrame
    verdicts: Verdicts | None
    bootstrap: Bootstrap
    degenerate: Mapping[str, float]
    baseline: str
    reward_pairs: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.notes: list[str] = []
        if self.verdicts is not None:
            self.verdicts = self.verdicts.against(self.baseline)
        generated = {name: tables.generated for name, tables in self.methods.items()}
        self.personalized = reading_order(generated)
        self.groups = sorted(self.test["group"].dropna().unique())
        if not self.groups:
            self.notes.append(
                "The data set names no preference groups: figures by group are left out."
            )
        self.users = {
            name: self._per_user(pairs, name)
            for name in self.personalized
            if (pairs := self.methods[name].pairs) is not None
        }
        if not self.users:
            self.notes.append("No method has scored pairs: preference accuracy is left out.")
        self.reward_models = {
            name: self._per_user(pairs, f"reward model of {name}")
            for name, pairs in self.reward_pairs.items()
        }
        self.measured = measure_methods(
            self.methods, self.personalized, self.degenerate, self.notes
        )
        self.given = {
            name: answers_to_users(table, self.groups) for name, table in self.measured.items()
        }
        tree = MetricTree(self.bootstrap)
        for metric in METRICS:
            metric(tree, self)
        self.metrics = tree.result()

    def _per_user(self, pairs: pd.DataFrame, name: str) -> pd.DataFrame:
        """`accuracy_by_user`, with a note of margins that are not numbers."""
        diverged = int((~np.isfinite(pairs["margin"].astype(float))).sum())
        if diverged:
            self.notes.append(
                f"{name}: {diverged} of {len(pairs)} margins are not finite numbers and count as "
                "wrong; the model has probably diverged."
            )
        return preferences.accuracy_by_user(pairs)


def answers_to_users(measured: pd.DataFrame, groups: Sequence[str]) -> pd.DataFrame:
    """The texts that seen users get from one method, each with the group of who gets it.

    Args:
        measured: The method's texts, see `fluency.measure_texts`.
        groups: The preference groups of the seen users; empty if none are known.

    Returns:
        For a personalised method, its texts for single users. For any other, each text once for
        every group (once, with no group, if none are known): all users get all of them.
    """
    if is_personalized(measured):
        return measured[measured["condition"] == "user"].reset_index(drop=True)
    generic = measured[measured["condition"] == "generic"]
    if not groups:
        return generic.assign(group=None).reset_index(drop=True)
    return pd.concat([generic.assign(group=group) for group in groups], ignore_index=True)


def _counts(tree: MetricTree, run: Evaluation) -> None:
    """`counts`: how many users, pairs and prompts there are."""
    by_user = run.test.drop_duplicates("user_id")
    tree.count(("counts", "users", "seen"), len(by_user))
    tree.count(("counts", "users", "unseen"), len(run.unseen_users))
    for group, size in sorted(by_user["group"].value_counts().items()):
        tree.count(("counts", "groups", str(group)), size)
    tree.count(("counts", "pairs", "seen"), len(run.test))
    tree.count(("counts", "prompts", "judged"), run.test["prompt_id"].nunique())
    for tables in run.methods.values():
        if tables.pairs is not None:
            tree.count(("counts", "pairs", "unseen"), (tables.pairs["split"] == "unseen").sum())
        if tables.generated is not None:
            tree.count(("counts", "prompts", "answered"), tables.generated["prompt_id"].nunique())


def _accuracy(tree: MetricTree, run: Evaluation) -> None:
    """`accuracy.<method>` and `reward_models.<method>`."""
    for section, models in (("accuracy", run.users), ("reward_models", run.reward_models)):
        for name, table in models.items():
            _put_accuracy(tree, (section, name), table)


def _put_accuracy(tree: MetricTree, at: tuple[str, ...], table: pd.DataFrame) -> None:
    bootstrap = tree.bootstrap
    served = preferences.served(table)
    seen, unseen = served[served["seen"]], served[~served["seen"]]
    overall = bootstrap.mean(seen["accuracy"])
    tree.put((*at, "macro"), overall)
    # The same figure again, named to be read beside `unseen`.
    tree.put((*at, "seen"), overall)
    tree.put((*at, "unseen"), bootstrap.mean(unseen["accuracy"]))
    tree.put((*at, "generic"), bootstrap.mean(preferences.as_generic(table)["accuracy"]))
    tree.put((*at, "worst_user"), bootstrap.minimum(seen["losses"], seen["ties"], seen["wins"]))
    for place, part in (("groups", seen), ("unseen_groups", unseen)):
        for group, rows in part.groupby("group", sort=True):
            tree.put((*at, place, str(group)), bootstrap.mean(rows["accuracy"]))


def _accuracy_gain(tree: MetricTree, run: Evaluation) -> None:
    """`accuracy_gain.<name>_vs_<other>`, with one interval for other users and one for these.

    If there are few users with opposed tastes, the first is wide however sure the gain of each is;
    the second keeps the users and draws other prompts.
    """
    macro = {}
    for name, table in run.users.items():
        served = preferences.served(table)
        macro[name] = served[served["seen"]].set_index("user_id")["accuracy"]
    compared = [(name, run.baseline) for name in macro if name != run.baseline]
    compared += meetings({name: run.personalized[name] for name in macro}, run.baseline)
    for name, other in dict.fromkeys(compared):
        own, theirs = run.methods[name].pairs, run.methods.get(other, Tables()).pairs
        if own is None or theirs is None:
            continue
        at = ("accuracy_gain", f"{name}_vs_{other}")
        tree.put(at, tree.bootstrap.mean((macro[name] - macro[other]).dropna()))
        gains = preferences.pair_gains(own, theirs)
        rows = by_prompt(gains, [gains["weight"] * gains["gain"], gains["weight"]])
        tree.put_interval((*at, "same_users"), tree.bootstrap.ratio(rows))


def _generic_gain(tree: MetricTree, run: Evaluation) -> None:
    """`generic_gain.<name>_vs_<baseline>`: below zero, what personalising costs unknown users.

    `unseen` is over users held out of training, `seen` over users of the method, served as if it
    did not know them; the interval draws users, each with the difference of both methods.
    """
    baseline = run.methods.get(run.baseline, Tables()).pairs
    for name, personal in run.personalized.items():
        pairs = run.methods[name].pairs
        if baseline is None or pairs is None or not personal or name == run.baseline:
            continue
        gains = preferences.generic_gains(pairs, baseline)
        at = ("generic_gain", f"{name}_vs_{run.baseline}")
        for place, part in (("unseen", gains[~gains["seen"]]), ("seen", gains[gains["seen"]])):
            tree.put((*at, place), tree.bootstrap.mean(part["gain"]))


def _places(run: Evaluation, name: str) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """A method's answers to all seen users (path `()`), to each group, and to the generic user."""
    table, texts = run.given[name], run.measured[name]
    yield (), table
    for group in run.groups:
        yield ("groups", group), table[table["group"] == group]
    if run.personalized[name]:
        yield ("generic",), texts[texts["condition"] == "generic"]


def _fluency(tree: MetricTree, run: Evaluation) -> None:
    """`fluency.<method>`: of the answers that seen users get, and of those to the generic user."""
    for name in run.given:
        for place, table in _places(run, name):
            at = ("fluency", name, *place)
            tree.put_mean((*at, "mean_nll"), table, table["nll"])
            tree.put_mean((*at, "repetition"), table, table["repetition"])
            tree.put_mean((*at, "unfinished"), table, ~table["finished"].astype(bool))
            for state in (EMPTY, DEGENERATE):
                tree.put_mean((*at, state), table, table["state"] == state)
        if BASE_METHOD in run.measured:
            base = run.measured[BASE_METHOD]
            tree.put_mean(("fluency", name, "base_mean_nll"), base, base["nll"])


def _length(tree: MetricTree, run: Evaluation) -> None:
    """`length.<method>`: words, and for groups `longer` and `shorter` the ratio of their means."""
    for name, table in run.given.items():
        for place, part in _places(run, name):
            tree.put_mean(("length", name, *(place or ("mean",))), part, part["words"])
        if set(run.groups) == {"longer", "shorter"}:
            short, long = table["group"] == "shorter", table["group"] == "longer"
            rows = by_prompt(table, [table["words"] * short, short, table["words"] * long, long])
            tree.put(("length", name, "ratio"), tree.bootstrap.statistic(rows, _ratio_of_means))


def _ratio_of_means(sums: Floats) -> Floats:
    """`[n, 4]` sum and count of two kinds of texts -> `[n]` mean of the first over the second."""
    return ratio(np.column_stack([ratio(sums[:, :2]), ratio(sums[:, 2:])]))


def _judged(tree: MetricTree, run: Evaluation) -> None:
    """`judge_agreement`, `win_rate.<name>_vs_<other>` and `judges`."""
    if run.verdicts is None:
        run.notes.append(
            "No judge knows what the users of this data set prefer: win rates are left out. "
            "Preference accuracy rests on their own choices and is not affected."
        )
        return
    preferences.put_agreement(tree, run.verdicts)
    measured = {name: run.personalized[name] for name in run.measured}
    for name, other in meetings(measured, run.baseline):
        preferences.put_win_rates(tree, run.verdicts, name, other, run.notes)
    preferences.put_judges(tree, run.verdicts)


METRICS: Sequence[Callable[[MetricTree, Evaluation], None]] = (
    _counts,
    _accuracy,
    _accuracy_gain,
    _generic_gain,
    _fluency,
    _length,
    _judged,
)
"""Each adds its figures to the tree, and a note if something is missing."""


def headline_figures(
    metrics: Mapping[str, Any], order: Sequence[str], baseline: str
) -> dict[str, dict[str, float]]:
    """`reports/headline.json`: each method's key figures, to compare runs by in a table.

    A figure that was not computed is left out.

    Args:
        metrics: The content of metrics.json.
        order: The methods in reading order.
        baseline: The method that win rates are against.
    """
    found = {}
    for name in method_names(metrics, order):
        paths = {
            "accuracy": ("accuracy", name, "macro"),
            "worst_user": ("accuracy", name, "worst_user"),
            "unseen": ("accuracy", name, "unseen"),
            "win_rate": ("win_rate", f"{name}_vs_{baseline}", "win_rate"),
            "words": ("length", name, "mean"),
            "nll": ("fluency", name, "mean_nll"),
        }
        figures = {key: figure(metrics, *path) for key, path in paths.items()}
        figures["broken"] = broken(metrics, name)
        found[name] = {
            key: round(value, DIGITS) for key, value in figures.items() if value is not None
        }
    return found
