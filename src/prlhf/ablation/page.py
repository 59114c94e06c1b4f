"""An ablation's table, as Markdown, CSV, JSON and plain text."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from prlhf.ablation.results import Row, Table
from prlhf.evaluation.labels import number, percent, percent_range
from prlhf.evaluation.statistics import Estimate
from prlhf.experiments import hydra

DIGITS = 6
WIDTH = 100
"""Of the lines under the table on a terminal."""

ESTIMATES = ("accuracy", "difference", "generic", "cost", "unseen")
FIGURES = ("worst_user", "nll", "broken", "words", "seconds")


@dataclass(frozen=True)
class _Column:
    title: str
    cell: Callable[[Row], str]


def markdown(table: Table, figure: str) -> str:
    """The page of an ablation.

    Args:
        table: Its figures.
        figure: The file of its drawing, beside the page.
    """
    ablation = table.ablation
    head, *body = _cells(table)
    lines = [f"# {ablation.title}", "", ablation.about, "", *_row_lines(head, body), ""]
    lines += [f"![Differences to {ablation.baseline}]({figure})", "", _about_figures(table), ""]
    lines += ["## Settings", "", "| Setting | Changes |", "|---|---|"]
    lines += [f"| {row.setting} | {_changes(row.changes)} |" for row in table.rows]
    lines += ["", f"All runs: {_changes(ablation.shared)}.", ""]
    lines += [f"Made by `prlhf ablate {ablation.name}`, see `docs/ablations.md`."]
    return "\n".join(lines) + "\n"


def text(table: Table) -> str:
    """The table for a terminal."""
    cells = _cells(table)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [table.ablation.title]
    for first, *rest in cells:
        padded = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *padded]).rstrip())
    lines += textwrap.wrap(_about_figures(table), WIDTH)
    return "\n".join(lines)


def rows_csv(table: Table) -> str:
    """A row per setting; figures as shares, ends of intervals in columns of their own."""
    stream = StringIO()
    names = ["setting", "seeds", "users"]
    for name in ESTIMATES:
        names += [name, f"{name}_low", f"{name}_high"]
    writer = csv.DictWriter(stream, [*names, *FIGURES], lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        cells: dict[str, Any] = {"setting": row.setting, "users": row.users}
        cells["seeds"] = " ".join(map(str, row.seeds))
        for name in ESTIMATES:
            estimate: Estimate | None = getattr(row, name)
            if estimate is not None:
                low, high = estimate.interval or ("", "")
                parts = zip(("", "_low", "_high"), (estimate.value, low, high), strict=True)
                cells |= {f"{name}{suffix}": _rounded(value) for suffix, value in parts}
        cells |= {name: _rounded(getattr(row, name)) for name in FIGURES}
        writer.writerow(cells)
    return stream.getvalue()


def as_json(table: Table) -> dict[str, Any]:
    """All of it: figures, what settings change, each user's accuracy, and where it comes from."""
    ablation = table.ablation
    settings = []
    for row in table.rows:
        figures: dict[str, Any] = {
            name: _rounded(value) for name in FIGURES if (value := getattr(row, name)) is not None
        }
        for name in ESTIMATES:
            estimate = getattr(row, name)
            if estimate is not None:
                figures[name] = {"value": _rounded(estimate.value)}
                if estimate.interval is not None:
                    ends = (_rounded(end) for end in estimate.interval)
                    figures[name] |= dict(zip(("low", "high"), ends, strict=True))
        runs = [
            {
                "experiment": result.found.run.experiment,
                "from": result.found.start,
                "seed": result.found.run.seed,
                "users": {user: _rounded(value) for user, value in result.served.items()},
            }
            for result in table.results
            if result.found.run.setting == row.setting
        ]
        settings.append(
            {"name": row.setting, "changes": row.changes, "figures": figures, "runs": runs}
        )
    return {
        "name": ablation.name,
        "title": ablation.title,
        "method": ablation.method,
        "baseline": ablation.baseline,
        "shared": ablation.shared,
        "interval": {"level": table.bootstrap.level, "replicates": table.bootstrap.replicates},
        "settings": settings,
    }


def _cells(table: Table) -> list[list[str]]:
    """Titles and rows; columns in which nothing is known are left out."""
    baseline = table.ablation.baseline
    columns = [
        _Column("setting", lambda row: row.setting),
        _Column("accuracy", lambda row: _share(row.accuracy)),
        _Column(
            f"against {baseline}",
            lambda row: "baseline" if row.setting == baseline else _points(row.difference),
        ),
        _Column("worst user", lambda row: _percent(row.worst_user)),
        _Column("as unknown", lambda row: _share(row.generic)),
        _Column("cost", lambda row: _points(row.cost)),
        _Column("held out", lambda row: _share(row.unseen)),
        _Column("nats/token", lambda row: _plain(row.nll, 2)),
        _Column("broken", lambda row: _percent(row.broken)),
        _Column("words", lambda row: _plain(row.words, 0)),
        _Column("train stage", lambda row: _plain(row.seconds, 0, " s")),
    ]
    if table.missing:
        columns.append(_Column("seeds", lambda row: str(len(row.seeds))))
    shown = [[column.title, *map(column.cell, table.rows)] for column in columns]
    known = [column for column in shown if any(cell != "-" for cell in column[1:])]
    return [list(row) for row in zip(*known, strict=True)]


def _row_lines(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    titles = [title[0].upper() + title[1:] for title in head]
    rule = f"|---|{'---:|' * (len(head) - 1)}"
    lines = [f"| {' | '.join(row)} |" for row in (titles, *body)]
    return [lines[0], rule, *lines[1:]]


def _about_figures(table: Table) -> str:
    ablation = table.ablation
    seeds = ", ".join(map(str, ablation.seeds))
    several = len(ablation.seeds) > 1
    counts = sorted({row.users for row in table.rows})
    users = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"Method {ablation.method}; mean over {users} users and seed{'s' if several else ''} "
        f"{seeds}. In brackets {percent(table.bootstrap.level)} bootstrap intervals, which draw "
        f"users{' and seeds' if several else ''} anew; differences are in points, each user"
        f"{' and seed' if several else ''} against the same one."
    )


def _changes(changes: Any) -> str:
    return ", ".join(f"`{key}={hydra(value)}`" for key, value in changes.items()) or "nothing"


def _share(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    ends = f" ({percent_range(estimate.interval)})" if estimate.interval else ""
    return f"{percent(estimate.value)}{ends}"


def _points(estimate: Estimate | None) -> str:
    """A difference in points, with its sign, and the ends of its interval."""
    if estimate is None:
        return "-"
    ends = ""
    if estimate.interval:
        ends = f" ({_signed(estimate.interval.low)} to {_signed(estimate.interval.high)})"
    return f"{_signed(estimate.value)}{ends}"


def _signed(value: float) -> str:
    rounded = round(100 * value, 1)
    return number(rounded, 1) if rounded <= 0 else f"+{number(rounded, 1)}"


def _percent(value: float | None) -> str:
    return "-" if value is None else percent(value)


def _plain(value: float | None, digits: int, unit: str = "") -> str:
    return "-" if value is None else f"{number(value, digits)}{unit}"


def _rounded(value: Any) -> Any:
    return round(value, DIGITS) if isinstance(value, float) else value
