"""When two spellings are one, of texts, of prompts and of users."""

from __future__ import annotations

import random
import re
import unicodedata

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf.data import identity, prompts
from prlhf.data.ids import content_hash
from prlhf.data.users import UserIndex, id_text, reads_as_missing
from prlhf.infra.errors import UserError
from respelt import randoms, respelt, words

anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text(
    st.sampled_from(' \t\n\r\x0b\x0c\x1f\x85\xa0\u2028\u200b\ufeff\\"e\u0301\x00a'), max_size=12
)


def as_column(values: list[str | None]) -> pa.ChunkedArray:
    return pa.chunked_array([values], pa.string())


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("\ufeff Hello \r\nthere\t\r\rfriend\u200b ", "Hello\nthere\n\nfriend"),
        ("def f():\n    return  1", "def f():\n    return  1"),
        ("Zoe\u0308", "Zo\u00eb"),
        ("x\u00b2", "x\u00b2"),
        ("\u200b\x00 ", ""),
    ],
)
def test_the_form_of_a_text(text: str, form: str) -> None:
    assert identity.normal_text(text) == form


def test_the_form_of_an_id() -> None:
    assert identity.normal_id("\ufeffAda \n\u00a0Lovelace\x00 ") == "Ada Lovelace"
    assert identity.normal_id("ada") != identity.normal_id("Ada")


@given(st.lists(st.none() | anything, min_size=1))
def test_columns_have_the_forms_of_their_texts(values: list[str | None]) -> None:
    for form, forms in (
        (identity.normal_text, identity.normal_texts),
        (identity.normal_id, identity.normal_ids),
    ):
        expected = [None if value is None else form(value) for value in values]
        assert forms(as_column(values)).to_pylist() == expected
        assert [value and form(value) for value in expected] == expected


@given(words, randoms)
def test_spellings_of_a_text_have_one_form(text: str, draw: random.Random) -> None:
    assert identity.normal_text(text) == text
    assert identity.normal_text(respelt(text, draw)) == text
    assert identity.normal_id(respelt(text, draw, spaces=True)) == " ".join(text.split())


def test_all_that_a_form_may_change_is_looked_at() -> None:
    """In every character that there is, and in those that one in front may join with."""
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    parts = {character: unicodedata.decomposition(character) for character in characters}
    pairs = [part.split() for part in parts.values() if part and part[0] != "<"]
    seconds = {chr(int(pair[1], 16)) for pair in pairs if len(pair) == 2}
    jamo = range(0x1161, 0x1176), range(0x11A8, 0x11C3)
    seconds |= {chr(code) for codes in jamo for code in codes}
    found = identity.normal_texts(as_column([f"a{each}b" for each in characters])).to_pylist()
    assert found == [identity.normal_text(f"a{each}b") for each in characters]
    joined = sorted(seconds | set(filter(unicodedata.combining, characters)))
    looked_at = pc.match_substring_regex(pa.array(joined), f"[{identity.UNUSUAL}]")
    assert pc.all(looked_at).as_py()


@given(anything)
def test_what_shows_nothing_is_empty(text: str) -> None:
    assert bool(identity.normal_text(text)) == bool(re.search(identity.VISIBLE, text))
    assert (prompts.canonical_or_none(text) is None) == (identity.normal_text(text) == "")


@given(st.lists(anything, min_size=1, max_size=3))
def test_prompts_of_a_column_have_the_forms_of_their_messages(texts: list[str]) -> None:
    written = [prompts.canonical_prompt("a")]
    for text in filter(identity.normal_text, texts):
        turns = [("user", "x "), ("assistant", text), ("user", text)]
        chat = [{"role": role, "content": content} for role, content in turns]
        written += map(prompts.canonical_prompt, (text, chat))
    found = prompts.normal_prompts(as_column(written)).to_pylist()
    assert found == list(map(prompts.normal_prompt, written))
    for prompt, form in zip(written, found, strict=True):
        expected = [identity.normal_text(each["content"]) for each in prompts.messages(prompt)]
        assert [each["content"] for each in prompts.messages(form)] == expected
        assert prompts.prompt_id(prompt) == prompts.prompt_id(form)


@given(words, randoms)
def test_spellings_of_a_prompt(text: str, draw: random.Random) -> None:
    own, other = (prompts.canonical_prompt(each) for each in (text, respelt(text, draw)))
    assert prompts.prompt_id(own) == prompts.prompt_id(other) == content_hash(own)
    loose = prompts.canonical_prompt(respelt(text, draw, spaces=True))
    written = prompts.normal_prompts(as_column([own, other, loose]))
    keys = prompts.opening_keys(written).to_pylist()
    assert keys[0] == keys[1] == keys[2]


def test_prompts_that_say_different_things_have_keys_of_their_own() -> None:
    texts = ["a b", "ab", r"a\nb", r"a\ b", r"a\\nb", "a\\\nb"]
    written = prompts.normal_prompts(as_column([prompts.canonical_prompt(text) for text in texts]))
    assert len(set(prompts.opening_keys(written).to_pylist())) == 5
    assert len({prompts.prompt_id(each.as_py()) for each in written}) == 6


def test_what_reads_as_missing() -> None:
    nothing = ["", " ", "\u200b", "-", "--", "\u2014", "?"]
    written = ["nan", "NaN ", "-nan", "None", "null", "NULL", "N/A", "n/a", "NaT", "undefined"]
    quoted = ["#N/A", "<NA>", "(null)", "'None'", r"\N", "#REF!"]
    assert all(map(reads_as_missing, [*nothing, *written, *quoted]))
    names = ["Nan Goldin", "0", "ann", "n", "Nullmann", "\U0001f98a", "a-"]
    assert not any(map(reads_as_missing, names))


@pytest.mark.parametrize(
    "user", [17, 17.0, np.int64(17), np.uint8(17), np.float32(17), "17", " 17\u200b"]
)
def test_numbers_are_the_ids_that_ingestion_makes_of_them(user: object) -> None:
    users = UserIndex(["ann", "17", "23"])
    assert users.find(user) == 2
    assert users.find_all([user, None, 23]) == [2, 0, 3]


@pytest.mark.parametrize(
    "user", [True, np.bool_(False), 1.5, float("nan"), 2.0**53, b"17", ["17"], pd.NA]
)
def test_what_is_no_id(user: object) -> None:
    with pytest.raises(ValueError, match="expected text or a whole number|lost digits"):
        id_text(user)
    with pytest.raises(UserError, match=r"^users: .* \(None is the generic user\)$"):
        UserIndex(["1", "17", "nan"]).find(user)


def test_an_id_in_any_of_its_spellings() -> None:
    users = UserIndex(["Zoe\u0308 ", "a\u00a0b", "None"])
    assert users.find_all(["Zo\u00eb", "a  b", "None", None]) == [1, 2, 3, 0]
    assert users.find("zo\u00eb") == 0
    with pytest.raises(UserError, match="knows: 'a', 'b', 'c' and 2 more"):
        users.find_all(["a", "b", "c", "a", "d", "", None])
