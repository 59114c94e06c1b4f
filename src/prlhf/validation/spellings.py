"""One spelling for each id, and what to tell of it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from prlhf.data.identity import INVISIBLE, as_column, normal_id, normal_ids
from prlhf.data.users import reads_as_missing

EXAMPLES: Final = 3
"""Ids, and spellings of an id, that a message shows at most."""

DIFFERENCES: Final = "white space, invisible characters or Unicode form"
"""What spellings of the same differ in."""

WIDTH: Final = 40
"""Characters of a text that a message shows at most."""

_INVISIBLE = re.compile(f"[{INVISIBLE}]")
_NUMBER = re.compile(r"[+-]?0*(\d+)(?:\.0*)?")


@dataclass(frozen=True)
class Spellings:
    """The ids of a column in one spelling each.

    Attributes:
        ids: For each row one of the spellings that its id comes in: the most frequent, of equally
            frequent ones the first in order. Missing where no id is.
        several: That spelling and the others, most frequent first, of ids that come in several.
        unnamed: Spellings that read as a missing id, and in how many rows they are.
        alike: Ids that count as different but differ in no more than case, width or zeros.
        rounded: Numbers of 16 digits and more, if all of them have zeros behind the 15th: where
            spreadsheets round.
    """

    ids: pd.Series[str]
    several: dict[str, list[str]]
    unnamed: dict[str, int]
    alike: list[list[str]]
    rounded: list[str]

    @classmethod
    def of(cls, column: pd.Series[str], *, keep: Collection[str]) -> Spellings:
        """Find the ids of a column.

        Args:
            column: Ids in any spelling, missing where there is none.
            keep: Ids that are somebody's, though they read as missing.
        """
        rows = column.value_counts(sort=False)
        names = normal_ids(as_column(rows.index)).to_pylist()
        known = pd.DataFrame({"spelling": rows.index, "id": names, "rows": rows.to_numpy()})
        known = known.astype({"spelling": "str", "id": "str"})  # also where there are none
        kept = {normal_id(name) for name in keep}
        nobody = np.array(
            [reads_as_missing(name) and name not in kept for name in known["id"]], np.bool_
        )
        unnamed = known[nobody & (known["id"] != "")]
        known = known[~nobody].sort_values(
            ["rows", "spelling"], ascending=[False, True], ignore_index=True
        )
        first = known.groupby("id", sort=False)["spelling"].transform("first")
        repeated = known[known["id"].duplicated(keep=False)].groupby("id", sort=True)["spelling"]
        distinct = known.drop_duplicates("id")
        looks = distinct["id"].map(_look)
        twins = looks.duplicated(keep=False)
        alike = distinct[twins].groupby(looks[twins], sort=True)["spelling"]
        return cls(
            column.map(dict(zip(known["spelling"], first, strict=True))).astype("str"),
            {found.iloc[0]: found.iloc[1:].tolist() for _, found in repeated},
            dict(zip(unnamed["spelling"], unnamed["rows"].tolist(), strict=True)),
            [found.tolist() for _, found in alike],
            _rounded(distinct["id"]),
        )

    def summary(self) -> dict[str, Any]:
        """What `validation.json` says."""
        return {
            "merged": {
                "ids": len(self.several),
                "spellings": sum(map(len, self.several.values())) + len(self.several),
                "examples": [[name, *others] for name, others in _first(self.several).items()],
            },
            "missing": self.unnamed,
            "alike": {"groups": len(self.alike), "examples": self.alike[:EXAMPLES]},
            "rounded": {"ids": len(self.rounded), "examples": self.rounded[:EXAMPLES]},
        }

    def notes(self, what: str) -> list[str]:
        """The same in words; `what` are the ids, in the plural."""
        notes = []
        if self.several:
            shown = "; ".join(_listed([one, *more]) for one, more in _first(self.several).items())
            notes.append(
                f"{what} in several spellings ({len(self.several)}) count as one each; these "
                f"differ in {DIFFERENCES}: {shown}{_more(self.several)}"
            )
        if self.unnamed:
            notes.append(self.unnamed_note(what))
        if self.alike:
            shown = "; ".join(map(_listed, self.alike[:EXAMPLES]))
            notes.append(f"{what} that look alike count as different: {shown}{_more(self.alike)}")
        if self.rounded:
            shown = ", ".join(self.rounded[:EXAMPLES]) + _more(self.rounded)
            notes.append(
                f"long numbers among the {what} all end in zeros, as when a spreadsheet rounded "
                f"them: {shown}; compare them with where they came from"
            )
        return notes

    def unnamed_note(self, what: str) -> str:
        """Which values read as missing ids, and what to do about it."""
        names = sorted(self.unnamed, key=lambda name: (-self.unnamed[name], name))
        shown = ", ".join(f"{visible(name)} ({self.unnamed[name]})" for name in names[:EXAMPLES])
        return (
            f"what reads as missing among the {what} counts as none "
            f"({sum(self.unnamed.values())} rows): {shown}{_more(self.unnamed)}; "
            "validate.keep_ids lists exceptions"
        )


def _rounded(ids: pd.Series[str]) -> list[str]:
    long = ids[ids.str.fullmatch(r"\d{16,}")].sort_values().tolist()
    tails = "".join(each[15:] for each in long)
    # Six digits that are zero by chance are one in a million.
    return long if len(tails) >= 6 and not tails.strip("0") else []


def visible(text: str) -> str:
    """A text in quotes, in which everything can be seen and told apart, cut to `WIDTH`."""
    shown = "".join(
        character.encode("unicode_escape").decode()
        if _INVISIBLE.match(character)
        or unicodedata.combining(character)
        or (not character.isprintable())
        else character
        for character in text[:WIDTH]
    )
    return f'"{shown}{"…" * (len(text) > WIDTH)}"'


def _look(name: str) -> str:
    """What ids have in common that are easily taken for each other."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    number = _NUMBER.fullmatch(folded)
    return number[1] if number else folded


def _first(found: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return dict(list(found.items())[:EXAMPLES])


def _listed(names: list[str]) -> str:
    return ", ".join(map(visible, names[: EXAMPLES + 1])) + _more(names, EXAMPLES + 1)


def _more(found: Collection[Any], shown: int = EXAMPLES) -> str:
    return f" and {len(found) - shown} more" if len(found) > shown else ""
