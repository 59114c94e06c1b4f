"""What the flows are made of, without Prefect: the graph, DVC's words, processes."""

from __future__ import annotations

import base64
import os
import re
from html import unescape
from pathlib import Path

import psutil
import pytest

from flows.graph import Graph, Node, Settings, select, settings
from flows.process import Commands, Stopped, TimedOut
from flows.stage import Kind, succeeded
from prlhf.infra.errors import UserErrors


def graph() -> Graph:
    needs = {"data": (), "train@a": ("data",), "train@b": ("data",), "report": ("train@a",)}
    nodes = {name: Node(name, before, stale=False) for name, before in needs.items()}
    return Graph(Path("/p"), Path("/p/.dvc/cache"), (), (), nodes)


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (None, ["data", "train@a", "train@b", "report"]),
        (["report"], ["data", "train@a", "report"]),
        (["train"], ["data", "train@a", "train@b"]),
        (["train@b"], ["data", "train@b"]),
    ],
)
def test_targets_come_with_what_they_need(targets, names):
    assert [node.name for node in select(graph(), targets)] == names


def test_unknown_targets_are_all_named():
    with pytest.raises(UserErrors) as caught:
        select(graph(), ["reprot", "train", "zzz"])
    assert caught.value.lines() == [
        "reprot: no such stage (did you mean report?)",
        "zzz: no such stage (dvc.yaml has data, train@a, train@b, report)",
    ]


def test_meta_sets_what_it_says_and_faults_are_named():
    node = Node("train@a", (), stale=True, meta={"gpu": True, "timeout": 60, "owner": "us"})
    assert settings(node) == Settings(gpu=True, timeout=60)
    wrong = Node("train@a", (), stale=True, meta={"retries": True, "timeout": 0})
    with pytest.raises(UserErrors) as caught:
        settings(wrong)
    assert caught.value.lines() == [
        "dvc.yaml: stages.train.meta.retries: must be a whole number (at least 0), not True",
        "dvc.yaml: stages.train.meta.timeout: must be a number of seconds (above 0), not 0",
    ]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("Running stage 'a':", Kind.RAN),
        ("Stage 'a' is cached - skipping run, checking out outputs", Kind.RESTORED),
        ("Stage 'a' didn't change, skipping", Kind.UNCHANGED),
    ],
)
def test_what_dvc_did_is_read_from_its_words(line, kind):
    assert succeeded([line, "Use `dvc push` to send your updates to remote storage."]) is kind


def run(commands: Commands, script: str, lines: list[str], timeout: float | None = None) -> int:
    return commands.run(
        ["sh", "-c", script],
        cwd=Path.cwd(),
        environment=os.environ,
        on_line=lines.append,
        timeout=timeout,
    )


def test_a_command_gives_its_lines_and_its_status():
    lines: list[str] = []
    assert run(Commands(), "echo one; echo two >&2; exit 3", lines) == 3
    assert lines == ["one", "two"]


def test_what_a_command_leaves_behind_ends_with_it():
    lines: list[str] = []
    assert run(Commands(), "sleep 600 >/dev/null 2>&1 & echo $!", lines) == 0
    assert not alive(int(lines[0]))


def test_a_command_that_takes_too_long_ends_with_all_its_processes():
    lines: list[str] = []
    script = "trap '' INT; sleep 600 & echo $!; wait"
    with pytest.raises(TimedOut):
        run(Commands(grace=0.2), script, lines, timeout=2)
    assert lines
    assert not alive(int(lines[0]))


def test_after_a_stop_nothing_starts():
    commands = Commands()
    commands.stop()
    with pytest.raises(Stopped):
        run(commands, "true", [])


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_drawings_of_a_report_carry_its_style():
    from flows.artifacts import images

    page = "<style>.a { fill: red }</style><svg viewBox='0 0 1 1'><title>T &amp; U</title></svg>"
    [(title, url)] = images(page)
    assert title == "T & U"
    svg = base64.b64decode(url.partition(",")[2]).decode()
    assert "xmlns=" in svg
    assert ".a { fill: red }" in svg


@pytest.mark.parametrize(
    "words",
    [
        "</td><script>alert(1)</script>",
        "![x](http://a.b/c)",
        "[x](javascript:y)",
        "a|b\n\n# c",
        "`<b>`",
    ],
)
def test_the_words_of_others_are_no_markup_in_artifacts(words):
    from markdown_it import MarkdownIt

    from flows.artifacts import Metrics, metrics_markdown, validation_markdown

    pages = [
        validation_markdown({"rows": {words: 1, "x": words}, "warnings": [words]}),
        metrics_markdown({"m.json": {f"accuracy.{words}": 0.5}}, Metrics({}, {})),
    ]
    for page in pages:
        html = MarkdownIt("commonmark").enable("table").render(page)
        tags = set(re.findall(r"<([a-z0-9]+)", html))
        assert tags <= {
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "ul",
            "li",
            "h3",
            "p",
            "strong",
        }
        assert " ".join(words.split()) in unescape(html)


def test_the_table_of_metrics_has_the_headline_first_and_of_the_others_what_changed():
    from flows.artifacts import HEADLINE, ROWS, Metrics, metrics_markdown

    committed = {HEADLINE: {"pdpo.accuracy": 0.5}}
    before = {HEADLINE: {"pdpo.accuracy": 0.75}, "m.json": {"same": 1.0, "interval.low": 1.0}}
    many = {f"figure.{number:02}": float(number) for number in range(ROWS + 2)}
    now = {HEADLINE: {"pdpo.accuracy": 0.5}, "m.json": {"same": 1.0, "interval.low": 2.0, **many}}
    lines = metrics_markdown(now, Metrics(committed, before)).splitlines()
    assert lines[0] == f"{ROWS + 3} of {ROWS + 4} metrics changed in this run."
    assert lines[6] == "| pdpo.accuracy | 0.5 | 0.75 | **0.5** | -0.25 |"
    rows = [line for line in lines if line.startswith("| figure.")]
    assert len(rows) == ROWS
    assert rows[0] == "| figure.00 |  |  | **0** | new |"
    assert lines[-1] == "2 more have changed: `dvc metrics diff` has them."
    assert not any("same" in line or "interval" in line for line in lines)
