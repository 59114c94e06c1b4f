"""`reports/metrics.json`: every figure of an evaluation, and the interval of each.

The tree of figures and the tree under `interval` have the same shape, except that a gain in
accuracy has a second interval, `same_users`, for these users and other prompts. A
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
from prlhf.metrics.intervals import Estimate, Floats, Intervals
from prlhf.metrics.preferences import Gain, Verdicts
from prlhf.metrics.reading import MIN_UNITS, broken, figure, method_names
from prlhf.metrics.tree import DIGITS, MetricTree, drawn_by
from prlhf.metrics.worst import lowest_tenth, worst_tenth, worst_user

UNEVEN = 0.5
"""Users who count in training, weighed by their choices, as a share of all; below, it is said."""


@dataclass
class Evaluation:
    """The figures of a run, and the tables that they are computed from.

    Attributes:
        methods: The tables of each method in the order of `compare.all`, `base` among them.
        test: `prepared/test.parquet`: held-out pairs of seen users.
        unseen_users: `user_id, group` of users held out of training.
        units: What stays on one side of the split with a pair, by the id of each held-out pair.
        training_pairs: How many training pairs each seen user has.
        verdicts: Of the judges; None leaves win rates out.
        intervals: Makes the intervals.
        margin: Differences in accuracy up to this matter to nobody.
        degenerate: When a text is degenerate: see `fluency.measure_texts`.
        baseline: The method that gains are measured against.
        reward_pairs: Scored pairs of each trained reward model, by its method.
        personalized: The methods in reading order, and whether each is personalised.
        groups: The preference groups of seen users; empty if none are known.
        predictions: `preferences.predictions` of each scored method.
        users: `accuracy_by_user` of each scored method.
        reward_models: `preferences.predictions` of each trained reward model.
        measured: `fluency.measure_texts` of each method's generated texts.
        given: Those of them that seen users get (see `answers_to_users`).
        notes: What was left out or looks wrong, one sentence each.
        metrics: The content of metrics.json.
    """

    methods: Mapping[str, Tables]
    test: pd.DataFrame
    unseen_users: pd.DataFrame
    units: pd.Series
    training_pairs: pd.Series
    verdicts: Verdicts | None
    intervals: Intervals
    margin: float
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
        self.predictions = {
            name: self._predictions(pairs, name)
            for name in self.personalized
            if (pairs := self.methods[name].pairs) is not None
        }
        self.users = {
            name: preferences.accuracy_by_user(pairs) for name, pairs in self.predictions.items()
        }
        if not self.users:
            self.notes.append("No method has scored pairs: preference accuracy is left out.")
        self.reward_models = {
            name: self._predictions(pairs, f"reward model of {name}")
            for name, pairs in self.reward_pairs.items()
        }
        self.measured = measure_methods(
            self.methods, self.personalized, self.degenerate, self.notes
        )
        self.given = {
            name: answers_to_users(table, self.groups) for name, table in self.measured.items()
        }
        self._note_weights()
        tree = MetricTree(self.intervals)
        for metric in METRICS:
            metric(tree, self)
        self.metrics = tree.result()

    def _predictions(self, pairs: pd.DataFrame, name: str) -> pd.DataFrame:
        """`preferences.predictions`, with a note of margins that are not numbers."""
        diverged = int((~np.isfinite(pairs["margin"].astype(float))).sum())
        if diverged:
            self.notes.append(
                f"{name}: {diverged} of {len(pairs)} margins are not finite numbers and count as "
                "wrong; the model has probably diverged."
            )
        return preferences.predictions(pairs, self.units)

    def _note_weights(self) -> None:
        """Training weighs choices, accuracies weigh users: say so where that makes a difference."""
        sizes = self.training_pairs.to_numpy(dtype=np.float64)
        if sizes.sum() and sizes.sum() ** 2 / (sizes**2).sum() < UNEVEN * len(sizes):
            busiest = np.sort(sizes)[::-1][: int(np.ceil(len(sizes) / 10))].sum() / sizes.sum()
            self.notes.append(
                f"A tenth of the users made {busiest:.0%} of the training choices. Training weighs "
                "every choice alike (unless optimizer.user_balance says otherwise); accuracies "
                "here weigh every user alike, but for `micro` in metrics.json."
            )


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
    tree.count(("counts", "units"), preferences.units_of(run.test, run.units).nunique())
    for tables in run.methods.values():
        if tables.pairs is not None:
            tree.count(("counts", "pairs", "unseen"), (tables.pairs["split"] == "unseen").sum())
        if tables.generated is not None:
            tree.count(("counts", "prompts", "answered"), tables.generated["prompt_id"].nunique())


def _accuracy(tree: MetricTree, run: Evaluation) -> None:
    """`accuracy.<method>` and `reward_models.<method>`."""
    for section, models in (("accuracy", run.predictions), ("reward_models", run.reward_models)):
        for name, pairs in models.items():
            _put_accuracy(tree, (section, name), pairs)


def _put_accuracy(tree: MetricTree, at: tuple[str, ...], pairs: pd.DataFrame) -> None:
    def put(key: Sequence[str], part: pd.DataFrame) -> None:
        tree.put((*at, *key), preferences.accuracy(tree.intervals, part))

    own = pairs["condition"] == "user"
    seen = pairs[own & (pairs["split"] == "test")]
    unseen = pairs[pairs["split"] == "unseen"]
    put(["macro"], seen)
    # The same figure again, named to be read beside `unseen`.
    put(["seen"], seen)
    put(["unseen"], unseen)
    put(["generic"], pairs[~own & (pairs["split"] == "test")])
    put(["validation"], pairs[pairs["split"] == preferences.VALIDATION])
    every = tree.intervals.share(seen["score"], seen["user_id"], seen["unit"])
    tree.put((*at, "micro"), every)
    users = preferences.accuracy_by_user(seen)
    tree.put((*at, "worst_user"), worst_user(tree.intervals, users))
    tree.put((*at, "worst_tenth"), worst_tenth(tree.intervals, users))
    for place, part in (("groups", seen), ("unseen_groups", unseen)):
        for group, rows in part.groupby("group", sort=True):
            put([place, str(group)], rows)


def _accuracy_gain(tree: MetricTree, run: Evaluation) -> None:
    """`accuracy_gain`, `worst_tenth_gain` and `power`, of `<name>_vs_<other>` each.

    Gains have one interval for other users and one for these. If there are few users with opposed
    tastes, the first is wide however sure the gain of each is. The worst tenth is the other
    method's: whom it served worst on pairs of validation, since those whom it serves worst on the
    pairs that are compared were also unlucky there, and would seem to gain by any method.
    """
    names = {name: run.personalized[name] for name in run.predictions}
    compared = [(name, run.baseline) for name in names if name != run.baseline]
    compared += meetings(names, run.baseline)
    for name, other in dict.fromkeys(compared):
        if other not in run.predictions:
            continue
        pair, (own, theirs) = f"{name}_vs_{other}", (run.predictions[x] for x in (name, other))
        found = preferences.accuracy_gain(run.intervals, own, theirs, "test", "user")
        if found is None:
            continue
        _put_gain(tree, ("accuracy_gain", pair), found)
        _put_power(tree, ("power", pair), found, run.margin)
        worst = own["user_id"].isin(lowest_tenth(preferences.validated(theirs)))
        found = preferences.accuracy_gain(run.intervals, own[worst], theirs, "test", "user")
        if found is not None:
            _put_gain(tree, ("worst_tenth_gain", pair), found)


def _put_gain(tree: MetricTree, at: tuple[str, ...], gain: Gain) -> None:
    tree.put(at, gain.others)
    tree.put_interval((*at, "same_users"), gain.same_users)


def _put_power(tree: MetricTree, at: tuple[str, ...], gain: Gain, margin: float) -> None:
    """What these data could have shown, and how many would show what they seem to say.

    The latter is about the difference found, or about `margin` where that is larger.
    """
    level, size = tree.intervals.level, max(abs(gain.others.value), margin)

    def needed(estimate: Estimate, count: int) -> int | None:
        smallest = estimate.detectable(level)
        return None if smallest is None else int(np.ceil(count * (smallest / size) ** 2))

    tree.number((*at, "detectable"), gain.others.detectable(level))
    tree.number((*at, "detectable_same_users"), gain.same_users.detectable(level))
    if (pairs := needed(gain.same_users, gain.pairs)) is not None:
        tree.count((*at, "pairs"), pairs)
    if (users := needed(gain.others, gain.users)) is not None:
        tree.count((*at, "users"), max(users, MIN_UNITS))


def _generic_gain(tree: MetricTree, run: Evaluation) -> None:
    """`generic_gain.<name>_vs_<baseline>`: below zero, what personalising costs unknown users.

    `unseen` is over users held out of training, `seen` over users of the method, served as if it
    did not know them; the interval is for other users and prompts.
    """
    baseline = run.predictions.get(run.baseline)
    for name, own in run.predictions.items():
        if baseline is None or not run.personalized[name] or name == run.baseline:
            continue
        at = ("generic_gain", f"{name}_vs_{run.baseline}")
        for place, split in (("unseen", "unseen"), ("seen", "test")):
            found = preferences.accuracy_gain(run.intervals, own, baseline, split, "generic")
            if found is not None:
                tree.put((*at, place), found.others)


def _places(run: Evaluation, name: str) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """A method's answers to all seen users (path `()`), to each group, and to the generic user."""
    table, texts = run.given[name], run.measured[name]
    # What everybody gets is there once for every group.
    yield (), table.drop_duplicates("generation_id")
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
            tree.put_share((*at, "repetition"), table, table["repetition"])
            tree.put_share((*at, "unfinished"), table, ~table["finished"].astype(bool))
            for state in (EMPTY, DEGENERATE):
                tree.put_share((*at, state), table, table["state"] == state)
        if BASE_METHOD in run.measured:
            base = run.measured[BASE_METHOD]
            tree.put_mean(("fluency", name, "base_mean_nll"), base, base["nll"])


