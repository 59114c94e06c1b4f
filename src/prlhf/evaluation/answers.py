"""Who gets which answer, and whose answer wins.

A *personalised* method answers each seen user as that user: under tokens of the user's own, or
behind what the user says of themselves; every other method gives all users the same, generic
answer. Users held out of training get an answer of their own from a method that reads what they
say, and the generic answer of every other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prlhf.evaluation.fluency import HEALTHY

if TYPE_CHECKING:
    import pandas as pd

    from prlhf.evaluation.judges import Judge

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


def answers_to_unseen(measured: pd.DataFrame, group_sizes: Mapping[str, int]) -> pd.DataFrame:
    """The texts that unseen users get from one method.

    Args:
        measured: Rows of one method as `fluency.measure` returns them.
        group_sizes: How many unseen users each preference group has.

    Returns:
        The texts for single unseen users, if there are any; otherwise the generic texts, once for
        every group. Column `weight` says how many users each stands for.
    """
    import pandas as pd

    own = measured[measured["condition"] == "unseen"]
    if len(own):
        return own.assign(weight=1).reset_index(drop=True)
    generic = measured[measured["condition"] == "generic"]
    if not group_sizes:
        return generic.iloc[:0].assign(weight=0)
    return pd.concat(
        [generic.assign(group=group, weight=size) for group, size in sorted(group_sizes.items())],
        ignore_index=True,
    )


def compare(judge: Judge, answers: pd.DataFrame, generic: pd.DataFrame) -> pd.DataFrame:
    """Judge each answer against the other method's generic answer to the same prompt.

    Args:
        judge: Speaks for the groups of `answers`.
        answers: `prompt_id, group, text, state` of each answer, and `weight` where one answer
            stands for several users.
        generic: The other method's texts; those under condition `generic` are used.

    Returns:
        `prompt_id, group, weight, verdict` for each answer that has a counterpart and whose
        group the judge can speak for; `verdict` is 1 (answer wins), 0 (tie) or -1 (loses).
    """
    if "weight" not in answers:
        answers = answers.assign(weight=1)
    mine = answers[answers["group"].isin(judge.groups)]
    theirs = generic.loc[generic["condition"] == "generic", ["prompt_id", "text", "state"]]
    both = mine.merge(theirs, on="prompt_id", suffixes=("", "_other"))
    both["verdict"] = verdicts(
        judge.compare(list(both["text"]), list(both["text_other"]), list(both["group"])),
        (both["state"] == HEALTHY).to_numpy(),
        (both["state_other"] == HEALTHY).to_numpy(),
    )
    return both[["prompt_id", "group", "weight", "verdict"]]


def verdicts(
    judged: NDArray[np.int8], first_healthy: NDArray[np.bool_], second_healthy: NDArray[np.bool_]
) -> NDArray[np.int8]:
    """Let empty and degenerate texts lose, whatever the judge made of them.

    Against each other they tie. All arguments are `[comparisons]`.
    """
    outcome = np.where(first_healthy & second_healthy, judged, 0)
    outcome = np.where(first_healthy & ~second_healthy, 1, outcome)
    outcome = np.where(~first_healthy & second_healthy, -1, outcome)
    return outcome.astype(np.int8)
