"""CSV for people: nothing in it runs, and our own readers get it as it was."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prlhf.infra.errors import UserError
from prlhf.infra.tables import inert, original, read_csv, write_csv

PIECES = [
    *"=+-@\t\r\n;,'\"|&<>",
    *("</script>", "<!--", "<script", "&lt;", "&amp;lt;", "amp;", "lt;", "\u2028", "\u2029"),
    *("=cmd|'/C calc'!A0", "＝1", "＠", " ", "\xa0", "\x0b", "a", "NA", "7", "é", "\ufeff"),  # noqa: RUF001
]
hostile = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), min_size=1, max_size=8).map(
    "".join
)
FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # noqa: RUF001


@given(hostile)
@settings(max_examples=500)
def test_texts_are_inert_and_come_back(text: str) -> None:
    written = inert(text)
    assert original(written) == text
    assert "<" not in written
    assert not written.lstrip().startswith(FORMULA)
    # Nor are the cells into which it falls where lines are divided at semicolons or tabs.
    for cell in re.split('[;,"\t\r\n]', written):
        assert not cell.lstrip().startswith(FORMULA)


@given(st.text(alphabet="&amplt;<'=", max_size=12), st.text(alphabet="&amplt;<'=", max_size=12))
@settings(max_examples=500)
def test_no_two_texts_are_written_alike(one: str, other: str) -> None:
    assert (inert(one) == inert(other)) == (one == other)
    assert original(inert(one)) == one


@pytest.mark.parametrize("text", ["ann", "a=b", "R&D", "x-1", "a.b@c.org", "it's", "Zoë", "1;2"])
def test_ordinary_names_are_written_as_they_are(text: str) -> None:
    assert inert(text) == text


@given(st.lists(hostile.filter(bool), min_size=1, max_size=5))
@settings(max_examples=150, deadline=None)
def test_tables_come_back_through_a_file(tmp_path_factory: pytest.TempPathFactory, ids) -> None:
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    table = pd.DataFrame({"user_id": ids, "x": [-1.5] * len(ids), "seen": [True] * len(ids)})
    table["group"] = None
    write_csv(path, table)
    back = read_csv(path, ["user_id", "group", "method"])
    assert back["user_id"].tolist() == ids
    assert back["x"].tolist() == [-1.5] * len(ids)  # numbers are numbers
    assert back["seen"].tolist() == [True] * len(ids)
    assert back["group"].isna().all()
    # As Python and DVC read it.
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(io.StringIO(stream.read())))
    assert [original(row["user_id"]) for row in rows] == ids


def test_ordinary_tables_have_the_usual_bytes(tmp_path: Path) -> None:
    table = pd.DataFrame({"user_id": ["a,b", "NA", None], "n": [1, -2, 3], "x": [0.1, -0.5, None]})
    write_csv(tmp_path / "t.csv", table)
    assert (tmp_path / "t.csv").read_text() == table.to_csv(index=False, lineterminator="\n")
    assert read_csv(tmp_path / "t.csv", ["user_id"])["user_id"].tolist()[:2] == ["a,b", "NA"]
    with pytest.raises(UserError, match="no such file"):
        read_csv(tmp_path / "absent.csv")


class Scripts(HTMLParser):
    """What a page's scripts are, as a browser divides it."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.others: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.scripts.append("")
        else:
            self.others.append(tag)

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] += data


@given(st.lists(hostile.filter(bool), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_a_page_of_dvc_holds_one_script_whatever_ids_are(tmp_path_factory, ids) -> None:
    """`dvc plots show` writes rows as JSON into a script, without regard for what is in them."""
    from dvc_render.vega import VegaRenderer

    path = tmp_path_factory.mktemp("plot") / "t.csv"
    write_csv(path, pd.DataFrame({"user_id": ids, "accuracy": [0.5] * len(ids)}))
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(io.StringIO(stream.read())))
    page = VegaRenderer(rows, "plot", x="accuracy", y="user_id").generate_html()
    parser = Scripts()
    parser.feed(f"<html><body>{page}</body></html>")
    assert len(parser.scripts) == 1
    assert parser.others == ["html", "body", "div"]