def _length(tree: MetricTree, run: Evaluation) -> None:
    """`length.<method>`: words, and for groups `longer` and `shorter` the ratio of their means."""
    for name, table in run.given.items():
        for place, part in _places(run, name):
            tree.put_amount(("length", name, *(place or ("mean",))), part, part["words"])
        if set(run.groups) == {"longer", "shorter"}:
            short, long = table["group"] == "shorter", table["group"] == "longer"
            parts = [table["words"] * short, short, table["words"] * long, long]
            rows = np.column_stack([part.to_numpy(dtype=np.float64) for part in parts])
            ratio = tree.intervals.statistic(rows, _ratio_of_means, *drawn_by(table))
            tree.put(("length", name, "ratio"), ratio)


def _ratio_of_means(sums: Floats) -> Floats:
    """`[n, 4]` sum and count of two kinds of texts -> `[n]` mean of the first over the second."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[:, 0] / sums[:, 1] / (sums[:, 2] / sums[:, 3])


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
            "worst_tenth": ("accuracy", name, "worst_tenth"),
            "validation": ("accuracy", name, "validation"),
            "unseen": ("accuracy", name, "unseen"),
            "win_rate": ("win_rate", f"{name}_vs_{baseline}", "win_rate"),
            "words": ("length", name, "mean"),
            "nll": ("fluency", name, "mean_nll"),
            "unfinished": ("fluency", name, "unfinished"),
        }
        figures = {key: figure(metrics, *path) for key, path in paths.items()}
        figures["broken"] = broken(metrics, name)
        found[name] = {
            key: round(value, DIGITS) for key, value in figures.items() if value is not None
        }
    return found
