"""The page: tables between markers, the numbers as JSON and a plot beside it; prose stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import sentence
from prlhf.infra.errors import UserError
from prlhf.infra.io import write_json, write_text
from prlhf.report.svg import Drawing, Scale, tick_label, ticks

STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#57606a}.title{font-weight:600;fill:#24292f}"
    ".rule{stroke:#d0d7de}@media(prefers-color-scheme:dark){text{fill:#9198a1}"
    ".title{fill:#f0f6fc}.rule{stroke:#3d444d}}"
)
OURS, OTHER = "#2da44e", "#8b949e"


def publish(page: Path, name: str, result: dict[str, Any], text: str, drawing: Drawing) -> None:
    """Write a benchmark's numbers, plot, and part of the page.

    Args:
        page: the Markdown file.
        name: of the benchmark, and so of its files and of the page's markers.
        result: the numbers.
        text: the generated part, Markdown.
        drawing: the plot, shown above that part.

    Raises:
        UserError: the page is missing, or has no markers for this benchmark.
    """
    folder = page.parent / page.stem
    alternative = drawing.title
    new = replaced(page, name, f"![{alternative}]({page.stem}/{name}.svg)\n\n{text}")
    write_json(folder / f"{name}.json", result)
    write_text(folder / f"{name}.svg", standalone(drawing))
    write_text(page, new)


def replaced(page: Path, name: str, text: str) -> str:
    """The page with another text between the benchmark's markers.

    Raises:
        UserError: the page is missing, or has no such markers.
    """
    begin, end = f"<!-- {name}: generated -->", f"<!-- {name}: end -->"
    if not page.is_file():
        raise UserError("no such page", where=page, fix=f"write one with {begin} and {end}")
    before, opened, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise UserError(
            f"has no place for the benchmark {name}", where=page, fix=f"add {begin} and {end}"
        )
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}"


def standalone(drawing: Drawing) -> str:
    """A drawing as a file of its own, with colours for light and dark pages."""
    head, opened, rest = str(drawing.render()).partition(">")
    width, height = f"{drawing.width:g}", f"{drawing.height:g}"
    size = f' width="{width}" height="{height}"'
    return f"{head}{size}{opened}<style>{STYLE}</style>{rest}\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def caption(machine: dict[str, Any], rest: str) -> str:
    """What was measured where."""
    return f"{sentence(machine)} {rest}"


def bars(
    title: str, groups: Sequence[tuple[str, Sequence[tuple[str, float, str]]]], unit: str
) -> Drawing:
    """Horizontal bars from zero, in groups; the first bar of each is ours.

    Args:
        title: what the plot shows.
        groups: a heading and its bars: name, length, and what to write behind it.
        unit: of the lengths.
    """
    line, left, right, width = 20, 210, 70, 760
    lines = sum(len(found) + 2 for _, found in groups)
    drawing = Drawing(width, 56 + line * lines, title)
    most = max(length for _, found in groups for _, length, _ in found)
    scale = Scale(0, most, left, width - right)
    drawing.text(8, 20, title, kind="title")
    y = 44.0
    for heading, found in groups:
        drawing.text(8, y, heading, kind="title")
        y += line
        for number, (name, length, note) in enumerate(found):
            drawing.text(left - 8, y, name, anchor="end")
            fill = OTHER if number else OURS
            drawing.rect(left, y - 11, scale(length) - left, 14, fill=fill, radius=2)
            drawing.text(scale(length) + 6, y, note)
            y += line
        y += line
    for tick in ticks(0, most):
        drawing.text(scale(tick), y, tick_label(tick), anchor="middle")
        drawing.line(scale(tick), y - 16, scale(tick), y - 12)
    drawing.line(left, y - 16, width - right, y - 16)
    drawing.text(width - 8, y, unit, anchor="end")
    return drawing


def number(value: float) -> str:
    """Three significant digits, thousands separated, no exponent."""
    if value >= 1000:
        digits = len(str(int(value)))
        return f"{round(value, 3 - digits):,.0f}"
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3g}"


def times(ratio: dict[str, float]) -> str:
    """A ratio with its range over the rounds."""
    return f"{number(ratio['median'])} ({number(ratio['min'])} to {number(ratio['max'])})"


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{number(count / factor)} {unit}"
    return f"{count:.0f} B"
