"""An ablation's table as Markdown, CSV, JSON and plain text, and its drawing as SVG."""

import csv
import textwrap
from collections.abc import Sequence
from io import StringIO
from typing import Any

from markupsafe import Markup

from prlhf.infra.tables import inert
from prlhf.metrics.intervals import Estimate
from prlhf.metrics.reading import number, percent, percent_range
from prlhf.project.ablation_results import AblationRow, AblationTable
from prlhf.project.experiments import hydra
from prlhf.report.svg import Drawing, Scale, abridged, tick_label, ticks

DIGITS = 6
WIDTH = 100  # of the lines under the table on a terminal
ESTIMATES = ("validation", "accuracy", "difference", "generic", "cost", "unseen")
FIGURES = ("worst_user", "nll", "broken", "words", "seconds")

# The drawing stands alone: it cannot use the colours of the report's page.
STYLE = """
svg { font: 13px ui-sans-serif, system-ui, sans-serif; background: #fff; --dot: #0a72b8; }
text { fill: #1b1f24; } .soft { fill: #59626d; }
.rule { stroke: #e1e3e6; } .zero { stroke: #59626d; stroke-dasharray: 4 4; }
.bar { stroke: var(--dot); stroke-width: 3; }
@media (prefers-color-scheme: dark) {
  svg { background: #181c21; --dot: #56aeec; } text { fill: #e8eaed; } .soft { fill: #a0a9b4; }
  .rule { stroke: #2e343c; } .zero { stroke: #a0a9b4; }
}
"""


def markdown(table: AblationTable, figure: str) -> str:
    """The page of an ablation.

    Args:
        table: Its figures.
        figure: The file of its drawing, beside the page.
    """
    ablation = table.ablation
    head, *body = _cells(table)
    titles = [title[0].upper() + title[1:] for title in head]
    lines = [f"# {ablation.title}", "", ablation.about, "", f"| {' | '.join(titles)} |"]
    lines += [f"|---|{'---:|' * (len(head) - 1)}", *(f"| {' | '.join(row)} |" for row in body), ""]
    lines += [f"![Differences to {ablation.baseline}]({figure})", "", _about_figures(table), ""]
    lines += ["## Settings", "", "| Setting | Changes |", "|---|---|"]
    lines += [f"| {row.setting} | {_changes(row.changes)} |" for row in table.rows]
    lines += ["", f"All runs: {_changes(ablation.shared)}.", ""]
    lines += [f"Made by `prlhf ablate {ablation.name}`, see `docs/ablations.md`."]
    return "\n".join(lines) + "\n"


def text(table: AblationTable) -> str:
    """The table for a terminal."""
    cells = _cells(table)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [table.ablation.title]
    for first, *rest in cells:
        padded = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *padded]).rstrip())
    lines += textwrap.wrap(_about_figures(table), WIDTH)
    return "\n".join(lines)


