"""From ingested rows to prepared splits: quarantine what is faulty, split the rest, verify it.

The row faults are found by a Great Expectations suite and set aside with a reason each; suites over
the result decide whether the pipeline may go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from prlhf.data import checks
from prlhf.data.canonical import prompt_lengths
from prlhf.data.contract import SPLIT_COLUMNS, SPLITS
from prlhf.data.splits import Prepared, split
from prlhf.data.suite import Validator
from prlhf.errors import UserError
from prlhf.io import content_hashes

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from prlhf.params import SplitParams, ValidateParams

REASONS: Final = (*checks.ROW_FAULTS, "contradiction", "duplicate", checks.TOO_FEW_PAIRS)
"""Why a row is quarantined; a row with several faults has the first."""

PIECE: Final = 2**16
"""Rows whose ids are made at a time."""


@dataclass(frozen=True)
class Outcome:
    """What the validation found.

    Attributes:
        prepared: The splits; None if the pipeline has to stop.
        quarantine: The faulty rows as they were ingested, with a `reason`.
        summary: Counts and findings, the content of `validation.json`.
        warnings: What the user should know, though the pipeline goes on.
        error: Why the pipeline has to stop; None if it may go on.
        validator: Has all findings; writes Data Docs.
    """

    prepared: Prepared | None
    quarantine: pd.DataFrame
    summary: dict[str, Any]
    warnings: list[str]
    error: UserError | None
    validator: Validator


def prepare(
    rows: pd.DataFrame, *, name: str, seed: int, rules: ValidateParams, shares: SplitParams
) -> Outcome:
    """Validate ingested rows and split the usable ones.

    Data that must not be used come back as an `Outcome` with an error and without splits, so that
    the caller can save what was found.

    Args:
        rows: Ingested rows (`contract.ROW_COLUMNS`).
        name: What to call the data set in messages.
        seed: The run's seed.
        rules: The `validate` section.
        shares: The `split` section.

    Raises:
        RuntimeError: A check crashed, which is a fault of this program.
    """
    rows = _with_ids(rows.reset_index(drop=True))
    validator = Validator()
    reasons = _reasons(rows, validator, rules)
    faulty = reasons.notna()
    quarantine = rows[faulty].drop(columns=["prompt_id", "pair_id", "unordered_id", "prompt_chars"])
    quarantine = quarantine.assign(reason=reasons[faulty]).reset_index(drop=True)
    usable = rows[~faulty].reset_index(drop=True)
    del rows  # With many texts, the largest thing in memory.
    counts = _counts(reasons)

    _check_quarantine(validator, faulty, counts, rules)
    _check_users(validator, usable, rules)
    prepared, error = None, _stop(validator, name)
    if error is None:
        try:
            prepared = split(usable, seed=seed, shares=shares)
        except UserError as problem:
            error = problem
    if prepared is not None:
        _check_prepared(validator, prepared, usable, rules)
        error = _stop(validator, name)
    warnings = [
        finding.message
        for findings in validator.findings.values()
        for finding in findings
        if not finding.success and finding.check.on_failure == "warn"
    ]
    warnings = [*(prepared.notes if prepared else []), *warnings]
    summary = {
        "success": error is None,
        "rows": {"ingested": len(reasons), "usable": len(usable), "quarantined": len(quarantine)},
        "quarantined": counts,
        **(_describe(prepared) if prepared else {}),
        "warnings": warnings,
        "expectations": validator.summary(),
    }
    return Outcome(
        prepared if error is None else None, quarantine, summary, warnings, error, validator
    )


def explain(counts: dict[str, int]) -> str:
    """Counts of quarantined rows in words, most frequent first."""
    found = sorted(((count, reason) for reason, count in counts.items() if count), reverse=True)
    return ", ".join(f"{count} {reason}" for count, reason in found) or "none"


def _with_ids(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with `prompt_id`, `prompt_chars`, `pair_id`, `unordered_id`; missing where unknown.

    `unordered_id` is the same for both verdicts on a pair by one user.
    """
    import pandas as pd
    import pyarrow as pa

    codes, distinct = pd.factorize(rows["prompt"])
    places = pa.array(codes, mask=codes < 0)
    prompts = _arrow(distinct)
    starts = range(0, max(1, len(rows)), PIECE)
    prompt_ids = [content_hashes([prompts.slice(start, PIECE)]) for start in starts]
    judged = rows[["user_id", "prompt", "chosen", "rejected"]]
    pair_ids = pd.concat([_pair_ids(judged.iloc[start : start + PIECE]) for start in starts])
    return rows.assign(
        prompt_id=_taken(pa.chunked_array(prompt_ids, pa.large_string()), places).astype("str"),
        prompt_chars=_taken(prompt_lengths(prompts), places).astype("float64"),
        pair_id=pair_ids["pair_id"],
        unordered_id=pair_ids["unordered_id"],
    )


def _arrow(texts: pd.Series[str] | pd.Index[str]) -> pa.ChunkedArray:
    import pyarrow as pa

    found = pa.array(texts, pa.large_string())
    return found if isinstance(found, pa.ChunkedArray) else pa.chunked_array([found])


def _taken(values: pa.ChunkedArray, places: pa.Array) -> pd.Series[Any]:
    """The values at these places, missing where a place is."""
    found: pd.Series[Any] = values.combine_chunks().take(places).to_pandas()
    return found


