"""What the token limits cut off, and the pairs whose two responses they leave equal.

A model reads responses up to `tokens.max_response`. Two that are the same up to there get the same
log-probability but for rounding, which would then decide what the model is said to prefer. Such
pairs are set aside: nothing is trained on them, and no model is judged by them. So are pairs of
different texts that the tokenizer makes the same tokens of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prlhf.data.reference import EQUAL_AFTER_CUT, EQUAL_TOKENS, SET_ASIDE, SET_ASIDE_COLUMNS
from prlhf.infra.errors import UserError
from prlhf.infra.progress import Progress
from prlhf.models.base import Encoder

REASONS: Final = (EQUAL_AFTER_CUT, EQUAL_TOKENS)
"""Why a pair is set aside."""

ALMOST_ALL: Final = 0.99
"""Share of texts for which a second, smaller limit is named: one text may be very long."""


class Kind(NamedTuple):
    """Texts under one limit: their fields, what they are called, and what they lose."""

    fields: Mapping[str, str]
    loss: str


KINDS: Final = {
    "max_prompt": Kind({"prompt": "prompts"}, "lose their middle"),
    "max_response": Kind(
        {"chosen": "chosen responses", "rejected": "rejected responses"}, "lose their end"
    ),
    "max_user_text": Kind(
        {"user_text": "users' texts"}, "lose their end in front of methods that read them"
    ),
}


@dataclass(frozen=True)
class Truncation:
    """What was found.

    Attributes:
        set_aside: the pairs that models cannot tell apart, `SET_ASIDE_COLUMNS`.
        summary: the content of `reports/reference.json`.
    """

    set_aside: pd.DataFrame
    summary: dict[str, Any]

    @property
    def warnings(self) -> list[str]:
        """One sentence for each limit that cuts something, and one for pairs set aside."""
        return list(self.summary["warnings"].values())

    def told_apart(self, table: pd.DataFrame, split: str) -> pd.DataFrame:
        """The pairs of a split that are not set aside."""
        equal = self.set_aside.loc[self.set_aside["split"] == split, "pair_id"]
        return table[~table["pair_id"].isin(equal)]


def measure(
    tables: Mapping[str, pd.DataFrame], encoder: Encoder, whole: Encoder, positions: int | None
) -> Truncation:
    """Count the texts that the limits cut, and find the pairs that they leave equal.

    Args:
        tables: prepared pairs by split, with `row`, `pair_id`, `user_id` and the texts.
        encoder: with the limits; it reads users' texts.
        whole: the same without limits.
        positions: how many the model has; None for no bound.

    Raises:
        UserError: no pair of a split that has pairs can be told apart, or the model's chat template
            refuses a prompt.
    """
    lengths, kept = _measure_texts(tables, encoder, whole)
    parts = [
        _set_aside(table, kept, encoder, whole).assign(split=split)
        for split, table in tables.items()
    ]
    set_aside = pd.concat(parts, ignore_index=True)[list(SET_ASIDE_COLUMNS)]
    limits = {key: int(getattr(encoder, key)) for key in KINDS}
    free = None if positions is None else positions - encoder.longest
    rooms = {key: None if free is None else free + limit for key, limit in limits.items()}
    pairs = {split: len(table) for split, table in tables.items()}
    _require_pairs(pairs, set_aside, limits["max_response"], rooms["max_response"])

    warnings = {}
    for key, kind in KINDS.items():
        texts = {
            field: np.concatenate([of_split[field] for of_split in lengths.values()])
            for field in kind.fields
        }
        if sentence := _cut_sentence(key, kind, texts, limits[key], rooms[key]):
            warnings[key] = sentence
    if len(set_aside):
        warnings["set_aside"] = _set_aside_sentence(pairs, set_aside, limits["max_response"])
    reasons = set_aside.value_counts(["split", "reason"])
    summary = {
        "limits": limits,
        "texts": {
            split: {
                field: _counts(values, limits[key])
                for key, kind in KINDS.items()
                for field, values in fields.items()
                if field in kind.fields
            }
            for split, fields in lengths.items()
        },
        "pairs": {
            split: {
                "all": count,
                "used": count - int((set_aside["split"] == split).sum()),
                **{reason: int(reasons.get((split, reason), 0)) for reason in REASONS},
            }
            for split, count in pairs.items()
        },
        "warnings": warnings,
    }
    return Truncation(set_aside, summary)


def _measure_texts(
    tables: Mapping[str, pd.DataFrame], encoder: Encoder, whole: Encoder
) -> tuple[dict[str, dict[str, NDArray[np.int64]]], dict[str, int]]:
    """The whole length of each text by split and field, tokens; a hash of what a response keeps."""
    theirs = {split: encoder.user_texts(table) for split, table in tables.items()}
    own = {text for texts in theirs.values() for text in texts if text is not None}
    prompts, responses = (
        set[str]().union(*(table[name] for table in tables.values() for name in names))
        for names in (["prompt"], ["chosen", "rejected"])
    )
    of_prompts, of_responses, of_users = dict[str, int](), dict[str, int](), dict[str, int]()
    kept: dict[str, int] = {}
    total = len(prompts) + len(responses) + len(own)
    with Progress(total, "reference, lengths", "texts") as progress:
        for prompt in sorted(prompts):
            with _naming_row(tables, prompt):
                of_prompts[prompt] = len(whole.prompt(prompt))
            progress.advance()
        for response in responses:
            ids = whole.response(response)
            of_responses[response] = len(ids)
            cut = len(ids) > encoder.max_response
            kept[response] = hash(tuple(encoder.response(response) if cut else ids))
            progress.advance()
        for text in own:
            # Whatever the prompt, the text stands in front of it.
            of_users[text] = len(whole.prompt(prompt, text)) - of_prompts[prompt]
            progress.advance()
    lengths: dict[str, dict[str, NDArray[np.int64]]] = {}
    for split, table in tables.items():
        columns = {
            "prompt": table["prompt"].map(of_prompts),
            "chosen": table["chosen"].map(of_responses),
            "rejected": table["rejected"].map(of_responses),
            "user_text": pd.Series(theirs[split], dtype=object).dropna().map(of_users),
        }
        lengths[split] = {name: np.asarray(each, np.int64) for name, each in columns.items()}
    return lengths, kept


@contextmanager
def _naming_row(tables: Mapping[str, pd.DataFrame], prompt: str) -> Iterator[None]:
    """Name the first row of a prompt that the model's chat template refuses."""
    try:
        yield
    except UserError as error:
        row = min(
            int(table.loc[table["prompt"] == prompt, "row"].min())
            for table in tables.values()
            if (table["prompt"] == prompt).any()
        )
        raise UserError(error.problem, where=f"row {row}, {error.where}", fix=error.fix) from error


