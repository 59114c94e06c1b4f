"""Who gets which answer.

A *personalised* method answers each seen user as that user: under tokens of the user's own, or
behind what the user says of themselves; every other method gives all users the same, generic
answer. Users held out of training get an answer of their own from a method that reads what they
say, and the generic answer of every other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

BASE = "base"
"""The name under which the untuned base model is generated and scored."""

PROMPTED = "prompted"
"""The name under which the base model is generated and scored behind the user's text, untuned."""

BASELINE = "dpo"
"""The method that the gain of the others is measured against."""

PERSONALISED = "pdpo"
"""The method that the report is about, where there are several personalised ones."""


def is_personalised(generated: pd.DataFrame) -> bool:
    """Whether a table of generated texts answers single users."""
    return bool((generated["condition"] == "user").any())


def method_order(names: Mapping[str, bool]) -> list[str]:
    """Method names in reading order: the untuned, dpo, other baselines, then pdpo and its like.

    Args:
        names: Whether each method is personalised.
    """
    known = (BASE, PROMPTED, BASELINE, PERSONALISED)
    return sorted(
        names,
        key=lambda name: (
            names[name] and name != PROMPTED,
            known.index(name) if name in known else len(known),
            name,
        ),
    )


def meetings(personalised: Mapping[str, bool]) -> list[tuple[str, str]]:
    """The pairs of methods whose answers meet.

    Args:
        personalised: The methods in reading order, and whether each is personalised.

    Returns:
        `(method, other)`: every personalised method with each that is not, and with each
        personalised one behind it; what users say, without any tuning, is behind all of them.
    """
    own = [name for name in personalised if personalised[name]]
    own.sort(key=lambda name: name == PROMPTED)
    generic = [name for name in personalised if not personalised[name]]
    return [(name, other) for i, name in enumerate(own, 1) for other in [*generic, *own[i:]]]


def answers_to_users(measured: pd.DataFrame, groups: list[str]) -> pd.DataFrame:
    """The texts that seen users get from one method, each with the group of who gets it.

    Args:
        measured: Rows of one method as `fluency.measure` returns them.
        groups: The preference groups of the seen users; empty where none are known.

    Returns:
        For a personalised method, its texts for single users. For any other, each text once for
        every group (once, with no group, where none are known): all users get all of them.
    """
    import pandas as pd

    if is_personalised(measured):
        return measured[measured["condition"] == "user"].reset_index(drop=True)
    generic = measured[measured["condition"] == "generic"]
    if not groups:
        return generic.assign(group=None).reset_index(drop=True)
    return pd.concat([generic.assign(group=group) for group in groups], ignore_index=True)
