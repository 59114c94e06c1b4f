"""Versions of the data as Markdown tables that are readable as they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prlhf.data.changes import FETCH, Changes, Entry, History

MAX_NAMES = 5
"""Users named of those who are new, and of those who are gone."""


def changes_text(changes: Changes) -> str:
    """Two versions side by side, the users who came and went, and what to mind."""
    before, after = changes.before, changes.after
    rows = [
        ["rows", _number(before.rows), _number(after.rows), _moved(changes.added, changes.removed)],
        [
            "users",
            _number(before.users),
            _number(after.users),
            _moved(len(changes.new_users), len(changes.gone_users)),
        ],
        _compared("quarantined", _total(before.quarantined), _total(after.quarantined)),
        *_parts("quarantined: ", before.quarantined, after.quarantined),
        *_parts("pairs: ", before.splits, after.splits),
    ]
    parts = [_table(["", *changes.names, "change"], rows)]
    for what, users in (("new", changes.new_users), ("gone", changes.gone_users)):
        if users:
            more = len(users) - MAX_NAMES
            names = ", ".join(users[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
            parts.append(f"{what} users: {names}")
    parts += [f"mind: {what} (`dvc repro validate`)" for what in changes.stale]
    return "\n\n".join(parts)


def history_text(history: History) -> str:
    """A line for each version, newest first."""
    if not history.entries:
        return "no commit has data yet (`dvc repro validate`, then commit dvc.lock)"
    head = ["version", "date", "rows", "users", "quarantined", "changed", "commit"]
    parts = [_table(head, [_entry_cells(entry) for entry in history.entries])]
    if any(entry.missing for entry in history.entries):
        parts.append(f"not in the cache: `{FETCH}` gets them, from a remote that has them")
    parts += [f"mind: {entry.version}: {what}" for entry in history.entries for what in entry.stale]
    if history.more:
        parts.append("older versions: --number")
    return "\n\n".join(parts)


def _entry_cells(entry: Entry) -> list[str]:
    counts = entry.counts
    rows = "not in the cache" if entry.missing else _number(counts.rows)
    return [
        entry.version + (f" ({entry.tag})" if entry.tag else ""),
        entry.date or "",
        rows,
        _number(counts.users),
        _number(_total(counts.quarantined)),
        ", ".join(entry.changed),
        entry.subject or "",
    ]


def _number(count: int | None) -> str:
    return "-" if count is None else str(count)


def _total(counts: Mapping[str, int] | None) -> int | None:
    return None if counts is None else sum(counts.values())


def _moved(more: int, fewer: int) -> str:
    return " ".join([*([f"+{more}"] if more else []), *([f"-{fewer}"] if fewer else [])]) or "0"


def _compared(label: str, before: int | None, after: int | None) -> list[str]:
    change = "-" if before is None or after is None else f"{after - before:+d}"
    return [label, _number(before), _number(after), "0" if change == "+0" else change]


def _parts(
    prefix: str, before: Mapping[str, int] | None, after: Mapping[str, int] | None
) -> list[list[str]]:
    names = dict.fromkeys([*(before or {}), *(after or {})])
    return [
        _compared(
            f"{prefix}{name}",
            None if before is None else before.get(name, 0),
            None if after is None else after.get(name, 0),
        )
        for name in names
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = []
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)
