"""The reference pass and the scoring of held-out pairs and answers, against one text at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import naive
from personal import USERS, personalise
from prlhf.data import GENERIC
from prlhf.data.ids import content_hash
from prlhf.data.prompts import canonical_prompt
from prlhf.data.reference import FEATURES, LOGPS, Reference, load_reference, text_key
from prlhf.infra.errors import UserError
from prlhf.models.base import BaseModel, Encoder
from prlhf.models.packing import Row
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.scores import Scores
from prlhf.reference import distinct_texts, reference_pass
from prlhf.scoring import principal_components, score_generations, score_pairs, user_map
from prlhf.training.dataset import PreferenceDataset

PROMPTS = [canonical_prompt(text) for text in ("Why?", "How does it work?")]


def table(rows: list[tuple[int, int, str, str]]) -> pd.DataFrame:
    """A prepared table from (user index, prompt number, chosen, rejected)."""
    return pd.DataFrame(
        {
            "pair_id": [content_hash(str(row)) for row in rows],
            "prompt_id": [content_hash(PROMPTS[prompt]) for _, prompt, _, _ in rows],
            "user_id": [USERS[user - 1] if user else "stranger" for user, *_ in rows],
            "user_index": [user for user, *_ in rows],
            "group": ["a"] * len(rows),
            "prompt": [PROMPTS[prompt] for _, prompt, _, _ in rows],
            "chosen": [chosen for *_, chosen, _ in rows],
            "rejected": [rejected for *_, rejected in rows],
            "weight": [1.0] * len(rows),
        }
    )


TRAIN = table(
    [(1, 0, "Yes.", "No, never."), (2, 0, "No, never.", "Yes."), (3, 1, "Slowly", "By magic")]
)
TEST = table([(1, 1, "Yes.", "Slowly"), (2, 1, "Slowly", "Yes."), (1, 0, "So it is", "No")])
UNSEEN = table([(0, 1, "By magic", "Yes.")])

LogP = Callable[[int, str, str], float]


def logp_of(lm: PersonalizedLM) -> LogP:
    """log pi(response | prompt, user) of texts, in float64."""
    exact = naive.double(lm)
    embedding = naive.embedding_of(exact.user_model)

    @torch.no_grad()
    def logp(user: int, prompt: str, response: str) -> float:
        encoder = lm.encoder
        return naive.response_logp(
            exact.lm, embedding(user), encoder.prompt(prompt), encoder.response(response)
        ).item()

    return logp


@pytest.fixture
def base_lm(tiny_base: BaseModel) -> PersonalizedLM:
    return PersonalizedLM.reference(tiny_base, Encoder(tiny_base.chat, 64, 8))


Pass = Callable[..., Reference]


@pytest.fixture
def passed(base_lm: PersonalizedLM, tmp_path: Path) -> Pass:
    """Run the pass and read what it wrote."""

    def run(
        tables: list[pd.DataFrame], reading: Encoder | None = None, **options: Any
    ) -> Reference:
        directory = tmp_path / f"reference-{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        reference_pass(base_lm, tables, directory, reading, **options)
        return load_reference(directory)

    return run


def test_every_distinct_text_is_scored_once(passed: Pass, base_lm: PersonalizedLM) -> None:
    reference = passed([TRAIN, TEST, UNSEEN])
    texts = {
        (prompt, response)
        for part in (TRAIN, TEST, UNSEEN)
        for side in ("chosen", "rejected")
        for prompt, response in zip(part["prompt"], part[side], strict=True)
    }
    assert set(reference.logps) == {text_key(*text) for text in texts}
    assert len(texts) == 7
    assert reference.features.shape == (7, base_lm.base.hidden_size)
    assert reference.features.dtype == torch.float16
    assert sorted(reference.rows.values()) == list(range(7))
    logp = logp_of(base_lm)
    for prompt, response in texts:
        key = text_key(prompt, response)
        assert reference.logps[key] == pytest.approx(logp(0, prompt, response), abs=1e-3)


def test_features_are_mean_hidden_states(passed: Pass, base_lm: PersonalizedLM) -> None:
    reference = passed([TRAIN])
    encoder = base_lm.encoder
    prompt, response = PROMPTS[0], "Yes."
    ids, answer = encoder.prompt(prompt), encoder.response(response)
    with torch.no_grad():
        states = base_lm.causal_lm.base_model(
            input_ids=torch.tensor([[*ids, *answer]])
        ).last_hidden_state[0]
    mean = states[len(ids) - 1 : len(ids) - 1 + len(answer)].mean(0)
    got = reference.features[reference.rows[text_key(prompt, response)]]
    # Half precision has 11 bits.
    torch.testing.assert_close(got.float(), mean, rtol=2**-11, atol=1e-4)


def test_rows_are_those_of_the_chosen_and_the_rejected(passed: Pass) -> None:
    reference = passed([TRAIN])
    keys = list(reference.logps)
    for rows, side in zip(reference.rows_of(TRAIN), ("chosen", "rejected"), strict=True):
        assert rows.dtype == torch.int64
        wanted = map(text_key, TRAIN["prompt"], TRAIN[side])
        assert [keys[row] for row in rows.tolist()] == list(wanted)
    assert [len(rows) for rows in reference.rows_of(TRAIN.iloc[:0])] == [0, 0]


def test_the_result_does_not_depend_on_the_order_of_the_data(passed: Pass) -> None:
    one = passed([TRAIN, TEST])
    other = passed([TEST.iloc[::-1], TRAIN.iloc[::-1]])
    assert one.logps == other.logps
    assert list(one.rows) == list(other.rows)
    assert torch.equal(one.features, other.features)


def test_texts_are_told_apart_by_prompt_and_response() -> None:
    assert text_key("a", "bc") != text_key("ab", "c")
    texts = distinct_texts([TRAIN])
    assert [prompt for prompt, _, _ in texts] == sorted(PROMPTS)
    assert (PROMPTS[0], None, ["No, never.", "Yes."]) in texts


def test_features_are_read_when_asked_for(passed: Pass) -> None:
    plain, reference = passed([TRAIN], features=False), passed([TRAIN])
    assert plain.logps == reference.logps
    assert [file.name for file in plain.directory.iterdir()] == [LOGPS]
    with pytest.raises(UserError, match=r"features\.npy: no such file"):
        _ = plain.features
    # What is done to them does not reach the file.
    reference.features.zero_()
    assert load_reference(reference.directory).features.any()
    whole = (reference.directory / FEATURES).read_bytes()
    for damaged in (b"", whole[:-1]):
        (reference.directory / FEATURES).write_bytes(damaged)
        with pytest.raises(UserError, match=r"features\.npy: is damaged"):
            _ = load_reference(reference.directory).features


def test_a_reference_of_no_texts(passed: Pass, base_lm: PersonalizedLM) -> None:
    reference = passed([TRAIN.iloc[:0]])
    assert reference.logps == {}
    assert reference.features.shape == (0, base_lm.base.hidden_size)


def test_pairs_are_encoded_with_their_reference(passed: Pass, base_lm: PersonalizedLM) -> None:
    reference = passed([TRAIN])
    encoder = base_lm.encoder
    weighted = TRAIN.assign(weight=[1.0, 2.0, 0.5])
    pairs = PreferenceDataset(weighted, reference.logps, encoder)
    assert [pair.user_index for pair in pairs] == [1, 2, 3]
    assert [pair.weight for pair in pairs] == [1.0, 2.0, 0.5]
    first = pairs[0]
    assert first.prompt == encoder.prompt(PROMPTS[0])
    assert (first.chosen, first.rejected) == (
        encoder.response("Yes."),
        encoder.response("No, never."),
    )
    assert first.ref_chosen == reference.logps[text_key(PROMPTS[0], "Yes.")]
    assert first.ref_rejected == reference.logps[text_key(PROMPTS[0], "No, never.")]
    assert (pairs[1].ref_chosen, pairs[1].ref_rejected) == (first.ref_rejected, first.ref_chosen)


def test_an_untrained_model_has_no_margin(passed: Pass, base_lm: PersonalizedLM) -> None:
    """The reference pass and the policy agree on what a text is, to the last token."""
    reference = passed([TEST, UNSEEN])
    scores = score_pairs(base_lm, TEST, UNSEEN, reference.logps, "test")
    assert scores["margin"].abs().max() < 1e-3


def stated(part: pd.DataFrame, texts: list[str | None]) -> pd.DataFrame:
    return part.assign(user_text=texts)


def test_a_reference_that_reads_user_texts_keys_by_them(
    passed: Pass, base_lm: PersonalizedLM
) -> None:
    """The same prompt behind two users' texts is two prompts; without a text it is a third."""
    reading = Encoder(base_lm.base.chat, 64, 8, 20)
    part = stated(TRAIN, ["I am a", "I am b", None])
    plain = passed([TRAIN])
    reference = passed([part, part], reading)
    own = {(PROMPTS[0], r, f"I am {u}") for u in "ab" for r in ("Yes.", "No, never.")}
    assert set(reference.logps) == {*plain.logps, *(text_key(*key) for key in own)}
    assert {key: reference.logps[key] for key in plain.logps} == plain.logps
    assert reference.rows == plain.rows
    assert torch.equal(reference.features, plain.features)
    exact = naive.double(base_lm.causal_lm)
    for prompt, response, text in own:
        ids = [*reading.chat.text(f"{text}\n"), *base_lm.encoder.prompt(prompt)]
        expected = naive.response_logp(exact, None, ids, reading.response(response)).item()
        assert reference.logps[text_key(prompt, response, text)] == pytest.approx(
            expected, abs=1e-3
        )
    pairs = PreferenceDataset(part, reference.logps, reading, reference_text=True)
    assert pairs[0].prompt == reading.prompt(PROMPTS[0], "I am a")
    assert pairs[0].ref_chosen == reference.logps[text_key(PROMPTS[0], "Yes.", "I am a")]
    assert pairs[1].ref_rejected == reference.logps[text_key(PROMPTS[0], "Yes.", "I am b")]
    assert pairs[2].ref_chosen == reference.logps[text_key(PROMPTS[1], "Slowly")]
    unread = PreferenceDataset(part, reference.logps, base_lm.encoder, reference_text=True)
    assert list(unread) == list(PreferenceDataset(TRAIN, plain.logps, base_lm.encoder))


