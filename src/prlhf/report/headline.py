"""The answer in words: what the figures say, whatever their sign.

Every sentence is chosen by a figure and its interval. The words "better" and "worse" are used only
if an interval of the difference excludes zero: the one for other users, or else, and then the
sentence says so, the one for these users and other prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from prlhf.data import BASE_METHOD
from prlhf.metrics.reading import (
    broken,
    figure,
    groups_by_size,
    in_words,
    interval,
    look_up,
    method_label,
    number,
    percent,
    percent_range,
    points,
    signed_points,
)

MAX_NLL_ABOVE_BASE = 0.7
"""Nats per token above the base model's own texts beyond which the report warns."""

MAX_BROKEN = 0.05
"""Share of empty or degenerate texts beyond which the report warns."""

MIN_AGREEMENT = 0.9
"""Agreement of the judge with the users' own choices below which the report warns."""

STRANGERS: Mapping[str, str] = {
    "unseen": "held-out users",
    "seen": "its own users served as unknown",
}
"""Whom `generic_gain` in metrics.json is about."""

Verdict = Literal["better", "better_here", "worse", "worse_here", "equal", "unclear", "unknown"]
"""`_here`: certain for these users, but they are too few or too different to speak for others."""

TITLES: Mapping[Verdict, str] = {
    "better": "Yes: users are served better by a model that knows them.",
    "better_here": "Yes, these users are served better by a model that knows them.",
    "worse": "No: users are served worse by the model that knows them.",
    "worse_here": "No, these users are served worse by the model that knows them.",
    "equal": "No difference: one model for everyone serves these users just as well.",
    "unclear": "Not clearly: the difference is within what chance alone can bring about.",
    "unknown": "There is nothing to compare the personalised model with.",
}


@dataclass(frozen=True)
class Tile:
    """A key figure in print; `details` are its interval and what to compare it with, by line."""

    value: str
    label: str
    details: list[str]


@dataclass(frozen=True)
class Headline:
    """What stands at the top of the report.

    `verdict` is how the subject compares with the baseline in accuracy, `title` the same as a
    sentence; `warnings` speak against relying on the result.
    """

    verdict: Verdict
    title: str
    sentences: list[str]
    tiles: list[Tile]
    warnings: list[str]


def write(
    metrics: Mapping[str, Any], personalized: Sequence[str], subject: str, baseline: str
) -> Headline:
    """The headline of a report on `subject` against `baseline`, from metrics.json."""
    warnings = _warnings(metrics, personalized)
    if subject not in personalized or figure(metrics, "accuracy", subject, "macro") is None:
        return Headline("unknown", "No personalised method was evaluated.", [], [], warnings)
    answer = _Answer(metrics, subject, baseline)
    verdict = answer.verdict()
    sentences = [sentence for sentence in answer.sentences() if sentence]
    return Headline(verdict, TITLES[verdict], sentences, answer.tiles(), warnings)


