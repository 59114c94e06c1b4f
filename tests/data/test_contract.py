"""Canonical prompts and ids."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf import data
from prlhf.data import prompts
from prlhf.data.identity import VISIBLE
from prlhf.data.ids import content_hash
from prlhf.infra.errors import UserError


def test_a_text_is_one_user_message():
    assert prompts.canonical_prompt("Hi é") == '[{"role":"user","content":"Hi é"}]'


def test_what_users_say_of_themselves():
    values = (" I am new. ", " ", "", None, float("nan"))
    assert list(map(data.clean_user_text, values)) == ["I am new.", *[None] * 4]
    data.require_user_texts([None, "I am new."], "here")
    with pytest.raises(UserError, match="here: reads user_text, but no user of this data set has"):
        data.require_user_texts([None, " ", float("nan")], "here")


def test_messages_keep_role_and_content_only_whatever_their_order():
    given_messages: list[dict[str, Any]] = [
        {"content": "Be brief.", "role": "system", "name": "x"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye", "time": 3},
    ]
    prompt = prompts.canonical_prompt(given_messages)
    assert prompts.messages(prompt) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    assert prompts.prompt_chars(prompt) == 9 + 2 + 5 + 3


USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": 'Say "role":"user", twice: "role":"user".'}


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [
        ([USER], 1),
        ([SYSTEM, USER], 2),
        ([USER, REPLY, USER], 1),
        ([SYSTEM, USER, REPLY, USER, REPLY, USER], 2),
        ([USER, USER], 1),
        ([REPLY, USER], 2),
        ([{"role": "user", "content": '{"role":"user"} "role":"user"'}], 1),
    ],
)
def test_the_opening_of_a_dialogue(prompt: list[dict[str, str]], kept: int):
    spelt = prompts.canonical_prompt(prompt)
    expected = prompts.canonical_prompt(prompt[:kept])
    assert prompts.opening(spelt) == expected
    assert prompts.opening(expected) == expected
    column = pa.chunked_array([[spelt, expected]], pa.large_string())
    assert prompts.openings(column).to_pylist() == [expected, expected]


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(re.compile(VISIBLE).search))
def test_text_survives_verbatim(text):
    prompt = prompts.canonical_prompt(text)
    assert prompts.messages(prompt) == [{"role": "user", "content": text}]
    assert prompts.canonical_prompt(prompts.messages(prompt)) == prompt
    assert prompts.canonical_prompt(json.loads(prompt)) == prompt


@pytest.mark.parametrize("prompt", ["", " \n\t", [], [{"role": "user", "content": "  "}]])
def test_empty_prompts_are_told_from_malformed_ones(prompt):
    with pytest.raises(prompts.EmptyPromptError):
        prompts.canonical_prompt(prompt)


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        (3, "expected text or a list of messages, found the number 3"),
        ({"role": "user", "content": "x"}, "found an object"),
        (["x"], "message 1: expected an object with role and content, found the text 'x'"),
        ([{"role": "user", "content": "x"}, None], "message 2: .* found nothing"),
        ([{"content": "x"}], "message 1 has no role, expected one of system, user, assistant"),
        ([{"role": "human", "content": "x"}], "role 'human'"),
        ([{"role": "user"}], "message 1 has no content"),
        ([{"role": "user", "content": 4}], "expected text as content, found the number 4"),
        ([{"role": "user", "content": ["x"]}], "found a list"),
        ([{"role": "assistant", "content": "x"}], "the last message is the assistant's"),
        ("\ud800", "unpaired surrogate"),
    ],
)
def test_malformed_prompts_name_the_message(prompt: Any, problem: str):
    with pytest.raises(prompts.PromptError, match=problem) as caught:
        prompts.canonical_prompt(prompt)
    assert not isinstance(caught.value, prompts.EmptyPromptError)


def test_pair_ids_tell_verdicts_and_users_apart():
    ids = {
        content_hash("u", "p", "a", "b"),
        content_hash("u", "p", "b", "a"),
        content_hash("v", "p", "a", "b"),
        content_hash("up", "", "a", "b"),
    }
    assert len(ids) == 4
    assert content_hash("u", "p", "a", "b") in ids


def test_the_contract_is_light():
    """Every stage imports it, and the command line may."""
    heavy = "'pandas', 'numpy', 'pyarrow', 'torch', 'great_expectations'"
    code = f"import sys, prlhf.data; print([m for m in ({heavy}) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