def test_a_base_model_behind_the_text_that_its_reference_reads_has_no_margin(
    passed: Pass,
    base_lm: PersonalizedLM,
) -> None:
    """And one whose reference does not has the margin of the text: the prompted baseline."""
    prompted = PersonalizedLM.reference(
        base_lm.base, Encoder(base_lm.base.chat, 64, 8, 20), {"method": "prompted"}
    )
    assert prompted.personalized
    assert not base_lm.personalized
    test = stated(TEST, ["I am a", "I am b", "I am a"])
    unseen = stated(UNSEEN, ["I am z"])
    reference = passed([test, unseen], prompted.encoder)
    margins = [
        score_pairs(prompted, test, unseen, reference.logps, "test", reference_text=reads)["margin"]
        for reads in (True, False)
    ]
    assert margins[0].abs().max() < 1e-3
    exact = naive.double(base_lm.causal_lm)
    rows = [*test.to_dict("records") * 2, *unseen.to_dict("records")]
    for got, row in zip(margins[1], rows, strict=True):
        bare = base_lm.encoder.prompt(row["prompt"])
        behind = [*base_lm.encoder.chat.text(row["user_text"] + "\n"), *bare]
        chosen, rejected = (
            naive.response_logp(exact, None, behind, ids).item()
            - naive.response_logp(exact, None, bare, ids).item()
            for ids in map(base_lm.encoder.response, (row["chosen"], row["rejected"]))
        )
        assert got == pytest.approx(chosen - rejected, abs=4e-3)
        assert abs(got) > 0.01


