"""What the data must meet: the Great Expectations suites of the validation stage.

Faults of the ingested rows are quarantined; faults of what is left, and of the prepared pairs,
units and users, stop the pipeline.
"""

# The library re-exports its expectations without marking them as exported.
# mypy: disable-error-code="attr-defined"

import sys
from typing import Final

import great_expectations.expectations as gxe

from prlhf.data import PAIR_COLUMNS, SPLITS, USER_COLUMNS
from prlhf.params import SplitParams, ValidateParams
from prlhf.validation.suite import Check, ExpectColumnPairValuesToBeDistinct

ROW_FAULTS: Final = (
    "missing_user",
    "empty_prompt",
    "empty_chosen",
    "empty_rejected",
    "chosen_equals_rejected",
    "prompt_too_long",
    "response_too_long",
    "bad_weight",
)
"""Faults that a row shows by itself, in order of precedence."""


def row_checks(rules: ValidateParams) -> list[Check]:
    """Checks of the ingested rows, whose responses are in the form of `identity.normal_text`.

    `duplicate` and `contradiction` mark every row of a group; which of them to keep is decided
    later. Expectations of values pass over missing ones, so those are checked apart.
    """
    not_null = gxe.ExpectColumnValuesToNotBeNull
    lengths = gxe.ExpectColumnValueLengthsToBeBetween
    between = gxe.ExpectColumnValuesToBeBetween
    longest = rules.max_response_chars
    expectations = [
        ("missing_user", not_null(column="user_id")),
        ("empty_prompt", not_null(column="prompt")),
        ("empty_chosen", not_null(column="chosen")),
        ("empty_chosen", lengths(column="chosen", min_value=1)),
        ("empty_rejected", not_null(column="rejected")),
        ("empty_rejected", lengths(column="rejected", min_value=1)),
        ("chosen_equals_rejected", _distinct_responses()),
        ("prompt_too_long", between(column="prompt_chars", max_value=rules.max_prompt_chars)),
        ("response_too_long", between(column="chosen_chars", max_value=longest)),
        ("response_too_long", between(column="rejected_chars", max_value=longest)),
        ("bad_weight", not_null(column="weight")),
        (
            "bad_weight",
            between(column="weight", min_value=0, strict_min=True, max_value=sys.float_info.max),
        ),
        ("duplicate", gxe.ExpectColumnValuesToBeUnique(column="pair_id")),
        ("contradiction", gxe.ExpectColumnValuesToBeUnique(column="unordered_id")),
    ]
    return [Check(name, expectation, "quarantine") for name, expectation in expectations]


def quarantine_checks(rules: ValidateParams, problem: str) -> list[Check]:
    """Checks of how much was quarantined: a row for each ingested one, `quarantined` 0 or 1.

    Args:
        rules: The `validate` section.
        problem: What was quarantined and why, in words.
    """
    limit = rules.max_quarantined
    share = gxe.ExpectColumnMeanToBeBetween(column="quarantined", max_value=limit)
    # What was quarantined may have braces of its own.
    problem = problem.replace("{", "{{").replace("}", "}}")
    message = f"{problem}; validate.max_quarantined allows a share of {limit:g}"
    return [Check("quarantined_share", share, message=message)]


def usable_user_checks(rules: ValidateParams) -> list[Check]:
    """Checks of the users who have enough usable pairs, one row each."""
    return [
        Check(
            "enough_users",
            gxe.ExpectTableRowCountToBeBetween(min_value=rules.min_users),
            message=f"users with at least {rules.min_pairs_per_user} usable pairs "
            f"(validate.min_pairs_per_user): {{observed}}; validate.min_users is {rules.min_users}",
        )
    ]


def prepared_checks(rules: ValidateParams, shares: SplitParams) -> list[Check]:
    """Checks of all prepared pairs, with `chosen_longer` (1, 0, or 0.5 on a tie)."""
    sides = ["prompt_split", "split"] + ["unit"] * (shares.by != "response")
    texts = ("pair_id", "prompt_id", "user_id", "prompt", "chosen", "rejected")
    types = dict.fromkeys(texts, "str") | {
        "user_index": "int64",
        "weight": "float64",
        "row": "int64",
    }
    schema = gxe.ExpectTableColumnsToMatchSet(
        column_set=[*PAIR_COLUMNS, "prompt_split", "split"], exact_match=False
    )
    share = rules.max_majority_share
    return [
        Check("schema", schema, message="a column of the prepared pairs is missing"),
        *(
            Check(
                f"type_{name}",
                gxe.ExpectColumnValuesToBeOfType(column=name, type_=kind),
                message=f'the type of column "{name}" is {{observed}}, not {kind}',
            )
            for name, kind in types.items()
        ),
        *(
            Check(
                f"complete_{name}",
                gxe.ExpectColumnValuesToNotBeNull(column=name),
                message=f'{{unexpected}} values are missing in column "{name}"',
            )
            for name in (*types, *sides)
        ),
        *(
            Check(
                f"length_{name}",
                gxe.ExpectColumnValueLengthsToBeBetween(
                    column=name, min_value=1, max_value=rules.max_response_chars
                ),
                message=f"{{unexpected}} {name} responses are empty or too long",
            )
            for name in ("chosen", "rejected")
        ),
        Check(
            "distinct_responses",
            _distinct_responses(),
            message="{unexpected} pairs have equal responses",
        ),
        Check(
            "no_duplicates",
            gxe.ExpectCompoundColumnsToBeUnique(
                column_list=["user_id", "prompt_id", "chosen", "rejected"]
            ),
            message="{unexpected} pairs come more than once",
        ),
        Check(
            "no_contradictions",
            gxe.ExpectColumnValuesToBeUnique(column="unordered_id"),
            message="{unexpected} pairs are judged both ways by one user",
        ),
        Check(
            "split_names",
            gxe.ExpectColumnValuesToBeInSet(column="split", value_set=[*SPLITS, "unseen"]),
            message="{unexpected} pairs are in no known split",
        ),
        Check(
            "class_balance",
            gxe.ExpectColumnMeanToBeBetween(
                column="chosen_longer", min_value=round(1 - share, 9), max_value=share
            ),
            "warn",
            "the longer response is the chosen one in {observed:.1%} of the pairs: the labels may "
            "carry nothing but length",
        ),
    ]


def unit_checks(shares: SplitParams) -> list[Check]:
    """Checks of the distinct `unit`, `side`: nothing that must stay together is on two sides."""
    what = "responses" if shares.by == "response" else "prompts or units"
    return [
        Check(
            "no_leakage",
            gxe.ExpectColumnValuesToBeUnique(column="unit"),
            message=f"{{unexpected}} {what} are on more than one side of the split",
        )
    ]


def prepared_user_checks() -> list[Check]:
    """Checks of the prepared users."""
    return [
        Check(
            "schema",
            gxe.ExpectTableColumnsToMatchOrderedList(column_list=list(USER_COLUMNS)),
            message="the columns of the users are {observed}",
        ),
        Check(
            "no_user_leakage",
            gxe.ExpectColumnValuesToBeUnique(column="user_id"),
            message="{unexpected} users are both seen and unseen",
        ),
    ]


def _distinct_responses() -> ExpectColumnPairValuesToBeDistinct:
    return ExpectColumnPairValuesToBeDistinct(
        column_A="chosen", column_B="rejected", description="The two responses differ."
    )