@dataclass(frozen=True)
class _Answer:
    """What the figures say about `name` against `baseline`; a sentence without any is empty."""

    metrics: Mapping[str, Any]
    name: str
    baseline: str

    @property
    def pair(self) -> str:
        return f"{self.name}_vs_{self.baseline}"

    @property
    def other(self) -> str:
        return method_label(self.baseline)

    def figure(self, *path: str) -> float | None:
        return figure(self.metrics, *path)

    def interval(self, *path: str) -> tuple[float, float] | None:
        return interval(self.metrics, *path)

    def verdict(self) -> Verdict:
        gain = self.figure("accuracy_gain", self.pair)
        if gain is None:
            return "unknown"
        if gain == 0:
            return "equal"
        for path, suffix in (((), ""), (("same_users",), "_here")):
            ends = self.interval("accuracy_gain", self.pair, *path)
            if ends is not None and _excludes_zero(ends):
                return cast(Verdict, ("better" if ends[0] > 0 else "worse") + suffix)
        return "unclear"

    def sentences(self) -> list[str]:
        return [
            self._accuracy(),
            self._groups(),
            self._compared("The user it understands least is at", "worst_user"),
            self._wins(),
            self._lengths(),
            self._compared(
                "Users it has never met get its generic answer and are predicted at", "unseen"
            ),
            self._cost(),
        ]

    def _accuracy(self) -> str:
        if (value := self.figure("accuracy", self.name, "macro")) is None:
            return ""
        text = f"{method_label(self.name)} predicts {percent(value)} of its users' held-out choices"
        if (ends := self.interval("accuracy", self.name, "macro")) is not None:
            text += f" ({self._level()} interval {percent_range(ends)})"
        other = self.figure("accuracy", self.baseline, "macro")
        gain = self.figure("accuracy_gain", self.pair)
        if other is None or gain is None:
            return f"{text}."
        text += f"; {self.other}, one model for everyone, {percent(other)}"
        if gain == 0:
            return f"{text}. There is no difference."
        text += f". That is a {'gain' if gain > 0 else 'loss'} of {points(gain)} points"
        others = self.interval("accuracy_gain", self.pair)
        same = self.interval("accuracy_gain", self.pair, "same_users")
        known = [
            f"{_signed(ends)} for {who}"
            for ends, who in ((same, "these users and other prompts"), (others, "other users"))
            if ends is not None
        ]
        text += f" (interval {in_words(known)})" if known else ""
        if others is not None and not _excludes_zero(others) and _excludes_zero(same):
            text += "; more users are needed to know whether it holds for others"
        return f"{text}."

    def _groups(self) -> str:
        changes = []
        for group in groups_by_size(self.metrics):
            before = self.figure("accuracy", self.baseline, "groups", group)
            after = self.figure("accuracy", self.name, "groups", group)
            if before is not None and after is not None:
                spelled = f"from {percent(before)} to {percent(after)}"
                changes.append((after - before, group, before, after, spelled))
        if len(changes) < 2:
            return ""
        best, best_group, *_, rise = max(changes)
        worst, worst_group, _, left, fall = min(changes)
        if best < 0.005:
            return "No preference group gains."
        change = f"stay at {percent(left)}"
        if abs(worst) > 0.005:
            change = f"{'fall' if worst < 0 else 'go'} {fall}"
        return f"Most is gained by “{best_group}” users, {rise}; “{worst_group}” users {change}."

    def _compared(self, text: str, key: str) -> str:
        if (value := self.figure("accuracy", self.name, key)) is None:
            return ""
        other = self.figure("accuracy", self.baseline, key)
        than = "" if other is None else f" ({self.other}: {percent(other)})"
        return f"{text} {percent(value)}{than}."

    def _wins(self) -> str:
        at = ("win_rate", self.pair)
        if (value := self.figure(*at, "win_rate")) is None:
            return ""
        text = (
            f"Of the generated answers that the judge can tell apart, {method_label(self.name)} "
            f"wins {percent(value)} against {self.other}"
        )
        parts = [
            f"{percent(rate)} for “{group}” users"
            for group in groups_by_size(self.metrics)
            if (rate := self.figure(*at, "groups", group, "win_rate")) is not None
        ]
        return f"{text}: {in_words(parts)}." if 1 < len(parts) <= 6 else f"{text}."

    def _lengths(self) -> str:
        short = self.figure("length", self.name, "groups", "shorter")
        long = self.figure("length", self.name, "groups", "longer")
        if short is None or long is None:
            return ""
        return (
            f"It answers “shorter” users in {short:.0f} words on average and “longer” users in "
            f"{long:.0f}."
        )

    def _cost(self) -> str:
        gains, highest, parts = [], [], []
        for place, who in STRANGERS.items():
            at = ("generic_gain", self.pair, place)
            if (gain := self.figure(*at)) is not None:
                gains.append(gain)
                parts.append(f"{signed_points(gain)} for {who}")
                if (ends := self.interval(*at)) is not None:
                    highest.append(ends[1])
                    parts[-1] += f" (interval {_signed(ends)})"
        if not gains:
            return ""
        cost = "costs no more accuracy than chance could explain"
        if min(highest, default=0.0) < 0:
            cost = "costs accuracy"
        elif min(gains) >= 0:
            cost = "costs no measurable accuracy"
        return (
            f"Where it does not know the user, personalising {cost} against "
            f"{self.other}, in points: {in_words(parts)}."
        )

    def tiles(self) -> list[Tile]:
        tiles = [
            self._tile("of users' held-out choices predicted", "accuracy", "macro"),
            self._tile("for the worst-served user", "accuracy", "worst_user"),
        ]
        groups = groups_by_size(self.metrics)
        sizes = look_up(self.metrics, "counts", "groups") or {}
        won = f"of decided comparisons with {self.other} won"
        if len(groups) > 1 and sizes[groups[-1]] < sizes[groups[0]]:
            smallest = groups[-1]
            label = f"{won} for “{smallest}” users"
            tiles.append(self._tile(label, "win_rate", "groups", smallest, "win_rate"))
        else:
            tiles.append(self._tile(won, "win_rate", "win_rate"))
        if (share := broken(self.metrics, self.name)) is not None:
            base = broken(self.metrics, BASE_METHOD)
            details = [] if base is None else [f"Base model: {percent(base)}"]
            tiles.append(Tile(percent(share), "of its answers empty or degenerate", details))
        return [tile for tile in tiles if tile is not None]

    def _tile(self, label: str, section: str, *path: str) -> Tile | None:
        at = (section, self.pair if section == "win_rate" else self.name, *path)
        if (value := self.figure(*at)) is None:
            return None
        details = []
        if (other := self.figure(section, self.baseline, *path)) is not None:
            details.append(f"{self.other}: {percent(other)}")
        if (ends := self.interval(*at)) is not None:
            details.append(f"{self._level()} interval: {percent_range(ends)}")
        return Tile(percent(value), label, details)

    def _level(self) -> str:
        level = self.figure("interval", "level")
        return percent(level) if level is not None else "confidence"