# -- scoring -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["individual", "cluster", "uniform"])
def test_held_out_pairs(tiny_base: BaseModel, kind: str) -> None:
    lm = personalise(tiny_base, kind)
    texts = [(p, r) for p in PROMPTS for r in ("Yes.", "No", "Slowly", "By magic", "So it is")]
    reference = {text_key(*text): -float(i) for i, text in enumerate(texts)}
    scores = score_pairs(lm, TEST, UNSEEN, reference, "test")
    assert list(scores.columns) == [
        *("split", "condition", "pair_id", "prompt_id", "user_id", "user_index", "group"),
        *("chosen_logp", "rejected_logp", "ref_chosen_logp", "ref_rejected_logp", "margin"),
    ]
    # Seen users' pairs as themselves and as the generic user; unseen users' as the generic one.
    assert list(zip(scores["split"], scores["condition"], strict=True)) == (
        [("test", "user")] * 3 + [("test", "generic")] * 3 + [("unseen", "generic")]
    )
    assert scores["pair_id"].tolist() == [*TEST["pair_id"], *TEST["pair_id"], *UNSEEN["pair_id"]]
    assert scores["user_index"].tolist() == [1, 2, 1, 1, 2, 1, 0]
    logp = logp_of(lm)
    sources = [*TEST.to_dict("records") * 2, *UNSEEN.to_dict("records")]
    for got, row in zip(scores.to_dict("records"), sources, strict=True):
        user = row["user_index"] if got["condition"] == "user" else 0
        chosen = logp(user, row["prompt"], row["chosen"])
        rejected = logp(user, row["prompt"], row["rejected"])
        ref_chosen = reference[text_key(row["prompt"], row["chosen"])]
        ref_rejected = reference[text_key(row["prompt"], row["rejected"])]
        assert got["chosen_logp"] == pytest.approx(chosen, abs=2e-3)
        assert got["rejected_logp"] == pytest.approx(rejected, abs=2e-3)
        assert (got["ref_chosen_logp"], got["ref_rejected_logp"]) == (ref_chosen, ref_rejected)
        margin = (chosen - ref_chosen) - (rejected - ref_rejected)
        assert got["margin"] == pytest.approx(margin, abs=4e-3)
    own, generic = scores.iloc[:3]["margin"], scores.iloc[3:6]["margin"]
    assert np.allclose(own, generic) == (kind == "uniform")
    # Those of validation, to choose settings by, as the user alone; the others stay as they are.
    validation = TEST.iloc[:2].assign(pair_id=["v1", "v2"])
    more = score_pairs(lm, TEST, UNSEEN, reference, "test", validation=validation)
    pd.testing.assert_frame_equal(more[more["split"] != "validation"], scores)
    added = more[more["split"] == "validation"]
    assert added[["pair_id", "condition"]].to_numpy().tolist() == [["v1", "user"], ["v2", "user"]]
    assert added["margin"].to_numpy() == pytest.approx(own.iloc[:2].to_numpy(), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "conditions"),
    [
        ("individual", [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)]),
        ("uniform", [(0, 0), (0, 1)]),
    ],
)
def test_each_condition_of_a_prompt_is_computed_once(
    tiny_base: BaseModel,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    conditions: list[tuple[int, int]],
) -> None:
    lm = personalise(tiny_base, kind)
    scored: list[Row] = []
    score = lm.score

    def watch(rows: Iterable[Row], **options: Any) -> Scores:
        scored.extend(rows)
        return score(scored, **options)

    monkeypatch.setattr(lm, "score", watch)
    responses = ("Yes.", "No", "Slowly", "By magic", "So it is")
    reference = {text_key(p, r): 0.0 for p in PROMPTS for r in responses}
    score_pairs(lm, TEST, UNSEEN, reference, "test")
    ids = [lm.encoder.prompt(prompt) for prompt in PROMPTS]
    assert sorted((row.user_index, ids.index(row.prompt)) for row in scored) == conditions
    for row in scored:
        assert len(set(map(tuple, row.responses))) == len(row.responses)