def _pair_ids(judged: pd.DataFrame) -> pd.DataFrame:
    """`pair_id` and `unordered_id` of judgements, missing where a part is."""
    import pandas as pd
    import pyarrow.compute as pc

    whole = judged.dropna()
    columns = [_arrow(whole[name]).combine_chunks() for name in judged.columns]
    chosen, rejected = columns[2:]
    in_order = pc.less(chosen, rejected)
    first, second = (
        pc.if_else(in_order, *pair) for pair in ((chosen, rejected), (rejected, chosen))
    )
    ids = {
        "pair_id": content_hashes(columns),
        "unordered_id": content_hashes([*columns[:2], first, second]),
    }
    return pd.DataFrame(ids, whole.index, dtype="str").reindex(judged.index)


def _reasons(rows: pd.DataFrame, validator: Validator, rules: ValidateParams) -> pd.Series[str]:
    """The reason of each faulty row, missing for usable ones."""
    import pandas as pd

    texts = {name: rows[name].str.strip() for name in ("user_id", "chosen", "rejected")}
    unread = ["row", "source", "user_text", "group", "unseen", *SPLIT_COLUMNS]
    frame = rows.drop(columns=unread, errors="ignore").assign(**texts)
    failing: dict[str, set[int]] = {}
    for finding in validator.run("rows", frame, checks.row_checks(rules)):
        failing.setdefault(finding.check.name, set()).update(finding.rows)
    reasons = pd.Series(None, index=rows.index, dtype="str")
    for reason in reversed(checks.ROW_FAULTS):
        reasons[sorted(failing[reason])] = reason

    # Only rows without a fault of their own compete: a faulty twin must not cost the sound one.
    repeated = rows.loc[sorted(failing["contradiction"]), ["pair_id", "unordered_id"]]
    repeated = repeated[reasons[repeated.index].isna()]
    verdicts = repeated.groupby("unordered_id")["pair_id"].transform("nunique")
    reasons[repeated.index[repeated["pair_id"].duplicated(keep="first")]] = "duplicate"
    reasons[repeated.index[verdicts > 1]] = "contradiction"

    pairs = rows.loc[reasons.isna(), "user_id"].value_counts(sort=False)
    users = pairs.rename("pairs").rename_axis("user_id").reset_index()
    (finding,) = validator.run("users", users, checks.user_checks(rules))
    sparse = rows["user_id"].isin(users.loc[finding.rows, "user_id"])
    reasons[sparse & reasons.isna()] = checks.TOO_FEW_PAIRS
    return reasons


def _counts(reasons: pd.Series[str]) -> dict[str, int]:
    found = reasons.value_counts()
    return {reason: int(found.get(reason, 0)) for reason in REASONS}


def _check_quarantine(
    validator: Validator, faulty: pd.Series[bool], counts: dict[str, int], rules: ValidateParams
) -> None:
    problem = f"{int(faulty.sum())} of {len(faulty)} rows are unusable: {explain(counts)}"
    frame = faulty.astype("float64").to_frame("quarantined")
    validator.run("quarantine", frame, checks.quarantine_checks(rules, problem))


def _check_users(validator: Validator, usable: pd.DataFrame, rules: ValidateParams) -> None:
    users = usable[["user_id"]].drop_duplicates(ignore_index=True)
    validator.run("usable_users", users, checks.usable_user_checks(rules))


def _check_prepared(
    validator: Validator, prepared: Prepared, usable: pd.DataFrame, rules: ValidateParams
) -> None:
    pairs = prepared.pairs.assign(
        chosen_longer=_chosen_longer(prepared.pairs), unordered_id=usable["unordered_id"]
    )
    validator.run("prepared", pairs, checks.prepared_checks(rules))
    sides = pairs[["prompt_id", "prompt_split"]].drop_duplicates(ignore_index=True)
    validator.run("prompts", sides, checks.prompt_checks())
    validator.run("prepared_users", prepared.users, checks.prepared_user_checks())


def _chosen_longer(pairs: pd.DataFrame) -> pd.Series[float]:
    """1 where the chosen response has more characters, 0 where fewer, 0.5 where as many."""
    difference = pairs["chosen"].str.len() - pairs["rejected"].str.len()
    return (difference > 0).astype("float64").mask(difference == 0, 0.5)


def _stop(validator: Validator, name: str) -> UserError | None:
    """The failed checks that must stop the pipeline, in one line."""
    problems = [
        finding.message
        for findings in validator.findings.values()
        for finding in findings
        if not finding.success and finding.check.on_failure == "stop"
    ]
    return UserError("; ".join(problems), where=name) if problems else None


def _describe(prepared: Prepared) -> dict[str, Any]:
    """Users, pairs and balance of the prepared data."""
    pairs, users = prepared.pairs, prepared.users
    seen = users["seen"]
    groups = pairs["group"].value_counts(normalize=True)
    return {
        "users": {"seen": int(seen.sum()), "unseen": int((~seen).sum())},
        "pairs": {name: int((pairs["split"] == name).sum()) for name in (*SPLITS, "unseen")},
        "prompts": {
            name: int(pairs.loc[pairs["prompt_split"] == name, "prompt_id"].nunique())
            for name in SPLITS
        },
        "balance": {
            "chosen_longer": float(_chosen_longer(pairs).mean()),
            "largest_user": float(pairs["user_id"].value_counts(normalize=True).max()),
            "groups": {str(group): float(groups[group]) for group in sorted(groups.index)},
        },
    }
