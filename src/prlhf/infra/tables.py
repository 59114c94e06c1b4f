"""CSV files for people: spreadsheets open them, and `dvc plots show` puts them into a page.

A spreadsheet takes a cell that begins with `=`, `+`, `-` or `@` for a formula, which may run a
program ("CSV injection"), and in the page's script `</script>` ends the script. Ids and texts are
the words of others, so they are written such that they are neither: an apostrophe before what would
begin a formula, and `&lt;` for `<`. `read_csv` undoes both.
"""

import csv
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import pandas as pd

from prlhf.infra.io import require_file, write_text

# Where a cell begins, in spreadsheets that divide lines at other characters, too.
_BEGIN: Final = r'(?:^|(?<=[;,"\t\r\n]))'
# What makes it a formula, also in full width, behind blanks and the apostrophes of who wrote it.
_FORMULA: Final = r"(?='*\s*[=+\-@\t\r\n＝＋－＠])"  # noqa: RUF001
_BEGINS_FORMULA: Final = re.compile(_BEGIN + _FORMULA)
_MADE_INERT: Final = re.compile(f"{_BEGIN}'{_FORMULA}")
# The entity for `<`. One that the text holds itself gets an `amp;` more, to be told from ours.
_ENTITY: Final = re.compile("&((?:amp;)*)lt;")


def inert(text: str) -> str:
    """A text that is neither a formula nor markup, wherever a CSV file is put."""
    without_markup = _ENTITY.sub(r"&amp;\1lt;", text).replace("<", "&lt;")
    return _BEGINS_FORMULA.sub("'", without_markup)


def original(text: str) -> str:
    """The text that `inert` was given."""
    without_markup = _MADE_INERT.sub("", text)
    return _ENTITY.sub(
        lambda found: f"&{found[1][len('amp;') :]}lt;" if found[1] else "<", without_markup
    )


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table without its index, atomically; its texts are made `inert`."""
    texts = {
        str(name): column.map(_inert)
        for name, column in table.items()
        if not pd.api.types.is_numeric_dtype(column.dtype)
    }
    table = table.assign(**texts)
    # Python leaves carriage returns unquoted, which readers take for the end of a line.
    if any(column.astype("str").str.contains("\r").any() for column in texts.values()):
        text = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    else:
        text = table.to_csv(index=False, lineterminator="\n")
    write_text(path, text)


def read_csv(path: str | Path, texts: Collection[str] = ()) -> pd.DataFrame:
    """Read what `write_csv` wrote.

    Args:
        path: The file.
        texts: Columns of texts, as far as there are such columns: names such as "NA" or "007" are
            texts, and only empty cells are missing.

    Raises:
        UserError: There is no such file.
    """
    require_file(path)
    dtypes = dict.fromkeys(texts, str)
    table = pd.read_csv(path, dtype=dtypes, keep_default_na=False, na_values=[""])
    found = [name for name in texts if name in table]
    return table.assign(**{n: table[n].map(original, na_action="ignore") for n in found})


def _inert(value: Any) -> Any:
    return inert(value) if isinstance(value, str) else value