def test_the_same_prompt_behind_another_text_is_computed_anew(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = personalise(tiny_base, "uniform", max_user_text=20)
    scored: list[Row] = []
    score = lm.score

    def watch(rows: Iterable[Row], **options: Any) -> Scores:
        scored.extend(rows)
        return score(scored, **options)

    monkeypatch.setattr(lm, "score", watch)
    test = stated(TEST, ["I am a", "I am b", "I am a"])
    responses = ("Yes.", "No", "Slowly", "By magic", "So it is")
    reference = {text_key(p, r): 0.0 for p in PROMPTS for r in responses}
    scores = score_pairs(lm, test, stated(UNSEEN, [None]), reference, "test")
    asked = {(0, "I am a"), (1, "I am a"), (1, "I am b"), (1, None)}
    expected = sorted(lm.encoder.prompt(PROMPTS[prompt], text) for prompt, text in asked)
    assert sorted(row.prompt for row in scored) == expected
    # One user chose what the other rejected; that their texts differ shows.
    assert scores["chosen_logp"][0] != scores["rejected_logp"][1]


def test_no_unseen_users(tiny_base: BaseModel) -> None:
    lm = personalise(tiny_base)
    reference = {text_key(p, r): 0.0 for p in PROMPTS for r in ("Yes.", "No", "Slowly", "So it is")}
    scores = score_pairs(lm, TEST, UNSEEN.iloc[:0], reference, "test")
    assert scores["split"].tolist() == ["test"] * 6


def test_answers_are_scored_without_their_end(base_lm: PersonalizedLM) -> None:
    generated = pd.DataFrame(
        {
            "generation_id": ["g1", "g2", "g3"],
            "prompt": [PROMPTS[0], PROMPTS[1], PROMPTS[0]],
            "text": ["Because.", "", "A much longer answer than any response may be"],
        }
    )
    scores, features = score_generations(base_lm, generated, "test")
    assert list(scores.columns) == ["generation_id", "nll", "tokens"]
    assert scores["generation_id"].tolist() == ["g1", "g2", "g3"]
    assert scores["tokens"].tolist() == [8, 0, 45]
    assert scores["nll"][1] == 0
    exact = naive.double(base_lm.causal_lm)
    for i in (0, 2):
        ids = base_lm.encoder.chat.text(generated["text"][i])
        prompt = base_lm.encoder.prompt(generated["prompt"][i])
        expected = -naive.response_logp(exact, None, prompt, ids).item()
        assert scores["nll"][i] == pytest.approx(expected, rel=1e-4)
    # Features are those of the reference pass, for which a response has an end.
    encoder = Encoder(base_lm.base.chat, 64, 64)
    rows = [
        Row(GENERIC, encoder.prompt(prompt), [encoder.response(text)])
        for prompt, text in zip(generated["prompt"], generated["text"], strict=True)
    ]
    expected = base_lm.score(rows, label="test", features=True).features
    assert torch.allclose(features, expected, atol=1e-5)
    assert features.shape == (3, base_lm.base.hidden_size)


def test_nothing_but_empty_answers(base_lm: PersonalizedLM) -> None:
    generated = pd.DataFrame({"generation_id": ["g1"], "prompt": [PROMPTS[0]], "text": [""]})
    scores, _ = score_generations(base_lm, generated, "test")
    assert (scores["nll"][0], scores["tokens"][0]) == (0, 0)


def users_table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user_id": ["stranger", *USERS],
            "user_index": [0, 1, 2, 3],
            "group": ["a", "a", "b", None],
            "seen": [False, True, True, True],
        }
    )


