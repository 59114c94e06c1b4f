"""The answer in words: what the figures say, whatever their sign, and no more than they carry.

Two statements are possible: about these users, from the interval for other prompts, and about users
like these, from the interval for other users as well. They are tested in that order, each at the
level of the intervals, and the second only where the first holds: between two methods that are
equally good, the words "better" and "worse" then appear in 5 % of reports at a level of 95 %.
Neither is made from fewer than eight prompts, or users. Methods are called equal only if the
interval lies within the margin of what matters; everything else is a lack of data, and said to be.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from prlhf.data import BASE_METHOD
from prlhf.metrics.reading import (
    MIN_UNITS,
    broken,
    figure,
    groups_by_size,
    in_words,
    interval,
    look_up,
    method_label,
    percent,
    percent_range,
    points,
    signed_points,
    worst_served,
)
from prlhf.report import cautions

STRANGERS: Mapping[str, str] = {
    "unseen": "held-out users",
    "seen": "its own users served as unknown",
}
"""Whom `generic_gain` in metrics.json is about."""

Verdict = Literal[
    "better", "better_here", "worse", "worse_here", "equal", "equal_here", "same", "fallback",
    "unclear", "unknown",
]  # fmt: skip
"""`_here`: for these users; of others it says nothing. `same`: the two methods are one model.
`fallback`: the personalised method serves everybody alike, since there was nothing to gain."""

TITLES: Mapping[Verdict, str] = {
    "better": "Yes: users are served better by a model that knows them.",
    "better_here": "Yes, these users are served better by a model that knows them.",
    "worse": "No: users are served worse by the model that knows them.",
    "worse_here": "No, these users are served worse by the model that knows them.",
    "equal": "No difference that matters: one model for everyone serves users just as well.",
    "equal_here": "No difference that matters to these users: one model serves them just as well.",
    "same": "No difference: the two methods are one and the same model.",
    "fallback": "Nothing to gain from knowing these users, as far as their choices tell.",
    "unclear": "Too few data to tell whether users are served better by a model that knows them.",
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
    metrics: Mapping[str, Any],
    personalized: Sequence[str],
    subject: str,
    baseline: str,
    *,
    margin: float,
    fallback: bool = False,
    of_limits: Sequence[str] = (),
) -> Headline:
    """The headline of a report.

    Args:
        metrics: The content of metrics.json.
        personalized: The methods that serve single users.
        subject, baseline: The method it is about, and what that is compared with.
        margin: Differences in accuracy up to this matter to nobody.
        fallback: Whether the pretraining found nothing to gain, and `subject` does as it says.
        of_limits: Warnings about the data as the models read them, to stand before all others.
    """
    warnings = [*of_limits, *cautions.write(metrics, personalized)]
    if subject not in personalized or figure(metrics, "accuracy", subject, "macro") is None:
        return Headline("unknown", "No personalised method was evaluated.", [], [], warnings)
    answer = _Answer(metrics, subject, baseline, margin, fallback)
    verdict = answer.verdict()
    sentences = [sentence for sentence in answer.sentences() if sentence]
    return Headline(verdict, TITLES[verdict], sentences, answer.tiles(), warnings)


@dataclass(frozen=True)
class _Answer:
    """What the figures say about `name` against `baseline`; a sentence without any is empty."""

    metrics: Mapping[str, Any]
    name: str
    baseline: str
    margin: float
    fallback: bool

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

    @property
    def speaks_for_others(self) -> bool:
        return (self.figure("counts", "users", "seen") or 0) >= MIN_UNITS

    def verdict(self) -> Verdict:
        if self.fallback:
            return "fallback"
        if self.figure("accuracy_gain", self.pair) is None:
            return "unknown"
        here = self.interval("accuracy_gain", self.pair, "same_users")
        others = self.interval("accuracy_gain", self.pair) if self.speaks_for_others else None
        if here == (0.0, 0.0):
            return "same"
        if here is None or (self.figure("counts", "units") or 0) < MIN_UNITS:
            return "unclear"
        if -self.margin <= here[0] and here[1] <= self.margin:
            within = others is not None and -self.margin <= others[0] and others[1] <= self.margin
            return "equal" if within else "equal_here"
        if not _excludes_zero(here):
            return "unclear"
        verdict = "better" if here[0] > 0 else "worse"
        return cast(Verdict, verdict + ("" if _excludes_zero(others) else "_here"))

    def sentences(self) -> list[str]:
        return [
            self._accuracy(),
            self._evidence(),
            self._groups(),
            self._worst(),
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
        return f"{text} (interval {in_words(known)})." if known else f"{text}."

    def _evidence(self) -> str:
        """What the data could have shown, or what is missing to speak for other users."""
        verdict = self.verdict()
        at = ("power", self.pair)
        users, pairs = (self.figure(*at, key) for key in ("users", "pairs"))
        seen, now = (self.figure("counts", key, "seen") for key in ("users", "pairs"))
        if verdict.endswith("_here"):
            text = "Whether it holds for other users, these are too few or too different to say"
            if users is None or seen is None or users <= seen:
                return f"{text}."
            return f"{text}; about {users:,.0f} would do, instead of {seen:,.0f}."
        if verdict != "unclear":
            return ""
        smallest = self.figure(*at, "detectable_same_users")
        if smallest is None or pairs is None or now is None:
            return "From so few choices no difference can be told."
        text = (
            f"With {now:,.0f} held-out choices of {seen or 0:,.0f} users, only a difference of "
            f"{points(smallest)} points or more would probably have shown"
        )
        if (units := self.figure("counts", "units") or 0) < MIN_UNITS:
            return f"{text}, and {units:.0f} prompts are too few to say anything of others."
        if pairs <= now:
            return f"{text}."
        size = max(abs(self.figure("accuracy_gain", self.pair) or 0.0), self.margin)
        more = f"; to show one of {points(size)}, about {pairs:,.0f} choices would do"
        if users is not None:
            more += f", and about {users:,.0f} users to speak for others"
        return f"{text}{more}."

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

    def _worst(self) -> str:
        key, who = worst_served(self.metrics)
        text = self._compared(f"The {who} it understands least is at", key)
        gain = self.figure("worst_tenth_gain", self.pair)
        ends = self.interval("worst_tenth_gain", self.pair)
        if key == "worst_user" or gain is None or ends is None:
            return text
        return (
            f"{text} The tenth that {self.other} understood least, by other choices of theirs, "
            f"{'gains' if gain >= 0 else 'loses'} {points(gain)} points (interval {_signed(ends)})."
        )

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
        spreads, parts = [], []
        for place, who in STRANGERS.items():
            at = ("generic_gain", self.pair, place)
            if (gain := self.figure(*at)) is not None:
                parts.append(f"{signed_points(gain)} for {who}")
                if (ends := self.interval(*at)) is not None:
                    parts[-1] += f" (interval {_signed(ends)})"
                enough = (self.figure("counts", "users", place) or 0) >= MIN_UNITS
                spreads.append(ends if enough else None)
        if not parts:
            return ""
        claim = f"it is not clear what personalising does to accuracy against {self.other}"
        if any(ends is not None and ends[1] < 0 for ends in spreads):
            claim = f"personalising costs accuracy against {self.other}"
        elif all(ends is not None and ends[0] >= -self.margin for ends in spreads):
            claim = (
                f"personalising costs less than {points(self.margin)} points against {self.other}"
            )
        return f"Where it does not know the user, {claim}, in points: {in_words(parts)}."

    def tiles(self) -> list[Tile]:
        key, who = worst_served(self.metrics)
        tiles = [
            self._tile("of users' held-out choices predicted", "accuracy", "macro"),
            self._tile(f"for the worst-served {who}", "accuracy", key),
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
