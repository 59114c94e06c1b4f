"""What a run shows of its results: artifacts that need no network to be looked at."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

from prefect.artifacts import create_image_artifact, create_markdown_artifact

from prlhf.infra.errors import UserError
from prlhf.infra.io import write_text
from prlhf.project.dvc import git

VALIDATION = Path("reports/validation.json")
REPORT = Path("reports/report.html")
HEADLINE = "reports/headline.json"
HIDDEN = ("interval", "counts")
"""Parts of the metrics that the table leaves out: intervals and how much there was."""
ROWS = 40
"""Changed figures that the table shows, besides those of the headline."""

_SVG = re.compile(r"<svg\b(?P<attributes>[^>]*)>(?P<body>.*?)</svg>", re.DOTALL)
_STYLE = re.compile(r"<style[^>]*>(.*?)</style>", re.DOTALL)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>|aria-label=\"([^\"]*)\"", re.DOTALL)
_MARKUP = re.compile(r"[&<>|\[\]\\`*~]")
_DIGITS = 6
_HEADER = ["| Metric | Last commit | Before this run | Now | Change |", "|---|--:|--:|--:|--:|"]

Figures = Mapping[str, Mapping[str, float]]
"""Metric file -> its figures as a flat table: `accuracy.pdpo.macro` -> number."""


@dataclass(frozen=True)
class Metrics:
    """The figures that a run starts from.

    Attributes:
        committed: As in Git's last commit.
        before: As the run found them.
    """

    committed: Figures
    before: Figures


def metrics_before(root: Path, names: Iterable[str]) -> Metrics:
    """What the metrics are before a run, and were at the last commit."""
    return Metrics(_flat(_committed(root, names)), _flat(_read(root, names)))


def publish(
    root: Path, names: Iterable[str], before: Metrics, made: Collection[str], shown: Path | None
) -> None:
    """Attach the results of a run to the flow run.

    Args:
        root: The project.
        names: Its metric files.
        before: The metrics before the run.
        made: Outputs of the stages that the run brought up to date; others may be older.
        shown: Where the report is to be kept; None for where it is.
    """
    if str(VALIDATION) in made:
        text = validation_markdown(json.loads((root / VALIDATION).read_text(encoding="utf-8")))
        create_markdown_artifact(text, key="validation", description="Validation of the data")
    now = _flat(_read(root, [name for name in names if name in made]))
    if now:
        create_markdown_artifact(
            metrics_markdown(now, before), key="metrics", description="Metrics before and after"
        )
    if str(REPORT) in made:
        page = (root / REPORT).read_text(encoding="utf-8")
        for number, (title, url) in enumerate(images(page), 1):
            create_image_artifact(url, key=f"plot-{number}", description=title)
        if shown is None:
            shown = root / REPORT
        else:
            write_text(shown, page)
        create_markdown_artifact(
            f"The report is one file, which needs no network:\n\n`{shown}`\n\n"
            f"[Open it]({shown.as_uri()}) on the machine that ran it.",
            key="report",
            description="Where the report is",
        )


def metrics_markdown(now: Figures, before: Metrics) -> str:
    """Metrics at the last commit, before the run and now: the headline, then what has changed."""
    rows = []
    for file, figures in now.items():
        old = before.before.get(file, {})
        for name in sorted({*figures, *old}):
            if file == HEADLINE or name.partition(".")[0] not in HIDDEN:
                values = (before.committed.get(file, {}).get(name), old.get(name))
                rows.append((file == HEADLINE, name, *values, figures.get(name)))
    changed = [row for row in rows if row[3] != row[4]]
    lines = [f"{len(changed)} of {len(rows)} metrics changed in this run."]
    headline = [_row(*row[1:]) for row in rows if row[0]]
    if headline:
        lines += ["", "### Headline", "", *_HEADER, *headline]
    others = [_row(*row[1:]) for row in changed if not row[0]]
    if others:
        lines += ["", "### Changed" if not headline else "### Others that changed", ""]
        lines += [*_HEADER, *others[:ROWS]]
        if len(others) > ROWS:
            lines += ["", f"{len(others) - ROWS} more have changed: `dvc metrics diff` has them."]
    return "\n".join(lines)


def _row(name: str, committed: float | None, old: float | None, new: float | None) -> str:
    change = ""
    if old != new:
        change = "new" if old is None else "gone" if new is None else _number(new - old, "+")
    now = _number(new) if old == new or new is None else f"**{_number(new)}**"
    name = _words(name)
    return f"| {name} | {_number(committed)} | {_number(old)} | {now} | {change} |"


def validation_markdown(summary: Mapping[str, Any]) -> str:
    """A summary of the validation: its numbers as a table, its lists as lines."""
    lines = ["| | |", "|---|--:|"]
    rest = []
    for name, value in _leaves(summary):
        if isinstance(value, list):
            rest += [f"- {_words(name)}: {_text(item)}" for item in value]
        else:
            lines.append(f"| {_words(name)} | {_text(value)} |")
    return "\n".join([*lines, *([""] if rest else []), *rest])


def images(page: str) -> Iterator[tuple[str, str]]:
    """The drawings of a report, each with its title, as data URIs with the page's style sheet."""
    style = "".join(_STYLE.findall(page))
    for found in _SVG.finditer(page):
        title = _TITLE.search(found.group(0))
        text = next(filter(None, title.groups()), "") if title else ""
        attributes = found["attributes"]
        if "xmlns=" not in attributes:
            attributes += ' xmlns="http://www.w3.org/2000/svg"'
        svg = f"<svg{attributes}><style><![CDATA[{style}]]></style>{found['body']}</svg>"
        data = base64.b64encode(svg.encode()).decode()
        yield unescape(text).strip() or "Plot", f"data:image/svg+xml;base64,{data}"


def _read(root: Path, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for name in names:
        if name.endswith(".json") and (root / name).is_file():
            yield name, json.loads((root / name).read_text(encoding="utf-8"))


def _committed(root: Path, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for name in names:
        if name.endswith(".json"):
            with contextlib.suppress(UserError):  # it is not in a commit, or there is none
                yield name, json.loads(git(root, "show", f"HEAD:./{name}"))


def _flat(documents: Iterable[tuple[str, Any]]) -> dict[str, dict[str, float]]:
    return {
        file: {
            name: value
            for name, value in _leaves(document)
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for file, document in documents
    }


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _leaves(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, node


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.{_DIGITS}g}"


def _text(value: Any) -> str:
    return _words(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _words(text: str) -> str:
    """The words of others on one line: no markup, no link, no image, and no end of a cell."""
    return _MARKUP.sub(lambda found: f"&#{ord(found.group())};", " ".join(text.split()))
