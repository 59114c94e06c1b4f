"""From ingested rows to prepared splits: quarantine what is faulty, split the rest, verify it.

A Great Expectations suite finds the row faults, which are set aside with a reason each; suites over
the result decide whether the pipeline may go on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from prlhf.data import (
    GENERIC,
    PAIR_COLUMNS,
    SPLIT_COLUMNS,
    SPLITS,
    USER_COLUMNS,
    agreement,
    index_users,
)
from prlhf.data.ids import content_hashes, shuffled
from prlhf.data.prompts import PIECE, prompt_lengths
from prlhf.infra.errors import UserError
from prlhf.params import SplitParams, ValidateParams
from prlhf.validation import checks
from prlhf.validation.suite import Validator

REASONS: Final = (*checks.ROW_FAULTS, "contradiction", "duplicate", checks.TOO_FEW_PAIRS)
"""Why a row is quarantined; a row with several faults has the first."""

NAMED: Final = 5
"""How many users a note names."""


@dataclass(frozen=True)
class Prepared:
    """Pairs ready for training and evaluation.

    Attributes:
        pairs: All of them, in source order: `data.PAIR_COLUMNS`, `prompt_split` (the side of
            the prompt) and `split` (the same, or "unseen" for an unseen user's pair).
        users: `data.USER_COLUMNS`, one row each, sorted by `user_id`.
        notes: What a reader of the results should know about the split.
    """

    pairs: pd.DataFrame
    users: pd.DataFrame
    notes: list[str] = field(default_factory=list)

    def part(self, name: str) -> pd.DataFrame:
        """The table of one split: train, validation, test or unseen."""
        found = self.pairs[self.pairs["split"] == name].reset_index(drop=True)
        extra = ["prompt_split"] if name == "unseen" else []
        return found[[*PAIR_COLUMNS, *extra]]


@dataclass(frozen=True)
class ValidationResult:
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
    found = reasons.value_counts()
    counts = {reason: int(found.get(reason, 0)) for reason in REASONS}

    problem = f"{int(faulty.sum())} of {len(faulty)} rows are unusable: {explain(counts)}"
    frame = faulty.astype("float64").to_frame("quarantined")
    validator.run("quarantine", frame, checks.quarantine_checks(rules, problem))
    users = usable[["user_id"]].drop_duplicates(ignore_index=True)
    validator.run("usable_users", users, checks.usable_user_checks(rules))
    prepared, error = None, _stop(validator, name)
    if error is None:
        try:
            prepared = split(usable, seed=seed, shares=shares)
        except UserError as raised:
            error = raised
        else:
            _check_prepared(validator, prepared, usable, rules)
            error = _stop(validator, name)
    warnings = [*(prepared.notes if prepared else []), *validator.failures("warn")]
    summary = {
        "success": error is None,
        "rows": {"ingested": len(reasons), "usable": len(usable), "quarantined": len(quarantine)},
        "quarantined": counts,
        **(_describe(prepared) if prepared else {}),
        "warnings": warnings,
        "expectations": validator.summary(),
    }
    return ValidationResult(
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
    found = pa.array(texts, pa.large_string())
    return found if isinstance(found, pa.ChunkedArray) else pa.chunked_array([found])


def _taken(values: pa.ChunkedArray, places: pa.Array) -> pd.Series[Any]:
    """The values at these places, missing where a place is."""
    found: pd.Series[Any] = values.combine_chunks().take(places).to_pandas()
    return found


def _pair_ids(judged: pd.DataFrame) -> pd.DataFrame:
    """`pair_id` and `unordered_id` of judgements, missing where a part is."""
    whole = judged.dropna()
    columns = [_arrow(whole[name]).combine_chunks() for name in judged.columns]
    chosen, rejected = columns[2:]
    in_order = pc.less(chosen, rejected)
    first = pc.if_else(in_order, chosen, rejected)
    second = pc.if_else(in_order, rejected, chosen)
    ids = {
        "pair_id": content_hashes(columns),
        "unordered_id": content_hashes([*columns[:2], first, second]),
    }
    return pd.DataFrame(ids, whole.index, dtype="str").reindex(judged.index)


def _reasons(rows: pd.DataFrame, validator: Validator, rules: ValidateParams) -> pd.Series[str]:
    """The reason of each faulty row, missing for usable ones."""
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


# -- splits ---------------------------------------------------------------------------------------


def split(rows: pd.DataFrame, *, seed: int, shares: SplitParams) -> Prepared:
    """Split usable rows by prompt, and set unseen users apart.

    Prompts and users are ordered by a hash of the seed and themselves, so that added or removed
    rows leave most others on their side. Prompts that seen users judged are split first, the rest
    by the same shares: every split of seen users gets its share however few prompts there are. A
    data set that brings its own test side keeps it; validation is then taken from the rest.

    Args:
        rows: Usable rows with `pair_id` and `prompt_id`; `data.SPLIT_COLUMNS` if they have any.
        seed: The run's seed.
        shares: The `split` section.

    Raises:
        UserError: There are too few prompts or users for the shares asked for.
    """
    notes: list[str] = []
    needed = set(SPLITS) if shares.validation else {"train", "test"}
    unseen = _unseen_users(rows, seed, shares.unseen_users)
    of_unseen = rows["user_id"].isin(unseen)
    if "side" in rows:
        prompt_split = _own_sides(rows, of_unseen, seed, shares, notes)
    else:
        sides = _sides(rows.loc[~of_unseen, "prompt_id"].unique(), seed, shares)
        if not needed <= set(sides.values()):
            raise UserError(
                f"{len(sides)} distinct prompts are too few for training, validation "
                f"({shares.validation:g}) and test ({shares.test:g})",
                where="params.yaml: split",
                fix="a prompt is never on two sides: more prompts, or smaller shares",
            )
        sides |= _sides(set(rows["prompt_id"].unique()) - sides.keys(), seed, shares)
        prompt_split = rows["prompt_id"].map(sides)

    trained = set(rows.loc[~of_unseen & (prompt_split == "train"), "user_id"].unique())
    untrained = sorted(set(rows["user_id"].unique()) - trained - unseen)
    if untrained:
        some = ", ".join(untrained[:NAMED]) + (", ..." if len(untrained) > NAMED else "")
        notes.append(f"users without a training prompt count as unseen ({len(untrained)}): {some}")
    seen_row = rows["user_id"].isin(trained)
    pairs = rows.assign(prompt_split=prompt_split, split=prompt_split.where(seen_row, "unseen"))
    for name in SPLITS:
        if name in needed and not (pairs["split"] == name).any():
            raise UserError(
                f"no pair of a seen user is on a {name} prompt",
                where="params.yaml: split",
                fix="more pairs per user, or another split",
            )
    index = index_users(sorted(trained))
    pairs["user_index"] = pairs["user_id"].map(index).fillna(GENERIC).astype("int64")
    return Prepared(pairs[[*PAIR_COLUMNS, "prompt_split", "split"]], _users(pairs), notes)


def _unseen_users(rows: pd.DataFrame, seed: int, share: float) -> set[str]:
    """The data set's own unseen users if it marks any user at all, else a random share.

    At least one user is unseen if a share is asked for, but two stay seen where there are two.
    """
    marked = rows["unseen"].notna()
    if marked.any():
        unseen = set(rows.loc[rows["unseen"].fillna(False).astype(bool), "user_id"].unique())
        if unseen == set(rows["user_id"].unique()):
            raise UserError("the data set marks all of its users as unseen")
        return unseen
    users = shuffled(rows["user_id"].unique(), seed, "unseen_users")
    return set(users[: min(_count(len(users), share), max(0, len(users) - 2))])


def _sides(prompt_ids: Iterable[str], seed: int, shares: SplitParams) -> dict[str, str]:
    """The side of each distinct prompt."""
    order = shuffled(prompt_ids, seed, "prompts")
    test, validation = (_count(len(order), share) for share in (shares.test, shares.validation))
    names = ["test"] * test + ["validation"] * validation + ["train"] * len(order)
    return dict(zip(order, names, strict=False))


def _own_sides(
    rows: pd.DataFrame, of_unseen: pd.Series[bool], seed: int, shares: SplitParams, notes: list[str]
) -> pd.Series[str]:
    """The side of each row by the data set's own split, with validation taken from training.

    A unit that is on both sides is on the training side: what is trained on is never tested.
    Validation takes its share of the seen users' training units, but no user's last one; and the
    same share of the training units that only unseen users judged.
    """
    unit = rows["prompt_id"]
    if "unit" in rows:
        unit = rows["unit"].fillna(unit)
    trained = (rows["side"] == "train").groupby(unit).transform("any")
    if moved := int((trained & (rows["side"] == "test")).sum()):
        notes.append(
            f"pairs of the data set's test side whose prompts it also trains on ({moved}) count "
            "as training pairs"
        )
    judged = pd.DataFrame({"unit": unit, "user_id": rows["user_id"]})
    judged = judged[trained & ~of_unseen].drop_duplicates()
    left = judged["user_id"].value_counts().to_dict()
    users_of: dict[str, list[str]] = {}
    for name, user in zip(judged["unit"], judged["user_id"], strict=True):
        users_of.setdefault(name, []).append(user)
    wanted = _count(len(users_of), shares.validation)
    validation: set[str] = set()
    for name in shuffled(users_of, seed, "prompts"):
        if len(validation) == wanted:
            break
        if all(left[user] > 1 for user in users_of[name]):
            validation.add(name)
            for user in users_of[name]:
                left[user] -= 1
    others = shuffled(set(unit[trained]) - users_of.keys(), seed, "prompts")
    validation |= set(others[: _count(len(others), shares.validation)])
    side = trained.map({True: "train", False: "test"})
    return side.mask(unit.isin(validation), "validation")


def _count(n: int, share: float) -> int:
    """This share of n, rounded half up; at least one when there is a share."""
    return max(1, math.floor(n * share + 0.5)) if share else 0


def _users(pairs: pd.DataFrame) -> pd.DataFrame:
    columns = ("group", "user_text", "user_index")
    by_user = pairs.groupby("user_id", sort=True)
    users = by_user.agg(**{name: (name, "first") for name in columns}).reset_index()
    users["seen"] = users["user_index"] != GENERIC
    for name in SPLITS:
        counts = pairs.loc[pairs["prompt_split"] == name, "user_id"].value_counts()
        users[f"pairs_{name}"] = users["user_id"].map(counts).fillna(0).astype("int64")
    return users[list(USER_COLUMNS)]
