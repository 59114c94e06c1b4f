"""The answer in words: what the figures say, whatever their sign.

Every sentence is chosen by a figure and its interval. The words "better" and "worse" are used only
where an interval of the difference leaves out zero: the one for other users, or, said so, the one
for these users and other prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from prlhf.evaluation.answers import PROMPTED
from prlhf.evaluation.labels import (
    figure,
    groups_by_size,
    interval,
    join,
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

Verdict = Literal["better", "better_here", "worse", "worse_here", "equal", "unclear", "unknown"]
"""`_here`: sure for these users, but they are too few or too different to speak for others."""


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
    """A key figure.

    Attributes:
        value: The figure.
        label: What it is.
        details: Interval and what to compare it with, a line each.
    """

    value: str
    label: str
    details: list[str]


@dataclass(frozen=True)
class Headline:
    """What stands at the top of the report.

    Attributes:
        verdict: How the personalised method compares with the baseline in accuracy.
        title: The verdict as a sentence.
        sentences: The answer, a few sentences.
        tiles: Key figures.
        warnings: What speaks against relying on the result.
    """

    verdict: Verdict
    title: str
    sentences: list[str]
    tiles: list[Tile]
    warnings: list[str]


def main_method(metrics: Mapping[str, Any], personalised: Sequence[str]) -> str | None:
    """The personalised method the headline is about: the first that was tuned and scored.

    Not the most accurate: choosing by the very figure that is reported would flatter it.
    """
    scored = (
        name
        for name in personalised
        if name != PROMPTED and look_up(metrics, "accuracy", name, "macro") is not None
    )
    return next(scored, None)


def write(metrics: Mapping[str, Any], personalised: Sequence[str], baseline: str) -> Headline:
    """The headline of a report.

    Args:
        metrics: Content of metrics.json.
        personalised: Names of the personalised methods.
        baseline: Name of the method they are compared with.
    """
    name = main_method(metrics, personalised)
    if name is None:
        return Headline(
            "unknown", "No personalised method was evaluated.", [], [], _warnings(metrics, [])
        )
    verdict = _verdict(metrics, name, baseline)
    groups = groups_by_size(metrics)
    sentences = [
        _accuracy_sentence(metrics, name, baseline),
        _group_sentence(metrics, name, baseline, groups),
        _worst_sentence(metrics, name, baseline),
        _wins_sentence(metrics, name, baseline, groups),
        _length_sentence(metrics, name),
        _unseen_sentence(metrics, name, baseline),
        _cost_sentence(metrics, name, baseline),
    ]
    return Headline(
        verdict,
        TITLES[verdict],
        [sentence for sentence in sentences if sentence],
        _tiles(metrics, name, baseline, groups),
        _warnings(metrics, personalised),
    )


def _verdict(metrics: Mapping[str, Any], name: str, baseline: str) -> Verdict:
    pair = f"{name}_vs_{baseline}"
    gain = figure(metrics, "accuracy_gain", pair)
    if gain is None:
        return "unknown"
    if gain == 0:
        return "equal"
    for path, suffix in (((), ""), (("same_users",), "_here")):
        ends = interval(metrics, "accuracy_gain", pair, *path)
        if ends is not None and not ends[0] <= 0.0 <= ends[1]:
            return cast(Verdict, ("better" if ends[0] > 0 else "worse") + suffix)
    return "unclear"


def _accuracy_sentence(metrics: Mapping[str, Any], name: str, baseline: str) -> str:
    value = figure(metrics, "accuracy", name, "macro")
    if value is None:
        return ""
    text = f"{method_label(name)} predicts {percent(value)} of its users' held-out choices"
    ends = interval(metrics, "accuracy", name, "macro")
    if ends is not None:
        text += f" ({_level(metrics)} interval {percent_range(ends)})"
    other = figure(metrics, "accuracy", baseline, "macro")
    gain = figure(metrics, "accuracy_gain", f"{name}_vs_{baseline}")
    if other is None or gain is None:
        return f"{text}."
    text += f"; {method_label(baseline)}, one model for everyone, {percent(other)}"
    if gain == 0:
        return f"{text}. There is no difference."
    text += f". That is a {'gain' if gain > 0 else 'loss'} of {points(gain)} points"
    at = ("accuracy_gain", f"{name}_vs_{baseline}")
    others, same = interval(metrics, *at), interval(metrics, *at, "same_users")
    known = [
        f"{_signed(ends)} for {who}"
        for ends, who in ((same, "these users and other prompts"), (others, "other users"))
        if ends is not None
    ]
    text += f" (interval {join(known)})" if known else ""
    if others is not None and same is not None and others[0] <= 0 <= others[1]:
        sure = not same[0] <= 0 <= same[1]
        text += "; more users are needed to know whether it holds for others" if sure else ""
    return f"{text}."


def _signed(ends: tuple[float, float]) -> str:
    low, high = (f"{100 * end:+.0f}".replace("-", "\N{MINUS SIGN}") for end in ends)
    return f"{low} to {high}"


def _group_sentence(
    metrics: Mapping[str, Any], name: str, baseline: str, groups: Sequence[str]
) -> str:
    changes = []
    for group in groups:
        before = figure(metrics, "accuracy", baseline, "groups", group)
        after = figure(metrics, "accuracy", name, "groups", group)
        if before is not None and after is not None:
            changes.append((after - before, group, before, after))
    if len(changes) < 2:
        return ""
    best, worst = max(changes), min(changes)
    if best[0] < 0.005:
        return "No preference group gains."
    text = f"Most is gained by “{best[1]}” users, from {percent(best[2])} to {percent(best[3])}"
    if worst[0] < -0.005:
        change = f"fall from {percent(worst[2])} to {percent(worst[3])}"
    elif worst[0] > 0.005:
        change = f"go from {percent(worst[2])} to {percent(worst[3])}"
    else:
        change = f"stay at {percent(worst[3])}"
    return f"{text}; “{worst[1]}” users {change}."


def _worst_sentence(metrics: Mapping[str, Any], name: str, baseline: str) -> str:
    value = figure(metrics, "accuracy", name, "worst_user")
    other = figure(metrics, "accuracy", baseline, "worst_user")
    if value is None:
        return ""
    text = f"The user it understands least is at {percent(value)}"
    return (
        f"{text} ({method_label(baseline)}: {percent(other)})." if other is not None else f"{text}."
    )


def _wins_sentence(
    metrics: Mapping[str, Any], name: str, baseline: str, groups: Sequence[str]
) -> str:
    at = ("win_rate", f"{name}_vs_{baseline}")
    value = figure(metrics, *at, "win_rate")
    if value is None:
        return ""
    text = (
        f"Of the generated answers that the judge can tell apart, {method_label(name)} "
        f"wins {percent(value)} against {method_label(baseline)}"
    )
    known = [(group, figure(metrics, *at, "groups", group, "win_rate")) for group in groups]
    parts = [f"{percent(rate)} for “{group}” users" for group, rate in known if rate is not None]
    return f"{text}: {join(parts)}." if 1 < len(parts) <= 6 else f"{text}."


def _length_sentence(metrics: Mapping[str, Any], name: str) -> str:
    short = figure(metrics, "length", name, "groups", "shorter")
    long = figure(metrics, "length", name, "groups", "longer")
    if short is None or long is None:
        return ""
    return (
        f"It answers “shorter” users in {short:.0f} words on average and “longer” users in "
        f"{long:.0f}."
    )


def _unseen_sentence(metrics: Mapping[str, Any], name: str, baseline: str) -> str:
    value = figure(metrics, "accuracy", name, "unseen")
    other = figure(metrics, "accuracy", baseline, "unseen")
    if value is None:
        return ""
    text = f"Users it has never met get its generic answer and are predicted at {percent(value)}"
    return (
        f"{text} ({method_label(baseline)}: {percent(other)})." if other is not None else f"{text}."
    )


STRANGERS: Mapping[str, str] = {
    "unseen": "held-out users",
    "seen": "its own users served as unknown",
}
"""Whom `generic_gain` in metrics.json is about."""


def _cost_sentence(metrics: Mapping[str, Any], name: str, baseline: str) -> str:
    at = ("generic_gain", f"{name}_vs_{baseline}")
    gains, parts, sure = [], [], False
    for place, who in STRANGERS.items():
        gain, ends = figure(metrics, *at, place), interval(metrics, *at, place)
        if gain is None:
            continue
        gains.append(gain)
        sure = sure or (ends is not None and ends[1] < 0)
        spread = "" if ends is None else f" (interval {_signed(ends)})"
        parts.append(f"{signed_points(gain)} for {who}{spread}")
    if not gains:
        return ""
    if sure:
        cost = "costs accuracy"
    elif min(gains) >= 0:
        cost = "costs no measurable accuracy"
    else:
        cost = "costs no more accuracy than chance could explain"
    return (
        f"Where it does not know the user, personalising {cost} against "
        f"{method_label(baseline)}, in points: {join(parts)}."
    )


def _tiles(
    metrics: Mapping[str, Any], name: str, baseline: str, groups: Sequence[str]
) -> list[Tile]:
    tiles = []

    def add(label: str, *path: str, versus: str | None = None) -> None:
        value = figure(metrics, *path)
        if value is None:
            return
        ends = interval(metrics, *path)
        details = []
        other = None
        if versus is not None:
            other = figure(metrics, *(versus if part == name else part for part in path))
        if other is not None and versus is not None:
            details.append(f"{method_label(versus)}: {percent(other)}")
        if ends is not None:
            details.append(f"{_level(metrics)} interval: {percent_range(ends)}")
        tiles.append(Tile(percent(value), label, details))

    add("of users' held-out choices predicted", "accuracy", name, "macro", versus=baseline)
    add("for the worst-served user", "accuracy", name, "worst_user", versus=baseline)
    sizes = look_up(metrics, "counts", "groups") or {}
    if len(groups) > 1 and sizes[groups[-1]] < sizes[groups[0]]:
        smallest = groups[-1]
        add(
            f"of decided comparisons with {method_label(baseline)} won for “{smallest}” users",
            "win_rate", f"{name}_vs_{baseline}", "groups", smallest, "win_rate",
        )  # fmt: skip
    else:
        add(
            f"of decided comparisons with {method_label(baseline)} won",
            "win_rate", f"{name}_vs_{baseline}", "win_rate",
        )  # fmt: skip
    broken = _broken(metrics, "fluency", name)
    if broken is not None:
        other = _broken(metrics, "fluency", "base")
        details = [] if other is None else [f"Base model: {percent(other)}"]
        tiles.append(Tile(percent(broken), "of its answers empty or degenerate", details))
    return tiles


def _broken(metrics: Mapping[str, Any], *path: str) -> float | None:
    empty, degenerate = figure(metrics, *path, "empty"), figure(metrics, *path, "degenerate")
    return None if empty is None or degenerate is None else empty + degenerate


def _warnings(metrics: Mapping[str, Any], personalised: Sequence[str]) -> list[str]:
    warnings = []
    for name in sorted(metrics.get("fluency", {})):
        places: list[tuple[tuple[str, ...], str]] = [((), "")]
        if name in personalised:
            groups = sorted(metrics["fluency"][name].get("groups", {}))
            places += [(("groups", group), f" for “{group}” users") for group in groups]
        for place, who in places:
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
    broken = _broken(metrics, "fluency", name, *place)
    if broken is not None and broken > MAX_BROKEN:
        found.append(
            f"{method_label(name)}{who}: {percent(broken)} of its answers are empty or degenerate."
        )
    return found


def _level(metrics: Mapping[str, Any]) -> str:
    level = figure(metrics, "interval", "level")
    return percent(level) if level is not None else "confidence"