def _counts(lengths: NDArray[np.int64], limit: int) -> dict[str, Any]:
    cut = int((lengths > limit).sum())
    return {
        "texts": len(lengths),
        "cut": cut,
        "share": cut / len(lengths) if len(lengths) else 0.0,
        "longest": int(lengths.max(initial=0)),
    }


def _set_aside(
    table: pd.DataFrame, kept: Mapping[str, int], encoder: Encoder, whole: Encoder
) -> pd.DataFrame:
    """The pairs of a table whose responses are the same to `encoder`, and why."""
    chosen, rejected = (table[side].map(kept) for side in ("chosen", "rejected"))
    found = table[chosen == rejected]
    pairs = list(zip(found["chosen"], found["rejected"], strict=True))
    # Different tokens may have the same hash.
    needed = {
        (one, other): _first_difference(whole.response(one), whole.response(other))
        for one, other in set(pairs)
        if encoder.response(one) == encoder.response(other)
    }
    lengths = [needed[pair] for pair in pairs if pair in needed]
    # An array, since an empty list would choose columns.
    return found[np.array([pair in needed for pair in pairs], dtype=bool)].assign(
        reason=[EQUAL_TOKENS if length is None else EQUAL_AFTER_CUT for length in lengths],
        max_response=pd.array(lengths, dtype="Int64"),
    )


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The shortest length at which two sequences differ; None if they never do."""
    if one == other:
        return None
    pairs = enumerate(zip(one, other, strict=False), 1)
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)) + 1)


def _require_pairs(
    pairs: Mapping[str, int], set_aside: pd.DataFrame, limit: int, room: int | None
) -> None:
    """Check that each split that has pairs keeps some."""
    sizes = set_aside["split"].value_counts()
    empty = [split for split, count in pairs.items() if 0 < count == sizes.get(split, 0)]
    if not empty:
        return
    lost = set_aside[set_aside["split"].isin(empty)]
    # What brings back at least one pair of each.
    some = lost.groupby("split")["max_response"].min()
    splits = ", ".join(f"{split} ({pairs[split]})" for split in empty)
    if some.isna().any():
        raise UserError(
            f"all pairs of {splits} have two responses that are the same tokens to this model",
            where="params.yaml: model.name",
            fix="choose another base model, or other data",
        )
    most = int(lost["max_response"].max())
    never = int(lost["max_response"].isna().sum())
    fix = f"{most} would tell all{f' but {never}' if never else ''} of them apart"
    if (least := int(some.max())) < most:
        fix += f", {least} some of each"
    raise UserError(
        f"all pairs of {splits} have two responses that are the same in their first {limit} tokens",
        where="params.yaml: tokens.max_response",
        fix=fix + _room_for(least, room),
    )


def _cut_sentence(
    key: str, kind: Kind, texts: Mapping[str, NDArray[np.int64]], limit: int, room: int | None
) -> str:
    """What a limit cuts and which would do; empty if it cuts nothing."""
    lengths = np.concatenate(list(texts.values()))
    if not (lengths > limit).any():
        return ""
    shares = " and ".join(
        f"{(texts[field] > limit).sum():,} of {len(texts[field]):,} {name} "
        f"({_percent((texts[field] > limit).mean())})"
        for field, name in kind.fields.items()
    )
    longest = int(lengths.max())
    almost = int(np.quantile(lengths, ALMOST_ALL, method="higher"))
    advice = f"{longest} would keep all whole"
    if limit < almost < longest:
        advice += f", {almost} {_percent(ALMOST_ALL)} of them"
    advice += _room_for(longest, room)
    return f"{shares} {kind.loss} at tokens.{key}: {limit}; {advice}"


def _room_for(tokens: int, room: int | None) -> str:
    """That the model has too few positions, if it has."""
    if room is None or tokens <= room:
        return ""
    return f"; the model has positions for {room} beside the other limits"


def _set_aside_sentence(pairs: Mapping[str, int], set_aside: pd.DataFrame, limit: int) -> str:
    sizes = set_aside["split"].value_counts()
    where = ", ".join(
        f"{sizes[split]:,} of {count:,} {split}" for split, count in pairs.items() if split in sizes
    )
    parts = []
    needed = set_aside["max_response"].dropna()
    if len(needed):
        parts.append(
            f"{len(needed):,} have two responses that are the same up to tokens.max_response: "
            f"{limit}; {int(needed.max())} would tell them apart"
        )
    if never := len(set_aside) - len(needed):
        parts.append(f"{never:,} have two responses of the very same tokens")
    return (
        f"{len(set_aside):,} of {sum(pairs.values()):,} pairs are set aside ({where}): "
        f"{', and '.join(parts)}; they are listed in data/reference/{SET_ASIDE}"
    )


def _percent(share: float) -> str:
    """A share as a percentage; never rounded up to 100 or down to 0."""
    shown = share if share in (0, 1) else min(max(share, 0.001), 0.999)
    return f"{shown:.1%}".replace(".0%", "%")
