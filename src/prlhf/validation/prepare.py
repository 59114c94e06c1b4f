"""From ingested rows to prepared splits: quarantine what is faulty, split the rest, verify it.

A Great Expectations suite finds the row faults, which are set aside with a reason each; suites over
the result decide whether the pipeline may go on.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from prlhf.data import SPLIT_COLUMNS, SPLITS, agreement
from prlhf.data.identity import PIECE, as_column, normal_ids, normal_texts
from prlhf.data.ids import content_hash, content_hashes
from prlhf.data.prompts import messages, normal_prompts, opening_keys, openings, prompt_lengths
from prlhf.infra.errors import UserError
from prlhf.params import SplitParams, ValidateParams
from prlhf.validation import checks
from prlhf.validation.spellings import DIFFERENCES, EXAMPLES, Spellings, visible
from prlhf.validation.splits import Prepared, split
from prlhf.validation.suite import Validator

SPANS_SIDES: Final = "spans_sides"
"""The reason of a pair whose two responses are on different sides: no fault of the data."""

REASONS: Final = (*checks.ROW_FAULTS, "contradiction", "duplicate", SPANS_SIDES)
"""Why a row is quarantined; a row with several faults has the first."""

_JUDGED: Final = ("user_id", "prompt", "chosen", "rejected")
_NAMES: Final = {"user_id": "users", "group": "groups", "unit": "units"}
"""Columns of ids, and what a message calls them."""
_IDS: Final = ("prompt_id", "opening_id", "pair_id", "unordered_id", "prompt_chars")


@dataclass(frozen=True)
class ValidationResult:
    """What the validation found.

    Attributes:
        prepared: The splits; None if the pipeline has to stop.
        quarantine: The rows that are in no split, as they were ingested, with a `reason`.
        summary: Counts and findings, the content of `validation.json`.
        warnings: What the user should know, though the pipeline goes on.
        spellings: What of it is about ids and prompts that are spelt in several ways.
        error: Why the pipeline has to stop; None if it may go on.
        validator: Has all findings; writes Data Docs.
    """

    prepared: Prepared | None
    quarantine: pd.DataFrame
    summary: dict[str, Any]
    warnings: list[str]
    spellings: list[str]
    error: UserError | None
    validator: Validator


def prepare(
    rows: pd.DataFrame,
    *,
    name: str,
    seed: int,
    rules: ValidateParams,
    shares: SplitParams,
    label_noise: float,
) -> ValidationResult:
    """Validate ingested rows and split the usable ones.

    Data that must not be used give a result with an error and without splits, so that the caller
    can save what was found.

    Args:
        rows: Ingested rows (`data.ROW_COLUMNS`).
        name: What to call the data set in messages.
        seed: The run's seed.
        rules: The `validate` section.
        shares: The `split` section.
        label_noise: Probability that the label of a training or validation pair is turned.

    Raises:
        RuntimeError: A check crashed, which is a fault of this program.
    """
    rows = rows.reset_index(drop=True)
    names = _spellings(rows, rules.keep_ids)
    rows, several = _with_ids(rows)
    validator = Validator()
    reasons = _reasons(rows, names["user_id"].ids, validator, rules)
    faulty = reasons.notna()
    quarantine = _set_aside(rows[faulty], reasons[faulty])
    named = {name: each.ids[~faulty] for name, each in names.items()}
    as_ingested = rows.loc[~faulty, list(named)].reset_index(drop=True)
    usable = rows[~faulty].assign(**named).reset_index(drop=True)
    del rows  # With many texts, the largest thing in memory.
    counts = _counts(reasons)

    problem = f"{int(faulty.sum())} of {len(faulty)} rows are unusable: {explain(counts)}"
    if names["user_id"].unnamed:
        problem += f"; {names['user_id'].unnamed_note('users')}"
    frame = faulty.astype("float64").to_frame("quarantined")
    validator.run("quarantine", frame, checks.quarantine_checks(rules, problem))
    pairs = usable["user_id"].value_counts(sort=False).rename("pairs").reset_index()
    users = pairs[pairs["pairs"] >= rules.min_pairs_per_user].reset_index(drop=True)
    validator.run("usable_users", users, checks.usable_user_checks(rules))
    prepared, error = None, _stop(validator, name)
    if error is None:
        try:
            prepared = split(usable, seed=seed, shares=shares, min_pairs=rules.min_pairs_per_user)
        except UserError as raised:
            error = raised
        else:
            spanning = usable.drop(prepared.pairs.index)
            spanning = spanning.assign(**as_ingested.loc[spanning.index])
            reason = pd.Series(SPANS_SIDES, spanning.index, dtype="str")
            counts = _counts(pd.concat([reasons, reason]))
            quarantine = pd.concat([quarantine, _set_aside(spanning, reason)], ignore_index=True)
            flipped = flip_labels(prepared.pairs, seed=seed, probability=label_noise)
            prepared = replace(prepared, pairs=flipped)
            _check_prepared(validator, prepared, usable["unordered_id"], rules, shares)
            error = _stop(validator, name)
    notes = [note for name, each in names.items() for note in each.notes(_NAMES[name])]
    if several:
        notes.append(_prompts_note(several))
    warnings = [*notes, *(prepared.notes if prepared else []), *validator.failures("warn")]
    rows_left = len(reasons) - len(quarantine)
    summary = {
        "success": error is None,
        "rows": {"ingested": len(reasons), "usable": rows_left, "quarantined": len(quarantine)},
        "quarantined": counts,
        "spellings": {
            **{_NAMES[name]: each.summary() for name, each in names.items()},
            "prompts": {"merged": len(several), "examples": several[:EXAMPLES]},
        },
        **(_describe(prepared) if prepared else {}),
        "warnings": warnings,
        "expectations": validator.summary(),
    }
    return ValidationResult(
        prepared if error is None else None,
        quarantine,
        summary,
        warnings,
        notes,
        error,
        validator,
    )


def flip_labels(pairs: pd.DataFrame, *, seed: int, probability: float) -> pd.DataFrame:
    """Swap chosen and rejected of training and validation pairs, each with this probability.

    Whether a pair is swapped depends on its content and the seed, not on its place: it is the same
    in a sample and in the whole. Test pairs keep their labels, as what is measured must be true.

    Args:
        pairs: Prepared pairs with `prompt_split`.
        seed: The run's seed.
        probability: From 0 to below 0.5.
    """
    if not probability:
        return pairs
    draws = pairs["pair_id"].map(lambda name: int(content_hash(str(seed), "label_noise", name), 16))
    flipped = (draws / 2.0**64 < probability) & (pairs["prompt_split"] != "test")
    swapped = pairs.assign(
        chosen=pairs["chosen"].mask(flipped, pairs["rejected"]),
        rejected=pairs["rejected"].mask(flipped, pairs["chosen"]),
    )
    return swapped.assign(pair_id=_pair_ids(swapped[list(_JUDGED)])["pair_id"])


def explain(counts: dict[str, int]) -> str:
    """Counts of quarantined rows in words, most frequent first."""
    found = sorted(((count, reason) for reason, count in counts.items() if count), reverse=True)
    return ", ".join(f"{count} {reason}" for count, reason in found) or "none"


def _counts(reasons: pd.Series[str]) -> dict[str, int]:
    found = reasons.value_counts()
    return {reason: int(found.get(reason, 0)) for reason in REASONS}


def _set_aside(rows: pd.DataFrame, reasons: pd.Series[str]) -> pd.DataFrame:
    return rows.drop(columns=list(_IDS)).assign(reason=reasons).reset_index(drop=True)


def _spellings(rows: pd.DataFrame, keep: Collection[str]) -> dict[str, Spellings]:
    """The ids of the rows' users, groups and, if there are any, units."""
    # A group may well be called None.
    kept = {"group": rows["group"].dropna().unique()}
    return {
        name: Spellings.of(rows[name], keep=kept.get(name, keep)) for name in _NAMES if name in rows
    }


