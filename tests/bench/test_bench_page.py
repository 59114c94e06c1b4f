"""The page of the benchmarks: what is generated changes, what is written by hand stays."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.page import bars, number, publish, replaced, size, table, times
from prlhf.infra.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PAGE = """# Title

Before.

<!-- users: generated -->
old
<!-- users: end -->

Between.

<!-- training: generated -->
kept
<!-- training: end -->
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "benchmarks.md"
    path.write_text(PAGE, encoding="utf-8")
    return path


def test_only_the_generated_part_changes(page: Path) -> None:
    new = replaced(page, "users", "new")
    assert new == PAGE.replace("\nold\n", "\n\nnew\n\n")
    page.write_text(new, encoding="utf-8")
    assert replaced(page, "users", "new") == new


def test_a_page_without_a_place_is_refused_and_nothing_written(page: Path) -> None:
    drawing = bars("t", [("g", [("a", 1.0, "1")])], "s")
    with pytest.raises(UserError, match="no place for the benchmark generation"):
        publish(page, "generation", {}, "text", drawing)
    assert page.read_text(encoding="utf-8") == PAGE
    assert list(page.parent.iterdir()) == [page]
    with pytest.raises(UserError, match="no such page"):
        publish(page.with_name("other.md"), "users", {}, "text", drawing)


def test_numbers_and_plot_lie_beside_the_page(page: Path) -> None:
    drawing = bars("Time & more", [("g", [("a", 1.0, "1"), ("b <i>", 2.0, "2")])], "s")
    publish(page, "users", {"seconds": [0.5]}, "A table.", drawing)
    text = page.read_text(encoding="utf-8")
    assert "![Time & more](benchmarks/users.svg)\n\nA table.\n" in text
    assert json.loads((page.parent / "benchmarks" / "users.json").read_text()) == {"seconds": [0.5]}
    svg = ElementTree.parse(page.parent / "benchmarks" / "users.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert svg.tag == f"{space}svg"
    widths = [float(bar.get("width", 0)) for bar in svg.iter(f"{space}rect")]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)
    assert "b <i>" in [label.text for label in svg.iter(f"{space}text")]


def test_the_documentation_has_a_place_for_each_benchmark() -> None:
    page = ROOT / "docs" / "benchmarks.md"
    for name in ("training", "users", "generation"):
        assert "\n\nnew\n\n" in replaced(page, name, "new")


def test_numbers_have_three_digits() -> None:
    values = (0.0123456, 0.123456, 1.23456, 12.3456, 123.456, 1234.56, 123456.0)
    assert [number(value) for value in values] == [
        *("0.0123", "0.12", "1.23", "12.3", "123", "1,230", "123,000"),
    ]
    assert [size(value) for value in (12, 9216, 9.2e6, 2.76e10)] == [
        *("12 B", "9.22 kB", "9.20 MB", "27.6 GB"),
    ]
    assert times({"median": 2.0, "min": 1.5, "max": 3.0}) == "2.00 (1.50 to 3.00)"


def test_tables_align_numbers_right() -> None:
    assert table(["", "s"], [["a", "1"]]) == "|  | s |\n| --- | ---: |\n| a | 1 |"