def _excludes_zero(ends: tuple[float, float] | None) -> bool:
    return ends is not None and not ends[0] <= 0.0 <= ends[1]


def _signed(ends: tuple[float, float]) -> str:
    low, high = (f"{100 * end:+.0f}".replace("-", "\N{MINUS SIGN}") for end in ends)
    return f"{low} to {high}"


def _warnings(metrics: Mapping[str, Any], personalized: Sequence[str]) -> list[str]:
    warnings = []
    for name in sorted(metrics.get("fluency", {})):
        places: dict[str, tuple[str, ...]] = {"": ()}
        if name in personalized:
            groups = sorted(metrics["fluency"][name].get("groups", {}))
            places |= {f" for “{group}” users": ("groups", group) for group in groups}
        for who, place in places.items():
            warnings += _quality(metrics, name, place, who)
    agreement = figure(metrics, "judge_agreement", "all")
    if agreement is not None and agreement < MIN_AGREEMENT:
        warnings.append(
            f"The judge of the answers agrees with only {percent(agreement)} of the users' "
            "own held-out choices: read the win rates with that in mind."
        )
    return warnings


def _quality(metrics: Mapping[str, Any], name: str, place: tuple[str, ...], who: str) -> list[str]:
    found = []
    nll = figure(metrics, "fluency", name, *place, "mean_nll")
    base = figure(metrics, "fluency", name, "base_mean_nll")
    if nll is not None and base is not None and nll - base > MAX_NLL_ABOVE_BASE:
        found.append(
            f"{method_label(name)}{who}: its answers lie {number(nll - base)} nats per token above "
            "the base model's own, which is a sign of unnatural text."
        )
    share = broken(metrics, name, *place)
    if share is not None and share > MAX_BROKEN:
        found.append(
            f"{method_label(name)}{who}: {percent(share)} of its answers are empty or degenerate."
        )
    return found
