"""The page that a reviewer reads: Markdown that GitHub renders, whatever a change names."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from prlhf.project.compare import (
    ChangedFile,
    ChangedMetric,
    ChangedParameter,
    Changes,
    Reason,
    Revision,
    StaleStage,
    Warned,
)
from prlhf.project.pipeline import shown
from prlhf.project.review_page import MAX_LENGTH, code, render

NOTHING = Changes(
    Revision("origin/main", "0123456789"), Revision("workspace", None), (), (), 4, (), (), (), ()
)
ALPHA = ChangedParameter(
    "params.yaml", "train.alpha", {"old": 0.5, "new": 0.25}, ("train@a", "train@b")
)
STAGES = (
    StaleStage("train@a", True, True, (Reason("{}", "train.alpha"), Reason("command")), ()),
    StaleStage("report", False, True, (), ("train@a",)),
)


def cells(line: str) -> list[str]:
    """The cells of a row of a table, as GitHub splits it."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def tables(text: str) -> list[list[list[str]]]:
    parts = [part.splitlines() for part in text.split("\n\n") if part.startswith("| ")]
    return [[cells(line) for line in part] for part in parts]


def test_no_change_is_one_sentence():
    assert render(NOTHING) == (
        "### What this change does to the pipeline\n\n"
        "`origin/main` (0123456) \N{RIGHTWARDS ARROW} the workspace: no parameters changed; "
        "no stage becomes stale.\n"
    )


def test_the_whole_page():
    changes = replace(
        NOTHING,
        parameters=(ALPHA,),
        stages=STAGES,
        files=(
            ChangedFile("src/a.py", "code", "changed", ("train@a",)),
            ChangedFile("src/b.py", "code", "changed", ("train@a",)),
            ChangedFile("raw", "data", "new", ("report",)),
            ChangedFile("src/c", "code", "changed", ("report",), ("src/c/d.py", "src/c/e/f.py")),
        ),
        metrics=(
            ChangedMetric("m.json", "accuracy.a.macro", 0.5, 0.75, (0.7, 0.8)),
            ChangedMetric("m.json", "words", 3, 4, None),
        ),
        removed=("old",),
        warnings=(Warned("lock", "It is stale.", {"seed is 8, not 7": ("train@a",)}),),
    )
    text = render(changes)
    assert "1 parameter and 5 files of code or data changed; of 4 stages, 1 becomes stale" in text
    assert "stale, 1 more by following them." in text
    assert "\n> [!WARNING]\n> It is stale.\n> - `train@a`: `seed is 8, not 7`\n" in text
    parameters, stages, metrics = tables(text)
    assert parameters[0] == ["Parameter", "`origin/main`", "`workspace`", "Read by"]
    assert parameters[2] == ["`train.alpha`", "`0.5`", "`0.25`", "`train@a`, `train@b`"]
    assert stages[2:] == [
        ["`train@a`", "direct", "`train.alpha`, command", "yes"],
        ["`report`", "follows", "`train@a`", ""],
    ]
    assert metrics[2:] == [["`accuracy.a.macro`", "0.5", "0.75", "+0.25", "0.7 to 0.8"]]
    assert "- Changed code: `src/a.py`, `src/b.py` \N{RIGHTWARDS ARROW} `train@a`\n" in text
    assert "- Changed code: `src/c` (`d.py`, `e/f.py`) \N{RIGHTWARDS ARROW} `report`\n" in text
    assert "- New data: `raw` \N{RIGHTWARDS ARROW} `report`\n" in text
    assert "Removed stages: `old`\n" in text
    assert text.endswith("1 more differ: `prlhf params diff --all` shows them.\n")
    every = tables(render(changes, every_metric=True))[-1]
    assert every[-1] == ["`words`", "`3`", "`4`", "+1", ""]


def test_tables_are_aligned_and_have_as_many_cells_in_every_row():
    values = {"old": "a|b", "new": "\\|"}
    changes = replace(NOTHING, parameters=(ALPHA, ALPHA._replace(key="x", values=values)))
    [table] = [part for part in render(changes).split("\n\n") if part.startswith("| ")]
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [len(cells(line)) for line in lines] == [4] * 4


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        ("true", '"true"'),
        ("0.5", '"0.5"'),
        ("sigmoid", "sigmoid"),
        ([1, "z"], '[1, "z"]'),
        ({}, "{}"),
    ],
)
def test_values_are_shown_so_that_kinds_differ(value, text):
    assert shown(value) == text


def test_an_absent_key_is_not_null():
    changes = replace(NOTHING, parameters=(ALPHA._replace(values={"new": None}),))
    [[_, _, row]] = tables(render(changes))
    assert row[1:3] == ["absent", "`null`"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("@everyone <b>", "`@everyone <b>`"),
        ("a`b", "``a`b``"),
        ("`a``", "``` `a`` ```"),
        ("a\n# b", "`a # b`"),
        ("x" * 99, f"`{'x' * 59}\N{HORIZONTAL ELLIPSIS}`"),
        ("", "(empty)"),
    ],
)
def test_foreign_text_stays_code(text, shown):
    assert code(text) == shown


def test_a_large_change_still_fits_a_comment():
    stages = tuple(f"stage{number}" for number in range(300))
    changes = replace(
        NOTHING,
        parameters=tuple(ALPHA._replace(key="k" * 90 + str(n), stages=stages) for n in range(500)),
        files=tuple(
            ChangedFile("src/" + "f" * 90 + str(n), "code", "changed", stages[n:])
            for n in range(200)
        ),
        warnings=tuple(
            Warned("lock", "Stale.", {f"{n} {'w' * 300}": stages for n in range(200)})
            for _ in range(3)
        ),
    )
    text = render(changes)
    assert len(text) < MAX_LENGTH + 100
    assert text.endswith("\n\nCut short: `prlhf params diff --all` shows the rest.\n")
    assert len(render(changes, every_metric=True)) > MAX_LENGTH
