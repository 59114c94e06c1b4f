"""What all seeds of a data set say together: differences over people, with intervals that cover."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t

from prlhf.data.ids import content_hash
from prlhf.people.features import Floats

HARM = 0.02
"""Loss of accuracy that may not be."""

Counts = Mapping[str, Sequence[float]]
"""Of one person: right predictions of each model, and `pairs`, in two halves of their units."""


class Mean(NamedTuple):
    """A mean over people, with its interval."""

    value: float
    low: float
    high: float


def mean(values: Floats, confidence: float = 0.95) -> Mean:
    """By Student's t over people; NaN for the ends if there are fewer than two."""
    value = float(values.mean()) if len(values) else float("nan")
    if len(values) < 2:
        return Mean(value, float("nan"), float("nan"))
    error = values.std(ddof=1) / len(values) ** 0.5
    reach = float(error * t.ppf((1 + confidence) / 2, len(values) - 1))
    return Mean(value, value - reach, value + reach)


def accuracies(seeds: Sequence[Mapping[str, Counts]], model: str) -> dict[str, float]:
    """Each person's accuracy, the mean of the seeds in which they were tested."""
    found: dict[str, list[float]] = {}
    for people in seeds:
        for user, counts in people.items():
            found.setdefault(user, []).append(sum(counts[model]) / sum(counts["pairs"]))
    return {user: float(np.mean(values)) for user, values in found.items()}


def difference(seeds: Sequence[Mapping[str, Counts]], model: str, baseline: str) -> Mean:
    """How much better people are predicted by one model than by another."""
    one, other = (accuracies(seeds, name) for name in (model, baseline))
    return mean(np.array([one[user] - other[user] for user in one]))


def worst_tenth(seeds: Sequence[Mapping[str, Counts]], model: str, baseline: str) -> Mean:
    """The same for the tenth of people whom the baseline predicts worst.

    They are found in one half of their pairs and looked at in the other: in the same half, chance
    would have put many of them there, and any other model would look better.
    """
    found: dict[str, list[float]] = {}
    for people in seeds:
        both = {user: counts for user, counts in people.items() if min(counts["pairs"]) > 0}
        for half in (0, 1):
            served = {
                user: counts[baseline][half] / counts["pairs"][half]
                for user, counts in both.items()
            }
            # Ties, of which there are many with few pairs, in an order without meaning.
            order = sorted(served, key=lambda user: (served[user], content_hash(user)))
            for user in order[: -(-len(order) // 10)]:
                counts = both[user]
                gained = counts[model][1 - half] - counts[baseline][1 - half]
                found.setdefault(user, []).append(gained / counts["pairs"][1 - half])
    # A person counts as often as found: in both halves for a reason, unlike in one.
    sums, times = (np.array([f(values) for values in found.values()]) for f in (sum, len))
    value = sums.sum() / times.sum()
    return mean(value + (sums - value * times) / times.mean())


def verdict(gained: Mean) -> str:
    """Whether nobody is hurt on average: gain, no harm, not shown or harm."""
    if gained.low > 0:
        return "gain"
    if gained.low > -HARM:
        return "no harm"
    return "harm" if gained.high < 0 else "not shown"


def percent(found: Mean) -> str:
    """In points of accuracy, with the interval."""
    value, low, high = (100 * part for part in found)
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def summary(seeds: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """All figures of a data set."""
    runs = list(seeds)
    known, shuffled = ([_together(run[key]) for run in runs] for key in ("users", "shuffled"))
    new = [part["accuracy"] for run in runs for part in run["newcomers"]]
    opened = {
        key: [part["gain"]["personal"] for run in runs for part in run[key]]
        for key in ("users", "shuffled")
    }
    return {
        "people": len(accuracies(known, "shared")),
        "open": f"{sum(opened['users'])} of {len(opened['users'])}",
        "open_shuffled": f"{sum(opened['shuffled'])} of {len(opened['shuffled'])}",
        "shared": mean(np.array(list(accuracies(known, "shared").values()))),
        "personal": mean(np.array(list(accuracies(known, "personal").values()))),
        "gain": difference(known, "personal", "shared"),
        "mixed": difference(known, "mixed", "shared"),
        "shuffled": difference(shuffled, "personal", "shared"),
        "worst_tenth": worst_tenth(known, "personal", "shared"),
        "newcomers": {key: float(np.mean([one[key] for one in new])) for key in new[0]},
    }


def _together(parts: Sequence[Mapping[str, Any]]) -> Mapping[str, Counts]:
    """Everybody's counts in all parts that were held out."""
    found: dict[str, dict[str, list[float]]] = {}
    for part in parts:
        for user, counts in part["by_user"].items():
            own = found.setdefault(user, {name: [0.0, 0.0] for name in counts})
            for name, halves in counts.items():
                own[name] = [a + b for a, b in zip(own[name], halves, strict=True)]
    return found
