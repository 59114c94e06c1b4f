"""Part `texts`: hostile ids and texts through every output, looked at by a parser and a browser.

Every text that would do harm carries one of two marks: JavaScript that sets an attribute of the
page, or an address that nothing may fetch. A page is sound if neither is where it would work.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any, Final

from markdown_it import MarkdownIt

from benchmarks.chaos.project import ROOT, SMALL, WORDS, set_parameters
from benchmarks.chaos.tiny import write_model
from benchmarks.chaos.trial import USED, Fault, NotRun, Part, Trial, plain
from prlhf.cli import execute

PATIENCE: Final = 3600.0
EACH: Final = 50
"""Texts of one run: each is a person's id, and comes in prompts, responses, groups and words."""

RAN: Final = "data-ran"
CODE: Final = f"document.documentElement.setAttribute('{RAN}',1)"
PLACE: Final = "evil.invalid"
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome", "chrome")

HOSTILE: Final = (
    f"<script>{CODE}</script>",
    f"</script><script>{CODE}</script>",
    f"</SCRIPT ><ScRiPt>{CODE}</sCrIpT>",
    f"<!--<script>{CODE}//--></script><script>{CODE}</script>",
    f"</style><script>{CODE}</script>",
    f"</title><script>{CODE}</script>",
    f"</textarea><script>{CODE}</script>",
    f"</svg><script>{CODE}</script>",
    f"]]><script>{CODE}</script>",
    f"--><script>{CODE}</script>",
    f'"><img src=x onerror="{CODE}">',
    f"'><img src=x onerror={CODE}>",
    f"<img src=x onerror={CODE}>",
    f"<svg onload={CODE}>",
    f"<svg><script>{CODE}</script></svg>",
    f'" onmouseover="{CODE}" autofocus onfocus="{CODE}" x="',
    f"<details open ontoggle={CODE}>",
    f"<body onload={CODE}>",
    f'<iframe srcdoc="<script>parent.{CODE}</script>">',
    f"<iframe src=javascript:parent.{CODE}>",
    f'<a href="javascript:{CODE}">x</a>',
    f"javascript:{CODE}",
    f"[x](javascript:{CODE})",
    f"![x](http://{PLACE}/x.png)",
    f"[x]: http://{PLACE}/",
    f"<img src=//{PLACE}/x.png>",
    f"<base href=http://{PLACE}/>",
    f'<meta http-equiv=refresh content="0;url=http://{PLACE}/">',
    f"<link rel=stylesheet href=//{PLACE}/x.css>",
    f"@import url(//{PLACE}/x.css);",
    f"&lt;script&gt;{CODE}&lt;/script&gt;",
    f"&#60;script&#62;{CODE}&#60;/script&#62;",
    f"\\u003cscript\\u003e{CODE}\\u003c/script\\u003e",
    f"${{{CODE}}}",
    f"`;{CODE};`",
    f"';{CODE};'",
    f'";{CODE};"',
    f"\\';{CODE};//",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "=1+1",
    "=cmd|' /C calc'!A0",
    f'=HYPERLINK("http://{PLACE}/","x")',
    "+1+1",
    "-1+1",
    "@SUM(1)",
    "\t=1+1",
    " =1+1",
    "\r=1+1",
    "\n=1+1",
    '"=1+1',
    "'=1+1",
    ";=1+1",
    "\uff1d1+1",
    "../../escaped",
    "..\\..\\escaped",
    "/tmp/escaped",
    "a/b",
    "a\\b",
    "CON",
    "~",
    "-rf",
    "$HOME",
    "$(touch escaped)",
    "`touch escaped`",
    "; touch escaped",
    "%2e%2e%2f",
    "a\x00b",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\u202ereversed",
    "zero\u200bwidth",
    "line\u2028end",
    "two\nlines",
    "| a | b |",
    "# heading",
    "*bold* _it_ `code`",
    "---\ntitle: x\n---",
    "null",
    "true",
    "1e5",
    '{"a": 1}',
    "\\",
    '"',
    "'",
    "<",
    "&",
    "é\u0301",
    "\U0001f469\u200d\U0001f680",
    "x" * 300,
    "generic",
    "unseen",
    "base",
)

