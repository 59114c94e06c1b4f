"""Reading `reports/metrics.json`, and writing its figures and methods out for people."""

from collections.abc import Mapping, Sequence
from typing import Any

NAMES = {
    "base": "Base model",
    "prompted": "Prompted base",
    "dpo": "DPO",
    "dpo_text": "DPO + text",
    "dpo_groups": "DPO per group",
    "pdpo": "P-DPO",
    "pdpo_individual": "P-DPO, individual",
    "pdpo_text": "P-DPO + text",
}
"""Names in print of the methods that params.yaml defines; others go by their own names."""


MIN_UNITS = 8
"""Users, or what the split keeps together, of whom fewer do not speak for others."""

MIN_USERS_FOR_TENTH = 20
"""Users from whom on the worst tenth stands for the worst served, instead of the worst user."""


def look_up(tree: Mapping[str, Any], *path: str) -> Any | None:
    """The value at `path` of nested dictionaries; None if any part is missing."""
    node: Any = tree
    for name in path:
        if not isinstance(node, Mapping) or name not in node:
            return None
        node = node[name]
    return node


def figure(metrics: Mapping[str, Any], *path: str) -> float | None:
    """The figure at `path` of metrics.json."""
    value = look_up(metrics, *path)
    return float(value) if isinstance(value, int | float) else None


def interval(metrics: Mapping[str, Any], *path: str) -> tuple[float, float] | None:
    """The interval of the figure at `path` of metrics.json."""
    ends = look_up(metrics, "interval", *path)
    if not isinstance(ends, Mapping) or "low" not in ends:
        return None
    return float(ends["low"]), float(ends["high"])


def broken(metrics: Mapping[str, Any], *path: str) -> float | None:
    """The share of empty or degenerate answers at `path` of metrics.json, under `fluency`."""
    empty = figure(metrics, "fluency", *path, "empty")
    degenerate = figure(metrics, "fluency", *path, "degenerate")
    return None if empty is None or degenerate is None else empty + degenerate


def method_names(metrics: Mapping[str, Any], order: Sequence[str]) -> list[str]:
    """The methods that metrics.json has figures of, in the `order` of evaluation.json."""
    known = {name for section in ("accuracy", "length") for name in metrics.get(section, {})}
    return [name for name in order if name in known]


def worst_served(metrics: Mapping[str, Any]) -> tuple[str, str]:
    """What stands for those who are served worst: its key under `accuracy`, and who they are."""
    if (figure(metrics, "counts", "users", "seen") or 0) >= MIN_USERS_FOR_TENTH:
        return "worst_tenth", "tenth of users"
    return "worst_user", "user"


def groups_by_size(metrics: Mapping[str, Any]) -> list[str]:
    """Preference groups, the largest first."""
    sizes = look_up(metrics, "counts", "groups") or {}
    return sorted(sizes, key=lambda group: (-sizes[group], group))


def method_label(name: str) -> str:
    """A method's name in print."""
    return NAMES.get(name, name)


def percent(value: float) -> str:
    """A share as a percentage; never rounded up to 100 or down to 0."""
    rounded = round(100 * value)
    if rounded in (0, 100) and abs(100 * value - rounded) > 1e-6:
        return f"{min(max(100 * value, 0.1), 99.9):.1f}%"
    return f"{rounded}%"


def percent_range(ends: tuple[float, float]) -> str:
    """An interval of shares as `low-high%`."""
    low, high = percent(ends[0]), percent(ends[1])
    return low if low == high else f"{low.removesuffix('%')}\N{EN DASH}{high}"


def points(value: float) -> str:
    """A difference of shares in percentage points, without its sign."""
    size = abs(100 * value)
    return f"{size:.0f}" if size >= 10 else f"{size:.1f}".removesuffix(".0")


def signed_points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    size = points(value)
    sign = "" if float(size) == 0 else "+" if value > 0 else "\N{MINUS SIGN}"
    return sign + size


def number(value: float, digits: int = 2) -> str:
    """A plain number with a true minus sign."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def number_range(ends: tuple[float, float], digits: int = 2) -> str:
    """An interval of plain numbers."""
    low, high = number(ends[0], digits), number(ends[1], digits)
    between = " to " if ends[0] < 0 else "\N{EN DASH}"
    return low if low == high else f"{low}{between}{high}"


def in_words(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
