"""Prompts and responses as tokens: templates and truncation."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf.data.prompts import canonical_prompt
from prlhf.models.base import Encoder, cut_middle, encode_within
from prlhf.models.chat import RefusedPromptError
from prlhf.models.conventions import chat_tokenizer
from tiny import tiny_tokenizer

START, END = 0, 1
TOKENIZER = chat_tokenizer(tiny_tokenizer())
PLAIN = chat_tokenizer(tiny_tokenizer(chat=False))


def text_of(ids: list[int]) -> str:
    return TOKENIZER.tokenizer.decode(ids)


def test_a_prompt_goes_through_the_chat_template_up_to_the_reply() -> None:
    ids = Encoder(TOKENIZER, 100, 10).prompt(canonical_prompt("Why?"))
    assert text_of(ids) == "<|start|>user\nWhy?<|end|>\n<|start|>assistant\n"
    assert (ids[0], ids.count(START), ids.count(END)) == (START, 2, 1)
    assert all(type(i) is int for i in ids)


def test_a_conversation_keeps_its_roles() -> None:
    conversation = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": "And?"},
    ]
    assert text_of(TOKENIZER.conversation(conversation)) == (
        "<|start|>system\nBe kind.<|end|>\n<|start|>user\nWhy?<|end|>\n"
        "<|start|>assistant\nSo.<|end|>\n<|start|>user\nAnd?<|end|>\n<|start|>assistant\n"
    )


def test_a_model_without_a_template_reads_plain_text() -> None:
    conversation = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}]
    assert text_of(PLAIN.conversation(conversation)) == "Be kind.\nWhy?"


def test_a_prompt_that_the_template_refuses_is_named() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ messages[0]['content'] }}"
    )
    encoder = Encoder(chat_tokenizer(tokenizer), 100, 10)
    conversation = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}]
    with pytest.raises(RefusedPromptError, match="System role not supported") as caught:
        encoder.prompt(canonical_prompt(conversation))
    assert caught.value.where == "prompt 'Why?'"
    assert text_of(encoder.prompt(canonical_prompt(conversation[1:]))) == "Why?"


def test_a_long_prompt_keeps_its_opening_and_the_reply_header() -> None:
    encoder = Encoder(TOKENIZER, 40, 10)
    ids = encoder.prompt(canonical_prompt("a" * 500))
    assert len(ids) == 40
    assert text_of(ids).startswith("<|start|>user\n")
    assert text_of(ids).endswith("a<|end|>\n<|start|>assistant\n")


def talk(system: bool, exchanges: int) -> list[dict[str, str]]:
    """`exchanges` questions with their answers, and one question more."""
    turns = [(role, f"{role[0]}{n}") for n in range(exchanges) for role in ("user", "assistant")]
    turns = [("system", "be")] * system + turns + [("user", "last")]
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize("system", [False, True])
def test_a_long_conversation_loses_whole_exchanges_in_its_middle(system: bool) -> None:
    def length(*kept: int) -> int:
        return len(TOKENIZER.conversation(without(*kept)))

    def without(*kept: int) -> list[dict[str, str]]:
        names = {f"{role}{n}" for n in kept for role in "ua"}
        return [m for m in talk(system, 4) if m["content"] in {*names, "be", "last"}]

    for kept in ((0, 1, 2, 3), (0, 2, 3), (0, 3), (0,), ()):
        ids = encode_within(TOKENIZER, talk(system, 4), length(*kept))
        assert ids == TOKENIZER.conversation(without(*kept))
    shortest = length()
    ids = encode_within(TOKENIZER, talk(system, 4), shortest - 1)
    assert ids == cut_middle(TOKENIZER.conversation(without()), shortest - 1)


def test_the_users_text_stands_before_the_template() -> None:
    encoder = Encoder(TOKENIZER, 100, 10, 20)
    prompt = canonical_prompt("Why?")
    ids = encoder.prompt(prompt, "I am new here.")
    assert text_of(ids) == "I am new here.\n<|start|>user\nWhy?<|end|>\n<|start|>assistant\n"
    assert encoder.prompt(prompt, "I am old.") != ids
    assert encoder.prompt(prompt, None) == Encoder(TOKENIZER, 100, 10).prompt(prompt)


def test_a_long_text_of_a_user_loses_its_end_and_the_prompt_nothing() -> None:
    encoder = Encoder(TOKENIZER, 100, 10, 8)
    prompt = canonical_prompt("Why?")
    whole = encoder.prompt(prompt)
    assert encoder.prompt(prompt, "1234567") == [*encoder.chat.text("1234567\n"), *whole]
    assert encoder.prompt(prompt, "123456789") == [*encoder.chat.text("1234567\n"), *whole]
    assert encoder.longest == 118


def test_a_model_that_reads_no_text_is_given_none() -> None:
    encoder = Encoder(TOKENIZER, 100, 10)
    prompt = canonical_prompt("Why?")
    assert encoder.prompt(prompt, "I am new here.") == encoder.prompt(prompt)
    table = pd.DataFrame({"user_text": ["a", " b ", " ", None, float("nan")]})
    assert encoder.user_texts(table) == [None] * 5
    assert encoder.user_texts(table[[]]) == [None] * 5
    assert Encoder(TOKENIZER, 100, 10, 9).user_texts(table) == ["a", "b", None, None, None]
    assert (encoder.longest, encoder.reads_text) == (110, False)


@given(st.integers(0, 60), st.integers(1, 30))
def test_cut_middle(length: int, limit: int) -> None:
    ids = list(range(length))
    got = cut_middle(ids, limit)
    assert len(got) == min(length, limit)
    if length <= limit:
        assert got == ids
    else:
        head = limit // 4
        assert got[:head] == ids[:head]
        assert got[head:] == ids[length - (limit - head) :]


def test_a_response_ends_with_the_end_of_sequence_token_unless_it_was_cut() -> None:
    encoder = Encoder(TOKENIZER, 40, 5)
    assert encoder.response("abcd") == [*encoder.chat.text("abcd"), END]  # 5 with its end
    assert encoder.response("abcde") == encoder.chat.text("abcde")  # no room for the end
    assert encoder.response("abcdefgh") == encoder.chat.text("abcde")
    assert encoder.response("") == [END]


@given(st.text(max_size=30), st.integers(2, 12))
def test_responses_keep_to_the_limit(text: str, limit: int) -> None:
    encoder = Encoder(TOKENIZER, 40, limit)
    ids = encoder.response(text)
    whole = encoder.chat.text(text)
    assert 1 <= len(ids) <= limit
    assert (ids == [*whole, END]) == (len(whole) < limit)
    assert ids[: len(whole)] == whole[:limit]


def test_text_is_tokenised_as_it_is() -> None:
    encoder = Encoder(TOKENIZER, 4, 4)
    assert text_of(encoder.chat.text(" héllo\n wörld ")) == " héllo\n wörld "