def _with_ids(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """`rows` with the columns `_IDS`, missing where unknown, and prompts in several spellings.

    `opening_id` is that of the prompt's opening, the same for all turns of a dialogue, and for all
    openings that differ in white space only; `unordered_id` is the same for both verdicts on a pair
    by one user.
    """
    codes, distinct = pd.factorize(rows["prompt"])
    places = pa.array(codes, mask=codes < 0)
    prompts = as_column(distinct)
    opened, forms = openings(prompts), normal_prompts(prompts)
    found = pd.DataFrame({"id": _hashes(opened).to_pylist(), "opening": opened.to_pandas()})
    alike = found.groupby(pd.factorize(opening_keys(openings(forms)).to_pandas())[0])["id"]
    first = alike.transform("min")
    several = found.loc[(alike.transform("nunique") > 1) & (first == found["id"]), "opening"]
    # Each form is made once, and not for each row.
    pair_ids = _pair_ids(rows[list(_JUDGED)].assign(prompt=_taken(forms, places)))
    with_ids = rows.assign(
        prompt_id=_taken(_hashes(forms), places).astype("str"),
        opening_id=_taken(as_column(first), places).astype("str"),
        prompt_chars=_taken(prompt_lengths(prompts), places).astype("float64"),
        pair_id=pair_ids["pair_id"],
        unordered_id=pair_ids["unordered_id"],
    )
    return with_ids, sorted({messages(opening)[-1]["content"] for opening in several})


def _prompts_note(several: list[str]) -> str:
    shown = ", ".join(map(visible, several[:EXAMPLES]))
    more = f" and {len(several) - EXAMPLES} more" if len(several) > EXAMPLES else ""
    return (
        f"prompts in several spellings ({len(several)}) stay on one side; these differ in "
        f"{DIFFERENCES}: {shown}{more}"
    )


def _hashes(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    starts = range(0, max(1, len(texts)), PIECE)
    found = [content_hashes([texts.slice(start, PIECE)]) for start in starts]
    return pa.chunked_array(found, pa.large_string())


def _taken(values: pa.ChunkedArray, places: pa.Array) -> pd.Series[Any]:
    """The values at these places, missing where a place is."""
    found: pd.Series[Any] = values.combine_chunks().take(places).to_pandas()
    return found


def _pair_ids(judged: pd.DataFrame) -> pd.DataFrame:
    """`pair_id` and `unordered_id` of judgements (columns `_JUDGED`), missing where a part is.

    They are the same for all spellings of a judgement.
    """
    starts = range(0, max(1, len(judged)), PIECE)
    return pd.concat([_piece_of_pair_ids(judged.iloc[start : start + PIECE]) for start in starts])


def _piece_of_pair_ids(judged: pd.DataFrame) -> pd.DataFrame:
    whole = judged.dropna()
    forms = (normal_ids, normal_prompts, normal_texts, normal_texts)
    columns = [
        form(as_column(whole[name])).combine_chunks()
        for name, form in zip(_JUDGED, forms, strict=True)
    ]
    chosen, rejected = columns[2:]
    in_order = pc.less(chosen, rejected)
    first = pc.if_else(in_order, chosen, rejected)
    second = pc.if_else(in_order, rejected, chosen)
    ids = {
        "pair_id": content_hashes(columns),
        "unordered_id": content_hashes([*columns[:2], first, second]),
    }
    return pd.DataFrame(ids, whole.index, dtype="str").reindex(judged.index)


def _reasons(
    rows: pd.DataFrame, users: pd.Series[str], validator: Validator, rules: ValidateParams
) -> pd.Series[str]:
    """The reason of each faulty row, missing for usable ones."""
    responses = {}
    for name in ("chosen", "rejected"):
        responses[name] = normal_texts(as_column(rows[name])).to_pandas().astype("str")
        responses[f"{name}_chars"] = rows[name].str.len()
    unread = ["row", "source", "user_text", "group", "unseen", "opening_id", *SPLIT_COLUMNS]
    frame = rows.drop(columns=unread, errors="ignore").assign(user_id=users, **responses)
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
    return reasons


def _check_prepared(
    validator: Validator,
    prepared: Prepared,
    unordered_ids: pd.Series[str],
    rules: ValidateParams,
    shares: SplitParams,
) -> None:
    pairs = prepared.pairs.assign(
        chosen_longer=_chosen_longer(prepared.pairs), unordered_id=unordered_ids
    )
    validator.run("prepared", pairs, checks.prepared_checks(rules, shares))
    # By response, texts are the units; the column divides what is on a side.
    columns = ["chosen", "rejected"] if shares.by == "response" else ["unit"]
    placed = [pairs[[name, "prompt_split"]].set_axis(["unit", "side"], axis=1) for name in columns]
    units = pd.concat(placed).drop_duplicates(ignore_index=True)
    if shares.by == "response":
        units["unit"] = normal_ids(as_column(units["unit"])).to_pandas()
        units = units.drop_duplicates(ignore_index=True)
    validator.run("units", units, checks.unit_checks(shares))
    validator.run("prepared_users", prepared.users, checks.prepared_user_checks())


def _chosen_longer(pairs: pd.DataFrame) -> pd.Series[float]:
    """1 where the chosen response has more characters, 0 where fewer, 0.5 where as many."""
    longer: pd.Series[float] = agreement(pairs["chosen"].str.len() - pairs["rejected"].str.len())
    return longer


def _stop(validator: Validator, name: str) -> UserError | None:
    """The failed checks that must stop the pipeline, in one line."""
    problems = validator.failures("stop")
    return UserError("; ".join(problems), where=name) if problems else None


def _describe(prepared: Prepared) -> dict[str, Any]:
    """Users, pairs and balance of the prepared data."""
    pairs, seen = prepared.pairs, prepared.users["seen"]
    groups = pairs["group"].value_counts(normalize=True)
    return {
        "users": {
            "seen": int(seen.sum()),
            "unseen": int((~seen).sum()),
            "few": int(prepared.users["few"].sum()),
        },
        "pairs": {name: int((pairs["split"] == name).sum()) for name in (*SPLITS, "unseen")},
        "prompts": {
            name: int(pairs.loc[pairs["prompt_split"] == name, "prompt_id"].nunique())
            for name in SPLITS
        },
        "balance": {
            "chosen_longer": float(_chosen_longer(pairs).mean()),
            "largest_user": float(pairs["user_id"].value_counts(normalize=True).max()),
            "few_users": prepared.share_of_few,
            "groups": {str(group): float(groups[group]) for group in sorted(groups.index)},
        },
    }