@pytest.mark.parametrize("kind", ["individual", "cluster"])
def test_the_map_of_users(tiny_base: BaseModel, kind: str) -> None:
    lm = personalise(tiny_base, kind)
    got = user_map(lm.user_model, users_table())
    assert got["user_id"].tolist()[:3] == USERS
    assert got["user_id"].isna().tolist() == [False, False, False, True]  # the generic user
    assert got["seen"].tolist() == [True, True, True, False]
    assert got["group"].tolist()[:2] == ["a", "b"]
    embedding = naive.embedding_of(naive.double(lm.user_model))
    points = torch.stack([embedding(u).flatten() for u in (1, 2, 3, 0)]).detach()
    centred = points - points.mean(0)
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    expected = (centred @ axes[:2].T).numpy()
    for column, name in enumerate(("x", "y")):
        assert np.allclose(np.abs(got[name]), np.abs(expected[:, column]), atol=1e-5)
    assert (got["x"] ** 2).sum() == pytest.approx(sizes[0].item() ** 2, rel=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_principal_components_of_few_points(count: int) -> None:
    xy = principal_components(np.arange(3.0 * count).reshape(count, 3))
    assert xy.shape == (count, 2)
    expected = 0.0 if count == 1 else math.sqrt(27) / 2
    assert np.abs(xy[:, 0]).max() == pytest.approx(expected)
    assert np.allclose(xy[:, 1], 0, atol=1e-6)
