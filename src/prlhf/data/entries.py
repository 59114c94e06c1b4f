"""Records of nested fields, read with checks: every fault names its file, row and field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prlhf.data.contract import describe, encodable
from prlhf.errors import UserError


@dataclass(frozen=True, slots=True)
class Entry:
    """An object of a record, or the record itself.

    A field that is not there and one that is null are the same: Parquet cannot tell them apart.

    Attributes:
        fields: What it holds.
        where: The record's file and line, for error messages.
        prefix: The object's own path in the record, with a trailing dot.
    """

    fields: Mapping[str, Any]
    where: str
    prefix: str = ""

    def text(self, name: str) -> str:
        """A text.

        Raises:
            UserError: There is none.
        """
        value = self.fields.get(name)
        if not isinstance(value, str):
            raise self._wrong(name, "text", value)
        if not encodable(value):
            raise self.error(name, "holds an unpaired surrogate, which is no valid Unicode text")
        return value

    def text_or_none(self, name: str) -> str | None:
        """A text that may be missing.

        Raises:
            UserError: It is something else than text.
        """
        return None if self.fields.get(name) is None else self.text(name)

    def integer(self, name: str) -> int:
        """A whole number, also as a float without a fraction.

        Raises:
            UserError: There is none.
        """
        value = self.fields.get(name)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(name, "a whole number", value)
        return value

    def flag(self, name: str) -> bool:
        """True or false.

        Raises:
            UserError: It is neither.
        """
        value = self.fields.get(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def child(self, name: str) -> Entry:
        """An object within this one.

        Raises:
            UserError: There is none.
        """
        value = self.fields.get(name)
        if not isinstance(value, Mapping):
            raise self._wrong(name, "an object", value)
        return Entry(value, self.where, f"{self.prefix}{name}.")

    def children(self, name: str) -> list[Entry]:
        """The objects of a list.

        Raises:
            UserError: It is no list, or holds something else.
        """
        value = self.fields.get(name)
        if not isinstance(value, list):
            raise self._wrong(name, "a list", value)
        for number, item in enumerate(value):
            if not isinstance(item, Mapping):
                raise self._wrong(f"{name}[{number}]", "an object", item)
        return [
            Entry(item, self.where, f"{self.prefix}{name}[{number}].")
            for number, item in enumerate(value)
        ]

    def error(self, name: str, problem: str) -> UserError:
        """What is wrong with a field, for the caller to raise."""
        return UserError(f'"{self.prefix}{name}": {problem}', where=self.where)

    def _wrong(self, name: str, expected: str, value: object) -> UserError:
        return self.error(name, f"expected {expected}, found {describe(value)}")
