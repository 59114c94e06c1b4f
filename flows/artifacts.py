"""What a run shows of its results: artifacts that need no network to be looked at."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

from prefect.artifacts import create_image_artifact, create_markdown_artifact

VALIDATION = Path("reports/validation.json")
REPORT = Path("reports/report.html")
HIDDEN = ("interval", "counts")
"""Parts of the metrics that the table leaves out: intervals and how much there was."""

_SVG = re.compile(r"<svg\b(?P<attributes>[^>]*)>(?P<body>.*?)</svg>", re.DOTALL)
_STYLE = re.compile(r"<style[^>]*>(.*?)</style>", re.DOTALL)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>|aria-label=\"([^\"]*)\"", re.DOTALL)
_DIGITS = 6


@dataclass(frozen=True)
class Metrics:
    """Metric files as flat tables: `accuracy.pdpo.macro` -> number.

    Attributes:
        committed: As in Git's last commit.
        before: As the run found them.
    """

    committed: Mapping[str, float]
    before: Mapping[str, float]


def metrics_before(root: Path, names: tuple[str, ...]) -> Metrics:
    """What the metrics are before a run, and were at the last commit."""
    return Metrics(_flat(_committed(root, names)), _flat(_read(root, names)))


def publish(root: Path, names: tuple[str, ...], before: Metrics, shown: Path) -> None:
    """Attach the results in a project to the flow run.

    Args:
        root: The project.
        names: Its metric files.
        before: The metrics before the run.
        shown: Where the report will be found.
    """
    if (root / VALIDATION).is_file():
        text = validation_markdown(json.loads((root / VALIDATION).read_text(encoding="utf-8")))
        create_markdown_artifact(text, key="validation", description="Validation of the data")
    now = _flat(_read(root, names))
    if now:
        create_markdown_artifact(
            metrics_markdown(now, before), key="metrics", description="Metrics before and after"
        )
    if (root / REPORT).is_file():
        page = (root / REPORT).read_text(encoding="utf-8")
        for number, (title, url) in enumerate(images(page), 1):
            create_image_artifact(url, key=f"plot-{number}", description=title)
        create_markdown_artifact(
            f"The report is one file, which needs no network:\n\n`{shown}`\n\n"
            f"[Open it]({shown.as_uri()}) on the machine that ran it.",
            key="report",
            description="Where the report is",
        )


def metrics_markdown(now: Mapping[str, float], before: Metrics) -> str:
    """A table of metrics: the last commit's, those before the run, and the change since."""
    lines = [
        "| Metric | Last commit | Before this run | Now | Change |",
        "|---|--:|--:|--:|--:|",
    ]
    names = [*now, *(name for name in before.before if name not in now)]
    changed = 0
    for name in sorted(names):
        if name.partition(".")[0] in HIDDEN:
            continue
        old, new = before.before.get(name), now.get(name)
        change = None if old is None or new is None else new - old
        moved = old != new
        changed += moved
        cells = [_number(before.committed.get(name)), _number(old), _number(new)]
        cells.append("" if not moved else "new" if old is None else _number(change, "+"))
        if moved and new is not None:
            cells[2] = f"**{cells[2]}**"
        lines.append(f"| {name.replace('|', '&#124;')} | {' | '.join(cells)} |")
    head = f"{changed} metrics changed in this run." if changed else "No metric changed."
    return "\n".join([head, "", *lines])


def validation_markdown(summary: Mapping[str, Any]) -> str:
    """A summary of the validation: its numbers as a table, its lists as lines."""
    lines = ["| | |", "|---|--:|"]
    rest = []
    for name, value in _leaves(summary):
        if isinstance(value, list):
            rest += [f"- {name}: {_text(item)}" for item in value]
        else:
            lines.append(f"| {name} | {_text(value)} |")
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


def _read(root: Path, names: tuple[str, ...]) -> Iterator[Any]:
    for name in names:
        if name.endswith(".json") and (root / name).is_file():
            yield json.loads((root / name).read_text(encoding="utf-8"))


def _committed(root: Path, names: tuple[str, ...]) -> Iterator[Any]:
    for name in names:
        if name.endswith(".json"):
            result = subprocess.run(
                ["git", "show", f"HEAD:./{name}"], cwd=root, capture_output=True, check=False
            )
            if result.returncode == 0:
                yield json.loads(result.stdout)


def _flat(documents: Iterator[Any]) -> dict[str, float]:
    return {
        name: value
        for document in documents
        for name, value in _leaves(document)
        if isinstance(value, int | float) and not isinstance(value, bool)
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
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.split()).replace("|", "&#124;")