def rows_csv(table: AblationTable) -> str:
    """A row per setting; figures as shares, ends of intervals in columns of their own."""
    stream = StringIO()
    estimates = [f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high")]
    names = ["setting", "seeds", "users", *estimates, *FIGURES]
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        cells: dict[str, Any] = {"setting": inert(row.setting), "users": row.users}
        cells["seeds"] = " ".join(map(str, row.seeds))
        for name, figure in _figures(row).items():
            parts = figure if isinstance(figure, dict) else {"value": figure}
            cells[name] = parts["value"]
            cells |= {f"{name}_{end}": parts[end] for end in ("low", "high") if end in parts}
        writer.writerow(cells)
    return stream.getvalue()


def as_json(table: AblationTable) -> dict[str, Any]:
    """All of it: figures, what settings change, each user's accuracy, and where it comes from."""
    ablation = table.ablation
    settings = []
    for row in table.rows:
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
        own = {"name": row.setting, "changes": row.changes, "figures": _figures(row), "runs": runs}
        settings.append(own)
    return {
        "name": ablation.name,
        "title": ablation.title,
        "method": ablation.method,
        "baseline": ablation.baseline,
        "shared": ablation.shared,
        "seeds": {"chosen_by": ablation.seeds, "reported": ablation.reported},
        "best_on_validation": table.best,
        "interval": {"level": table.intervals.level},
        "settings": settings,
    }


def _figures(row: AblationRow) -> dict[str, Any]:
    """The figures that are known; of estimates with the ends of their intervals."""
    known = {name: _rounded(getattr(row, name)) for name in FIGURES}
    figures: dict[str, Any] = {name: value for name, value in known.items() if value is not None}
    for name in ESTIMATES:
        estimate: Estimate | None = getattr(row, name)
        if estimate is not None:
            ends = estimate.interval._asdict() if estimate.interval else {}
            parts = {"value": estimate.value, **ends}
            figures[name] = {part: _rounded(value) for part, value in parts.items()}
    return figures


def draw(table: AblationTable) -> str:
    """Each setting's difference to the baseline, with its interval, as an SVG file."""
    width, left, top, step = 760, 170, 46, 34
    baseline = table.ablation.baseline
    ends = [0.0]
    for row in table.rows:
        if row.difference is not None:
            ends += [100 * row.difference.value, *(100 * x for x in row.difference.interval or ())]
    margin = max(0.08 * (max(ends) - min(ends)), 1.0)
    scale = Scale(min(ends) - margin, max(ends) + margin, left, width - 40)
    bottom = top + step * len(table.rows)
    title = f"{table.ablation.title}: accuracy, points above or below {baseline}"
    drawing = Drawing(width, bottom + 34, title)
    drawing.parts.append(Markup("<style>{}</style>").format(Markup(STYLE)))
    drawing.text(left, 20, title)
    for value in ticks(scale.low, scale.high, 6):
        drawing.line(scale(value), top - 10, scale(value), bottom)
        drawing.text(scale(value), bottom + 20, tick_label(value), kind="soft", anchor="middle")
    drawing.line(scale(0.0), top - 10, scale(0.0), bottom, kind="zero")
    for place, row in enumerate(table.rows):
        y = top + step * (place + 0.4)
        drawing.text(left - 14, y + 4, abridged(row.setting, 22), anchor="end")
        value = 0.0
        if row.difference is not None:
            value = 100 * row.difference.value
            if row.difference.interval is not None:
                low, high = (scale(100 * end) for end in row.difference.interval)
                drawing.line(low, y, high, y, kind="bar")
        elif row.setting != baseline:
            continue
        drawing.mark(0, scale(value), y, 5, fill="var(--dot)", tip=f"{row.setting}: {value:+.1f}")
    return f"{drawing.render()}\n"


def _cells(table: AblationTable) -> list[list[str]]:
    """Titles and rows; columns in which nothing is known are left out."""
    baseline = table.ablation.baseline
    columns = {
        "setting": [row.setting for row in table.rows],
        "on validation": [_share(row.validation) for row in table.rows],
        "accuracy": [_share(row.accuracy) for row in table.rows],
        f"against {baseline}": [
            "baseline" if row.setting == baseline else _points(row.difference) for row in table.rows
        ],
        "worst user": [_percent(row.worst_user) for row in table.rows],
        "as unknown": [_share(row.generic) for row in table.rows],
        "cost": [_points(row.cost) for row in table.rows],
        "held out": [_share(row.unseen) for row in table.rows],
        "nats/token": [_plain(row.nll, 2) for row in table.rows],
        "broken": [_percent(row.broken) for row in table.rows],
        "words": [_plain(row.words, 0) for row in table.rows],
        "train stage": [_plain(row.seconds, 0, " s") for row in table.rows],
    }
    if table.missing:
        columns["seeds"] = [str(len(row.seeds)) for row in table.rows]
    known = [[title, *column] for title, column in columns.items() if set(column) != {"-"}]
    return [list(row) for row in zip(*known, strict=True)]


def _about_figures(table: AblationTable) -> str:
    ablation = table.ablation
    several = len(ablation.reported) > 1
    counts = sorted({row.users for row in table.rows})
    users = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"Method {ablation.method}; mean over {users} users and {_seeds(ablation.reported)}. In "
        f"brackets {percent(table.intervals.level)} intervals for other users"
        f"{' and seeds' if several else ''}; differences are in points, each user"
        f"{' and seed' if several else ''} against the same one. {_about_choice(table)}"
    )


def _about_choice(table: AblationTable) -> str:
    """Which setting validation is for, and whether the results had a part in that."""
    ablation = table.ablation
    if table.best is None:
        return "No pairs of validation were scored: nothing can be chosen by these figures."
    text = f"Best on pairs of validation, with {_seeds(ablation.seeds)}: {table.best}."
    if ablation.fresh:
        return f"{text} No setting is chosen by {_seeds(ablation.fresh)}, fresh for the results."
    return f"{text} No seed is fresh: other seeds' splits validate with what is tested here."


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


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
    ends = " to ".join(map(_signed, estimate.interval or ()))
    return _signed(estimate.value) + (f" ({ends})" if ends else "")


def _signed(value: float) -> str:
    rounded = round(100 * value, 1)
    return number(rounded, 1) if rounded <= 0 else f"+{number(rounded, 1)}"


def _percent(value: float | None) -> str:
    return "-" if value is None else percent(value)


def _plain(value: float | None, digits: int, unit: str = "") -> str:
    return "-" if value is None else f"{number(value, digits)}{unit}"


def _rounded(value: Any) -> Any:
    return round(value, DIGITS) if isinstance(value, float) else value
