"""Users by the ids that files and callers have for them."""

import numbers
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

from prlhf.data import GENERIC, index_users
from prlhf.data.identity import normal_id
from prlhf.data.prompts import describe
from prlhf.infra.errors import UserError

EXACT: Final = 2**53
"""Whole floats from here on may stand for several whole numbers."""

_MISSING: Final = {
    "nan",
    "none",
    "null",
    "nil",
    "n/a",
    "na",
    "nat",
    "undefined",
    "1.#ind",
    "1.#qnan",
}
_ERRORS: Final = {"ref!", "value!", "name?", "null!", "num!", "div/0!"}  # of spreadsheets
_NAMED: Final = 3  # ids that a message names


def id_text(value: object) -> str:
    """An id as the pipeline knows it: text as it is, a whole number without a fraction.

    Raises:
        ValueError: It is something else, or a float of so many digits that some are lost.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
        if abs(number) >= EXACT:
            raise ValueError(lost_digits(repr(number)))
        if number.is_integer():
            return str(int(number))
    raise ValueError(f"expected text or a whole number, found {describe(value)}")


def lost_digits(found: str) -> str:
    """What is wrong with an id that went through a float or a spreadsheet, in words."""
    return f"{found} is an id that lost digits in a spreadsheet or as a float"


def reads_as_missing(text: str) -> bool:
    """Whether an id is what programs write where there is none: `nan`, `None`, `#N/A`, `-`.

    An id of nothing but punctuation names nobody, either.
    """
    key = normal_id(text).casefold()
    if all(unicodedata.category(character)[0] == "P" for character in key):
        return True
    return key.strip("\"'`()[]{}<>#-") in _MISSING | _ERRORS or key == r"\n"


class UserIndex:
    """The seen users' indices, found by any spelling of their ids (`identity.normal_id`).

    Args:
        users: Ids of the seen users in index order.
    """

    def __init__(self, users: Sequence[str]) -> None:
        self._users = list(users)
        # A model of an earlier version may have two spellings of one id: the first counts.
        self._index = {
            normal_id(user): index for user, index in reversed(index_users(self._users).items())
        }

    def find(self, user: object) -> int:
        """The index of a user; the generic user's for None and for strangers.

        Raises:
            UserError: It is no id: neither text nor a whole number, nor None.
        """
        if user is None:
            return GENERIC
        try:
            return self._index.get(normal_id(id_text(user)), GENERIC)
        except ValueError as error:
            raise UserError(str(error), where="users", fix="None is the generic user") from error

    def find_all(self, users: Iterable[object]) -> list[int]:
        """The indices of users, None for the generic one.

        Raises:
            UserError: One is a stranger, or no id.
        """
        asked = list(users)
        found = [self.find(user) for user in asked]
        strangers = {
            str(user): None
            for user, index in zip(asked, found, strict=True)
            if index == GENERIC and user is not None
        }
        if strangers:
            names = ", ".join(map(repr, list(strangers)[:_NAMED]))
            more = f" and {len(strangers) - _NAMED} more" if len(strangers) > _NAMED else ""
            raise UserError(
                f"not among the {len(self._users)} users that the model knows: {names}{more}",
                where="users",
                fix="None stands for somebody it has not met",
            )
        return found
