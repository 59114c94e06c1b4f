"""`dvc repro` in a clone, from nothing to the report, and what it leaves behind."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from e2e_data import ROOT
from e2e_project import STAGES, Project, Result

pytestmark = pytest.mark.e2e

METHODS = ("dpo", "pdpo")
GROUPS = ("longer", "shorter")
FIGURES = [
    *[f"accuracy.{m}.{key}" for m in METHODS for key in ("macro", "worst_user", "seen", "unseen")],
    *[f"accuracy.{m}.groups.{group}" for m in METHODS for group in GROUPS],
    *[f"length.{m}.groups.{group}" for m in ("base", *METHODS) for group in GROUPS],
    *[
        f"fluency.{m}.{key}"
        for m in ("base", *METHODS)
        for key in ("mean_nll", "base_mean_nll", "repetition", "empty")
    ],
    *[
        f"win_rate.pdpo_vs_{other}.{part}{key}"
        for other in ("dpo", "base")
        for part in ("", *[f"groups.{group}." for group in GROUPS])
        for key in ("win", "tie")
    ],
    "win_rate.pdpo_vs_dpo.win_rate",
    "win_rate.pdpo_vs_base.win_rate",
]


def look_up(tree: Any, path: str) -> Any:
    for name in path.split("."):
        tree = tree[name]
    return tree


def test_the_first_run_runs_every_stage(first_run: Result):
    assert sorted(first_run.ran) == sorted(STAGES)
    assert not first_run.errors


def test_immediately_after_nothing_is_left_to_do(project: Project):
    assert project.run("dvc", "repro").ran == []
    assert project.run("dvc", "status").out == "Data and pipelines are up to date.\n"


def test_metrics_have_every_figure_with_its_interval(finished: Project):
    metrics = finished.json("reports/metrics.json")
    for path in FIGURES:
        value, interval = look_up(metrics, path), look_up(metrics["interval"], path)
        assert interval["low"] <= value <= interval["high"], path
        if not path.startswith(("length", "fluency")):
            assert 0 <= value <= 1, path
    assert metrics["counts"]["users"] == {"seen": 10, "unseen": 4}


def test_a_response_of_100_kb_is_set_aside_and_the_run_goes_on(
    finished: Project, first_run: Result
):
    summary = finished.json("reports/validation.json")
    assert summary["quarantined"]["response_too_long"] > 0
    assert sum(summary["quarantined"].values()) == summary["rows"]["quarantined"]
    assert "validate: quarantined" in first_run.err
    assert "response_too_long" in first_run.err


class Page(HTMLParser):
    """What a browser would fetch for a page, and whose tags it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: set[str] = set()
        self.style = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in {"src", "srcset", "href", "xlink:href", "data", "poster", "action"}:
                self.fetched.append(value or "")
            if name == "style":
                self.style += value or ""

    def handle_data(self, data: str) -> None:
        if self.lasttag == "style":
            self.style += data

    def others(self) -> Iterator[str]:
        """Addresses outside of the page."""
        urls = re.findall(r"url\(\s*[\"']?([^\"')]*)", self.style)
        imports = re.findall(r"@import\s+([^;]+)", self.style)
        return (
            url for url in [*self.fetched, *urls, *imports] if not url.startswith(("#", "data:"))
        )


def test_the_report_is_one_self_contained_page(finished: Project):
    page = Page((finished / "reports/report.html").read_text(encoding="utf-8"))
    assert list(page.others()) == []
    assert {"style", "svg", "table"} <= page.tags
    assert not page.tags & {"script", "iframe", "object", "embed", "base"}


def test_the_report_shows_prompts_and_answers_as_text(finished: Project):
    # Not read as text: an answer may hold a carriage return.
    text = (finished / "reports/report.html").read_bytes().decode()
    shown = text.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")
    prompts = finished.json("reports/evaluation.json")["samples"]["prompts"]
    assert len(prompts) == 2
    for prompt in prompts:
        for message in prompt["messages"]:
            assert message["content"].startswith("<b>")
            assert message["content"] not in text
            assert escape(message["content"]) in shown
        assert {answer["method"] for answer in prompt["answers"]} == {"base", *METHODS}
        for answer in prompt["answers"]:
            assert escape(answer["text"]) in shown


def test_the_report_names_parameters_and_data(finished: Project):
    text = (finished / "reports/report.html").read_text(encoding="utf-8")
    assert "optimizer.micro_batch_size" in text
    hashes = finished.locked()
    for path in ("data/prepared", "models/pdpo"):
        assert hashes[path] in text


def test_the_summary_shows_the_result_and_where_the_report_is(finished: Project):
    out = finished.run("prlhf", "summary").out
    assert re.search(r"^P-DPO +\d+%", out, re.MULTILINE)
    assert out.endswith(f"\nReport: {finished / 'reports/report.html'}\n")


def test_dvc_shows_metrics_and_plots(project: Project):
    out = project.run("dvc", "metrics", "show", "--md").out
    assert "accuracy.pdpo.macro" in out
    project.run("dvc", "plots", "show", "--out", "plots")
    page = (project / "plots/index.html").read_text(encoding="utf-8")
    for title in ("Training loss", "Training accuracy", "per_user_accuracy", "lengths", "embedd"):
        assert title in page


def test_generated_files_are_current(tmp_path: Path):
    """`prlhf params docs` mends this."""
    committed = Project(tmp_path / "committed", ROOT / "src")
    (committed / "docs").mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml", "docs/parameters.md"):
        shutil.copy(ROOT / name, committed / name)
    committed.run("prlhf", "params", "docs", "--check")
    committed.run("prlhf", "params", "check")