STAGES: Final = (
    *("base-model", "ingest", "validate", "reference", "pretrain-user-model"),
    *("train --method dpo", "train --method pdpo"),
    *(f"{s} --method {m}" for s in ("generate", "score") for m in ("base", "dpo", "pdpo")),
    *("judge", "evaluate", "report", "summary"),
)
SAFE: Final = re.compile(r"[\w.@+ =-]+", re.ASCII)
"""Names of files that no shell, page or file system minds."""


def attempt(trial: Trial, browser: str | None) -> tuple[str, str]:
    """Run the pipeline on fifty hostile people, and look at everything that it wrote."""
    project = Path("project")
    project.mkdir()
    texts = list(hostile(trial.random))
    trial.tries(f"{len(texts)} texts, {browser or 'no browser'}")
    _write_project(project, texts, trial.random)
    _pipeline(trial, project)
    for line in trial.said().splitlines():
        plain(line)
    pages = look(Path(), browser)
    how = f"a parser and {Path(browser).name}" if browser else "a parser; no browser here"
    return USED, f"{pages} pages looked at by {how}"


def look(directory: Path, browser: str | None) -> int:
    """Check all that a run wrote to `directory/project`; how many pages there were.

    Raises:
        Fault: A text of somebody's is more than text in one of them.
    """
    project = directory / "project"
    _names(directory)
    _tables(project)
    _json_files(project)
    pages = list(_pages(project))
    for page in pages:
        looked_at(page, browser)
    return len(pages)


def hostile(random: Random) -> Iterator[str]:
    """Fifty texts: known ones, some of them put between others."""
    for text in random.sample(HOSTILE, EACH):
        way = random.random()
        if way < 0.2:
            yield f"{random.choice(HOSTILE)}{text}"[:400]
        elif way < 0.4:
            yield f"ann {text}"
        elif way < 0.5:
            yield f"{text}{random.choice(('>', chr(34), chr(39), ' ', '--', '<'))}"
        else:
            yield text


# -- the run ---------------------------------------------------------------------------------------


def _write_project(project: Path, texts: list[str], random: Random) -> None:
    rows = [
        {
            "user_id": text,
            "prompt": f"{WORDS[(user + turn) % 12]} {texts[(user + turn) % 12]}",
            "chosen": f"{WORDS[turn]} {texts[(turn + 12) % EACH]}",
            "rejected": "no " * (1 + turn % 2) + texts[(turn + 30) % EACH],
            "user_text": f"I am {text}",
            "group": texts[user % 4],
        }
        for user, text in enumerate(texts)
        for turn in range(6)
    ]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (project / "feedback.jsonl").write_text(lines, encoding="utf-8")
    write_model(project / "tiny")
    more = {
        "data.source": "local",
        "data.path": "feedback.jsonl",
        "data.columns.user_text": "user_text",
        "data.columns.group": "group",
        "optimizer.epochs": 0.3,
        "generate.users": 6,
        "validate.max_quarantined": 0.9,
        "evaluate.sample_users": 12,
        "evaluate.sample_prompts": 6,
    }
    set_parameters(project / "params.yaml", SMALL | more)
    shutil.copy(ROOT / "dvc.yaml", project)


def _pipeline(trial: Trial, project: Path) -> None:
    """Run every stage in `project`, and DVC's plots of the results.

    Raises:
        Fault: One of them fails.
    """
    os.chdir(project)
    for stage in STAGES:
        if status := execute(stage.split()):
            last = (trial.said().splitlines() or [""])[-1]
            raise Fault("failed", f"{stage} ended with {status}: {last}"[:300])
    _dvc("init", "--no-scm")
    shutil.copytree(ROOT / ".dvc/plots", ".dvc/plots")
    _dvc("plots", "show")
    os.chdir(trial.directory)


