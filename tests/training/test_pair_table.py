"""Pairs straight from a prepared table: encoded one by one, when they are asked for."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from preferences import prepared_pairs
from prlhf.data.prompts import canonical_prompt
from prlhf.data.reference import text_key
from prlhf.models.base import Encoder
from prlhf.models.conventions import chat_tokenizer
from prlhf.training.dataset import PreferenceDataset, lengths_of, of_users
from tiny import tiny_tokenizer


class Counting(Encoder):
    """Says which responses it was asked for."""

    def __init__(self, *limits: Any) -> None:
        super().__init__(chat_tokenizer(tiny_tokenizer()), *limits)
        self.asked: list[str] = []

    def response(self, text: str) -> list[int]:
        self.asked.append(text)
        return super().response(text)


def logps(rows: pd.DataFrame) -> dict[str, float]:
    keys = [
        text_key(row["prompt"], row[side], text)
        for row in rows.to_dict("records")
        for side in ("chosen", "rejected")
        for text in (None, row["user_text"])
        if isinstance(text, str) or text is None
    ]
    return {key: -float(i) for i, key in enumerate(keys)}


def test_a_pair_is_encoded_when_it_is_asked_for() -> None:
    encoder = Counting(64, 16)
    pairs = PreferenceDataset(prepared_pairs(), logps(prepared_pairs()), encoder)
    assert len(pairs) == 4
    assert encoder.asked == []
    pair = pairs[2]
    assert encoder.asked == ["Long", "L"]
    prompt = canonical_prompt("How long?")
    assert (pair.user_index, pair.weight) == (1, 0.5)
    assert (pair.prompt, pair.rejected) == (encoder.prompt(prompt), encoder.response("L"))
    assert pair.ref_chosen == logps(prepared_pairs())[text_key(prompt, "Long")]


def test_slices_ends_and_the_last_one() -> None:
    pairs = PreferenceDataset(prepared_pairs(), logps(prepared_pairs()), Counting(64, 16))
    assert pairs[1:3] == [pairs[1], pairs[2]]
    assert pairs[-1] == pairs[3]
    assert [pair.user_index for pair in pairs] == [1, 2, 1, 3]
    with pytest.raises(IndexError):
        pairs[4]


def test_texts_are_read_by_those_who_read_them() -> None:
    reading, blind = Counting(64, 16, 20), Counting(64, 16)
    known = logps(prepared_pairs())
    told, asked = (
        PreferenceDataset(prepared_pairs(), known, reading),
        PreferenceDataset(prepared_pairs(), known, blind),
    )
    assert told[0].prompt == [*blind.chat.text("I am new.\n"), *asked[0].prompt]
    assert told[1].prompt == asked[1].prompt
    why = canonical_prompt("Why?")
    assert told[0].ref_chosen == known[text_key(why, "Because.")]
    both = PreferenceDataset(prepared_pairs(), known, reading, reference_text=True)
    assert both[0].ref_chosen == known[text_key(why, "Because.", "I am new.")]
    assert both[1].ref_chosen == known[text_key(why, "No")]


@pytest.mark.parametrize("text", [False, True])
def test_those_of_some_users_are_what_they_were(text: bool) -> None:
    encoder = Counting(64, 16, 20 if text else None)
    pairs = PreferenceDataset(
        prepared_pairs(), logps(prepared_pairs()), encoder, reference_text=text
    )
    for some in (of_users(pairs, lambda user: user != 2), of_users([*pairs], lambda u: u != 2)):
        assert [*some] == [pairs[0], pairs[2], pairs[3]]
    nobody = of_users(pairs, lambda user: user == 9)
    assert len(nobody) == len(of_users(nobody, lambda user: user == 9)) == 0


def test_lengths_tell_long_from_short_without_encoding() -> None:
    encoder = Counting(64, 16)
    pairs = PreferenceDataset(prepared_pairs(), logps(prepared_pairs()), encoder)
    texts = prepared_pairs()[["prompt", "chosen", "rejected"]]
    assert lengths_of(pairs) == [sum(map(len, row)) for row in texts.itertuples(index=False)]
    assert encoder.asked == []
    assert lengths_of([*pairs]) == [pair.length for pair in pairs]
