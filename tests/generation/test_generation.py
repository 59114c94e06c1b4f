"""Batched decoding: the model's own words for each user, and nothing random left to chance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

import naive
from personal import personalise
from prlhf.data.prompts import canonical_prompt
from prlhf.generation import complete, generate
from prlhf.infra.errors import UserError
from prlhf.models.base import BaseModel
from prlhf.models.personalized import PersonalizedLM
from prlhf.sampling import LIKELIEST, Completion, Nucleus, decoding, sample

PROMPTS = [[33, 34, 35], [40], list(range(50, 70)), [40]]
USERS = [1, 2, 0, 0]


def decode(
    lm: PersonalizedLM,
    *,
    eos: int | list[int] = 1,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 8,
    prompts: list[list[int]] = PROMPTS,
    users: list[int] = USERS,
    **how: Any,
) -> list[Completion]:
    return sample(
        lm.lm,
        [lm.user_model.tokens + len(prompt) for prompt in prompts],
        lambda row: lm.prefix(users[row], prompts[row]),
        config=decoding(eos if isinstance(eos, list) else [eos], **how),
        seed=seed,
        batch_size=batch_size,
        label="test",
        tokenizer=tokenizer,
    )


def naive_greedy(lm: PersonalizedLM, user: int, prompt: list[int], steps: int) -> list[int]:
    """The likeliest token, over and over, without cache, batch or padding."""
    exact = naive.double(lm)
    embedding, embed = naive.embedding_of(exact.user_model), exact.lm.get_input_embeddings()
    ids: list[int] = []
    with torch.no_grad():
        for _ in range(steps):
            inputs = torch.cat([embedding(user), embed(torch.tensor([*prompt, *ids]))])
            ids.append(int(exact.lm(inputs_embeds=inputs[None]).logits[0, -1].argmax()))
    return ids


@pytest.fixture
def lm(tiny_base: BaseModel) -> PersonalizedLM:
    return personalise(tiny_base)


def test_greedy_answers_of_a_mixed_batch(lm: PersonalizedLM) -> None:
    greedy = {"max_new_tokens": 6, "temperature": 0}
    expected = [
        naive_greedy(lm, user, prompt, 6) for user, prompt in zip(USERS, PROMPTS, strict=True)
    ]
    assert expected[1] != expected[3]  # the same prompt for different users
    for batch_size in (1, 3, 8):
        got = decode(lm, **greedy, eos=1, batch_size=batch_size)
        assert [completion.ids for completion in got] == expected


def test_an_answer_ends_before_its_end_of_sequence_token(lm: PersonalizedLM) -> None:
    greedy = {"max_new_tokens": 6, "temperature": 0}
    whole = [completion.ids for completion in decode(lm, **greedy)]
    at, eos = next((i, t) for ids in whole for i, t in enumerate(ids) if t not in ids[:i] and i)
    assert at > 0
    assert not all(eos in ids for ids in whole)
    for ids, got in zip(whole, decode(lm, **greedy, eos=eos), strict=True):
        if eos in ids:
            assert got == Completion(ids[: ids.index(eos)], finished=True)
        else:
            assert got == Completion(ids, finished=False)


def test_any_of_several_tokens_ends_an_answer(lm: PersonalizedLM) -> None:
    greedy = {"max_new_tokens": 24, "temperature": 0}
    whole = [completion.ids for completion in decode(lm, **greedy)]
    stops = sorted({whole[0][5], whole[1][2], whole[2][9]})
    for ids, got in zip(whole, decode(lm, **greedy, eos=stops), strict=True):
        ends = [ids.index(stop) for stop in stops if stop in ids]
        assert got == Completion(ids[: min(ends, default=None)], finished=bool(ends))


def test_words_end_an_answer(lm: PersonalizedLM) -> None:
    """In a template that marks turns by words; each token is a byte."""
    greedy = {"max_new_tokens": 24, "temperature": 0}
    tokenizer = lm.base.tokenizer
    whole = [completion.ids for completion in decode(lm, **greedy)]
    pairs = [
        (row, at, text)
        for row, ids in enumerate(whole)
        for at in range(3, 9)
        if len(text := tokenizer.decode(ids[at : at + 2])) == 2 and text.isprintable()
    ]
    assert pairs
    for row, _, text in pairs[:3]:
        stops = {"stop_texts": [text], "tokenizer": tokenizer}
        for place, got in enumerate(decode(lm, **greedy, **stops)):
            said = tokenizer.decode(whole[place])
            assert got.finished == (text in said), (row, place)
            if got.finished:
                before, _, _ = said.partition(text)
                assert tokenizer.decode(got.ids) == before + text
            else:
                assert got.ids == whole[place]


def test_an_answer_of_nothing(lm: PersonalizedLM) -> None:
    greedy = {"max_new_tokens": 3, "temperature": 0}
    eos = decode(lm, **greedy)[0].ids[0]
    assert decode(lm, **greedy, eos=eos)[0] == Completion([], finished=True)


def test_the_seed_alone_decides(lm: PersonalizedLM) -> None:
    sampling = {"max_new_tokens": 12}
    torch.manual_seed(1)
    first = decode(lm, **sampling, seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = decode(lm, **sampling, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == second
    assert decode(lm, **sampling, seed=6) != first


def test_batches_of_one_run_do_not_repeat_each_other(lm: PersonalizedLM) -> None:
    """The same request in several batches is sampled afresh."""
    requests = {"prompts": [[40]] * 4, "users": [0] * 4}
    got = decode(lm, max_new_tokens=12, batch_size=1, **requests)
    assert len({tuple(completion.ids) for completion in got}) == 4


def test_cold_sampling_is_greedy(lm: PersonalizedLM) -> None:
    greedy = decode(lm, max_new_tokens=5, temperature=0)
    assert decode(lm, max_new_tokens=5, temperature=1e-4) == greedy
    assert decode(lm, max_new_tokens=5, top_p=1e-6) == greedy


def test_rows_that_have_ended_are_not_computed_any_more(lm: PersonalizedLM) -> None:
    greedy = {"max_new_tokens": 24, "temperature": 0}
    prompts, users = [[33 + i] for i in range(8)], [0, 1, 2, 3] * 2
    whole = [
        decode(lm, **greedy, prompts=[prompt], users=[user])[0].ids
        for prompt, user in zip(prompts, users, strict=True)
    ]
    # A token that ends one answer early, one late, and two not at all.
    eos, ends = next(
        (token, ends)
        for token in range(2, 258)
        if len(ends := {row: ids.index(token) for row, ids in enumerate(whole) if token in ids})
        == 2
    )
    early, late = sorted(ends, key=lambda row: ends[row])
    assert ends[early] < ends[late]
    rows = [early, late, *sorted(set(range(8)) - set(ends))[:2]]
    computed: list[int] = []
    counting = lm.lm.get_output_embeddings().register_forward_hook(
        lambda module, given, result: computed.append(len(given[0]))
    )
    chosen = {"prompts": [prompts[row] for row in rows], "users": [users[row] for row in rows]}
    got = decode(lm, **greedy, eos=eos, **chosen)
    counting.remove()
    assert got == [
        *(Completion(whole[row][: ends[row]], finished=True) for row in rows[:2]),
        *(Completion(whole[row], finished=False) for row in rows[2:]),
    ]
    assert computed == [4] * (ends[late] + 1) + [2] * (23 - ends[late])


def test_a_nucleus_is_that_of_the_whole_vocabulary() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (50, 3 * LIKELIEST):
        scores = 2 * torch.randn(6, size, generator=generator)
        # The second needs more than the likeliest tokens, the last but one token of each row.
        for temperature, top_p in ((0.7, 0.9), (9.0, 0.95), (1.0, 1.0), (1.0, 1e-6)):
            expected = TemperatureLogitsWarper(temperature)(None, scores)
            if top_p < 1:
                expected = TopPLogitsWarper(top_p)(None, expected)
            assert torch.equal(Nucleus(temperature, top_p)(None, scores), expected)


def test_no_ngram_twice(lm: PersonalizedLM) -> None:
    repeating = decode(lm, max_new_tokens=40, temperature=0)
    assert any(len(set(c.ids)) < len(c.ids) for c in repeating)
    once = {"max_new_tokens": 40, "temperature": 0, "no_repeat_ngram": 1}
    free = decode(lm, **once)
    # Nor once other rows have left the batch.
    for completion in [*free, *decode(lm, **once, eos=free[0].ids[3])]:
        assert len(set(completion.ids)) == len(completion.ids)


def test_the_repetition_penalty_counts(lm: PersonalizedLM) -> None:
    plain = {"max_new_tokens": 40, "temperature": 0}
    penalised = {"max_new_tokens": 40, "temperature": 0, "repetition_penalty": 5.0}

    def distinct(sampling: dict[str, Any]) -> int:
        return sum(len(set(completion.ids)) for completion in decode(lm, **sampling))

    assert distinct(penalised) > distinct(plain)


def test_the_models_own_generation_defaults_do_not_interfere(lm: PersonalizedLM) -> None:
    sampling = {"max_new_tokens": 12}
    expected = decode(lm, **sampling, seed=3)
    lm.causal_lm.generation_config = GenerationConfig(
        do_sample=True, temperature=0.01, top_k=1, top_p=0.1, repetition_penalty=9.0
    )
    assert decode(lm, **sampling, seed=3) == expected


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_equivalent_configuration(temperature: float) -> None:
    config = decoding(
        [1],
        max_new_tokens=9,
        temperature=temperature,
        top_p=0.8,
        repetition_penalty=1.2,
        no_repeat_ngram=3,
    )
    assert config.max_new_tokens == 9
    assert config.do_sample == (temperature > 0)
    assert (config.repetition_penalty, config.no_repeat_ngram_size) == (1.2, 3)
    assert (config.eos_token_id, config.pad_token_id) == ([1], 1)
    if temperature:
        assert (config.temperature, config.top_p, config.top_k) == (0.7, 0.8, 0)


def test_users_are_told_apart_by_the_callers_ids(lm: PersonalizedLM) -> None:
    greedy = {"max_new_tokens": 6, "temperature": 0}
    question = "Why?"
    ann, bob, nobody = generate(lm, [question] * 3, ["ann", "bob", None], **greedy)
    assert len({ann, bob, nobody}) == 3
    assert generate(lm, [question] * 2, [" ann\u200b", "bob\n"], **greedy) == [ann, bob]
    with pytest.raises(UserError) as caught:
        generate(lm, [question] * 3, ["ann", "zoe", 17], **greedy)
    assert str(caught.value) == (
        "users: not among the 3 users that the model knows: 'zoe', '17' "
        "(None stands for somebody it has not met)"
    )
    completions = complete(
        lm,
        [(index, canonical_prompt(question)) for index in (1, 2, 0)],
        config=decoding(lm.encoder.chat.conventions.stops, **greedy),
    )
    assert [lm.encoder.chat.decode(completion.ids) for completion in completions] == [
        ann,
        bob,
        nobody,
    ]


def test_prompts_may_be_conversations(lm: PersonalizedLM) -> None:
    greedy = {"max_new_tokens": 6, "temperature": 0}
    text, chat, longer = generate(
        lm,
        [
            "Why?",
            [{"role": "user", "content": "Why?"}],
            [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}],
        ],
        ["ann"] * 3,
        **greedy,
    )
    assert text == chat != longer


@pytest.mark.parametrize("kind", ["uniform", "individual"])
def test_what_users_say_stands_between_their_tokens_and_the_prompt(
    tiny_base: BaseModel, kind: str
) -> None:
    """Whether the user is known or not."""
    lm = personalise(tiny_base, kind, max_user_text=40)
    steps = 12
    greedy = {"max_new_tokens": steps, "temperature": 0}
    users = ["cyd", "cyd", "cyd", None, None]
    texts = ["I am new.", "I know it all.", " ", "I am new.", None]
    got = generate(lm, ["Why?"] * 5, users, texts, **greedy)
    assert len(set(got)) == (5 if kind == "individual" else 3)

    exact = naive.double(lm)
    embedding, embed = naive.embedding_of(exact.user_model), exact.lm.get_input_embeddings()
    tokens = tiny_base.tokenizer
    asked = tokens("<|start|>user\nWhy?<|end|>\n<|start|>assistant\n")["input_ids"]
    for index, text, answer in zip((3, 3, 3, 0, 0), texts, got, strict=True):
        said = tokens(f"{text}\n")["input_ids"] if text and text.strip() else []
        ids: list[int] = []
        with torch.no_grad():
            for _ in range(steps):
                inputs = embed(torch.tensor([*said, *asked, *ids]))
                if kind == "individual":
                    inputs = torch.cat([embedding(index), inputs])
                ids.append(int(exact.lm(inputs_embeds=inputs[None]).logits[0, -1].argmax()))
        assert answer == lm.encoder.chat.decode(ids)


def test_texts_for_a_model_that_reads_none(lm: PersonalizedLM) -> None:
    with pytest.raises(UserError, match="the model reads no user texts"):
        generate(lm, ["a"], ["ann"], ["I am new."])


def test_every_prompt_needs_a_text_if_any_has(tiny_base: BaseModel) -> None:
    lm = personalise(tiny_base, max_user_text=40)
    with pytest.raises(UserError, match="2 prompts but 1 texts"):
        generate(lm, ["a", "b"], ["ann", None], ["I am new."])


def test_every_prompt_needs_a_user(lm: PersonalizedLM) -> None:
    with pytest.raises(UserError, match="2 prompts but 1 users"):
        generate(lm, ["a", "b"], ["ann"])


def test_the_prefix_is_the_user_and_then_the_prompt(lm: PersonalizedLM) -> None:
    got = lm.prefix(2, [33, 34])
    expected = torch.cat(
        [
            naive.embedding_of(lm.user_model)(2),
            lm.lm.get_input_embeddings()(torch.tensor([33, 34])),
        ]
    )
    torch.testing.assert_close(got, expected)


def test_an_answer_for_which_there_is_no_room(lm: PersonalizedLM) -> None:
    decode(lm, max_new_tokens=2, temperature=0.0, prompts=[[33] * 20], users=[1])
    with pytest.raises(UserError) as caught:
        decode(lm, max_new_tokens=2027, temperature=0.0)
    assert str(caught.value) == (
        "params.yaml: a prompt and its answer can take 2049 tokens, and the model has 2048 "
        "positions (lower generate.max_new_tokens or tokens.max_prompt)"
    )