def _dvc(*command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Fault("failed", f"dvc {command[0]}: {done.stderr.strip()[-300:]}")


# -- what was written ------------------------------------------------------------------------------


def _names(directory: Path) -> None:
    """Check that nothing was written beside the project, and that its files have harmless names."""
    beside = [path.name for path in directory.iterdir() if path.name != "project"]
    if beside or Path("/tmp/escaped").exists():
        raise Fault("escaped", f"written outside of the project: {beside or '/tmp/escaped'}")
    for path in directory.rglob("*"):
        if not SAFE.fullmatch(path.name):
            raise Fault("file name", ascii(str(path))[:300])


def _tables(project: Path) -> None:
    """Check that a spreadsheet takes every cell of every CSV file for text or a number."""
    for path in sorted(project.rglob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, strict=True))
        for number, row in enumerate(rows, 1):
            if len(row) != len(rows[0]):
                raise Fault("broken table", f"{path}: row {number} has {len(row)} cells")
            for cell in row:
                if cell.startswith(("=", "+", "-", "@", "\t", "\r")) and not _is_number(cell):
                    raise Fault("formula", f"{path}: row {number}: {ascii(cell)[:100]}")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _json_files(project: Path) -> None:
    for path in sorted(project.rglob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise Fault("broken JSON", f"{path}: {error}") from error


def _pages(project: Path) -> Iterator[Path]:
    """All pages, and what Prefect and the hub would make pages of."""
    yield from sorted(project.rglob("*.html"))
    made = project / "rendered"
    made.mkdir()
    for name, text in _markdown(project):
        page = made / f"{name}.html"
        page.write_text(MarkdownIt("commonmark").enable("table").render(text), encoding="utf-8")
        yield page


def _markdown(project: Path) -> Iterator[tuple[str, str]]:
    """The Markdown that goes elsewhere: Prefect's artifacts, and the models' cards."""
    from flows.artifacts import Metrics, images, metrics_markdown, validation_markdown

    def read(name: str) -> Any:
        return json.loads((project / "reports" / name).read_text(encoding="utf-8"))

    yield "validation", validation_markdown(read("validation.json"))
    flat = {"metrics.json": dict(_numbers(read("metrics.json")))}
    yield "metrics", metrics_markdown(flat, Metrics({}, {}))
    report = (project / "reports/report.html").read_text(encoding="utf-8")
    for number, (title, url) in enumerate(images(report)):
        image = base64.b64decode(url.partition(",")[2]).decode()
        (project / f"rendered/image-{number}.svg").write_text(image, encoding="utf-8")
        yield f"image-{number}", f"{title}\n\n![plot](image-{number}.svg)"
    for card in sorted(project.glob("models/*/README.md")):
        # What is between the first two lines of dashes is for programs.
        yield f"card-{card.parent.name}", card.read_text(encoding="utf-8").split("---\n", 2)[-1]


def _numbers(node: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _numbers(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(node, int | float):
        yield prefix, float(node)


class Reader(HTMLParser):
    """Finds marks in a page where they would do harm."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.harm: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag if tag in ("script", "style") else ""
        for name, value in attrs:
            text = (value or "").replace("\n", "").strip().lower()
            works = name.startswith("on") or text.startswith("javascript:") or name == "srcdoc"
            fetched = name in ("src", "href", "xlink:href", "content", "data", "action", "srcset")
            if (works and RAN in text) or (fetched and PLACE in text) or name == RAN:
                self.harm.append(f"<{tag} {name}={ascii(value)[:80]}>")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script" and data.lstrip().startswith(CODE):
            self.harm.append(f"<script>{data[:60]}")
        if self._inside == "style" and PLACE in data:
            self.harm.append(f"<style>{data[:60]}")


def looked_at(page: Path, browser: str | None) -> None:
    """Check a page by a parser and, if there is one, by a browser that runs what it would run.

    Raises:
        Fault: A text of somebody's works in it.
    """
    text = page.read_text(encoding="utf-8")
    if harm := Reader(text).harm:
        raise Fault("parsed as markup", f"{page}: {harm[0]}")
    if browser is None:
        return
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={page.resolve().parent / 'profile'}"]
    command += ["--virtual-time-budget=3000", "--dump-dom", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    shutil.rmtree(page.resolve().parent / "profile", ignore_errors=True)
    if done.returncode or "<html" not in done.stdout:
        raise NotRun(f"{browser}: {done.stderr.strip()[-200:]}")
    if harm := Reader(done.stdout).harm:
        raise Fault("ran", f"{page}: {harm[0]}")


def setup(_: Path) -> str | None:
    """The browser of this machine."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


TEXTS: Final = Part(
    "texts",
    f"Hostile ids and texts through every output, {EACH} in each",
    6,
    attempt,
    PATIENCE,
    setup=setup,
)
