"""What a change does, as Markdown: for a comment on a pull request, and for a terminal.

Names and values come from the files of whoever proposes the change. They are shown as code, which
GitHub takes neither for markup nor for a mention.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prlhf.review.changes import SIDES, Changes, File, Metric, Reason, Revision, StaleStage, Warned
from prlhf.review.pipeline import WORKSPACE, Value, shown

MAX_NAMES = 4
"""Names shown of a list in a table; the others are counted."""

MAX_ROWS = 60
"""Rows shown of a table, lines of a list."""

MAX_LENGTH = 60_000
"""Characters of the page without `every_metric`: a comment on GitHub holds 65,536."""

MAX_VALUE = 60
"""Characters shown of a value or a name."""

MAX_LINE = 240
"""Characters shown of a message."""


def render(changes: Changes, *, every_metric: bool = False) -> str:
    """The change as Markdown; tables are aligned, so that it can be read as it is, too.

    Args:
        changes: What differs.
        every_metric: Show all figures that differ instead of those of the headline, and cut
            nothing off that is too long for a comment.
    """
    old, new = _revision(changes.old), _revision(changes.new)
    parts = [
        "### What this change does to the pipeline",
        f"{old} \N{RIGHTWARDS ARROW} {new}: {_sentence(changes)}",
        *map(_warning, changes.warnings),
        _parameters(changes),
        _stages(changes.stages),
        _removed(changes.removed),
        "\n".join(_files(changes.files)),
        _metrics(changes, every_metric),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    if len(text) > MAX_LENGTH and not every_metric:
        end = text.rindex("\n", 0, MAX_LENGTH)
        text = f"{text[:end]}\n\nCut short: `prlhf params diff --all` shows the rest.\n"
    return text


def _sentence(changes: Changes) -> str:
    what = [_count(len(changes.parameters), "parameter")]
    if changes.files:
        what.append(_count(len(changes.files), "file") + " of code or data")
    changed = f"{' and '.join(what)} changed"
    direct = sum(bool(stage.reasons) for stage in changes.stages)
    if not direct:
        return f"{changed}; no stage becomes stale."
    following = len(changes.stages) - direct
    become = "becomes" if direct == 1 else "become"
    more = f", {following} more by following them" if following else ""
    return f"{changed}; of {_count(changes.of, 'stage')}, {direct} {become} stale{more}."


def _warning(warning: Warned) -> str:
    lines = ["> [!WARNING]", f"> {warning.text}"]
    items = []
    for what, names in warning.about.items():
        text = what if warning.kind == "gpu" else code(what, MAX_LINE)
        items.append(f"{_names(names, MAX_ROWS)}: {text}" if names else text)
    return "\n".join([*lines, *(f"> - {item}" for item in _limited(items))])


def _parameters(changes: Changes) -> str:
    rows = [
        [
            code(each.key),
            *(_value(each.values[side]) if side in each.values else "absent" for side in SIDES),
            _names(each.stages) or "no stage",
        ]
        for each in changes.parameters
    ]
    return _table(["Parameter", code(changes.old.name), code(changes.new.name), "Read by"], rows)


def _stages(stages: Sequence[StaleStage]) -> str:
    rows = [
        [
            code(stage.name),
            "direct" if stage.reasons else "follows",
            _reasons(stage.reasons) if stage.reasons else _names(stage.follows),
            "yes" if stage.gpu else "",
        ]
        for stage in stages
    ]
    return _table(["Stale stage", "How", "Because of", "GPU"], rows)


def _reasons(reasons: Sequence[Reason]) -> str:
    phrases = [reason.phrase.format(code(reason.name)) for reason in reasons[:MAX_NAMES]]
    return _and_more(phrases, len(reasons))


def _removed(names: Sequence[str]) -> str:
    return f"Removed stages: {_names(names, MAX_ROWS)}" if names else ""


def _files(files: Iterable[File]) -> Iterator[str]:
    """A line for each kind of change and set of stages."""
    lines: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for file in files:
        lines.setdefault((file.change, file.kind, file.stages), []).append(file.path)
    written = [
        f"- {change.capitalize()} {kind}: {_names(paths, 8)} \N{RIGHTWARDS ARROW} "
        f"{_names(stages, 2 * MAX_NAMES)}"
        for (change, kind, stages), paths in lines.items()
    ]
    yield from _limited(written)


def _metrics(changes: Changes, every: bool) -> str:
    metrics = [metric for metric in changes.metrics if every or metric.headline]
    rows = [
        [
            code(metric.key),
            _figure(metric.old),
            _figure(metric.new),
            _difference(metric),
            " to ".join(map(_figure, metric.interval or ())),
        ]
        for metric in metrics
    ]
    head = ["Metric", code(changes.old.name), code(changes.new.name), "Change", "Interval"]
    table = _table(head, rows, right=4, limit=None if every else MAX_ROWS)
    more = len(changes.metrics) - len(metrics)
    note = f"{more} more differ: `prlhf params diff --all` shows them." if more else ""
    return "\n\n".join(part for part in (table, note) if part)


def _difference(metric: Metric) -> str:
    if isinstance(metric.old, int | float) and isinstance(metric.new, int | float):
        return f"{metric.new - metric.old:+.4g}"
    return ""


def _figure(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _value(value)


def _value(value: Value) -> str:
    return code(shown(value))


def code(text: str, limit: int = MAX_VALUE) -> str:
    """Any text as Markdown's code, on one line."""
    text = " ".join(text.split())
    if len(text) > limit:
        text = f"{text[: limit - 1]}\N{HORIZONTAL ELLIPSIS}"
    fence = "`"
    while fence in text:
        fence += "`"
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text else "(empty)"


def _revision(revision: Revision) -> str:
    if revision.commit is None:
        return f"the {WORKSPACE}"
    short = revision.commit[:7]
    return code(revision.name) + ("" if revision.name.startswith(short) else f" ({short})")


def _names(names: Sequence[str], limit: int = MAX_NAMES) -> str:
    return _and_more([code(name) for name in names[:limit]], len(names))


def _and_more(parts: Sequence[str], number: int) -> str:
    more = number - len(parts)
    return ", ".join(parts) + (f" and {more} more" if more > 0 else "")


def _limited(lines: Sequence[str], limit: int | None = MAX_ROWS) -> list[str]:
    if limit is None or len(lines) <= limit:
        return list(lines)
    return [*lines[:limit], f"and {len(lines) - limit} more (`--json` has them)"]


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: int = 0,
    limit: int | None = MAX_ROWS,
) -> str:
    """A table of GitHub's Markdown with aligned columns, the last `right` to the right."""
    if not rows:
        return ""
    more = [] if limit is None else rows[limit:]
    # A row is split before anything else is read, within code, too.
    head, *rows = (
        [cell.replace("\\|", "\\ |").replace("|", "\\|") for cell in row]
        for row in (head, *rows[:limit])
    )
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    left = len(head) - right
    rule = [
        "-" * width if column < left else "-" * (max(width, 2) - 1) + ":"
        for column, width in enumerate(widths)
    ]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in (head, rule, *rows)
    ]
    if more:
        lines += ["", f"and {len(more)} more (`--json` has them)"]
    return "\n".join(lines)
