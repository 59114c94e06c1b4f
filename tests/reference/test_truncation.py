"""What the token limits cut off, and pairs whose responses they leave equal."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from prlhf.data import GENERIC, ROUNDING, SPLITS, agreement
from prlhf.data.ids import content_hash
from prlhf.data.prompts import canonical_prompt
from prlhf.data.reference import (
    EQUAL_AFTER_CUT,
    EQUAL_TOKENS,
    SET_ASIDE_COLUMNS,
    load_reference,
    read_pairs,
    text_key,
)
from prlhf.infra.errors import UserError
from prlhf.infra.io import read_json, read_parquet, write_json, write_parquet
from prlhf.models.base import BaseModel, Encoder, load_base
from prlhf.models.packing import Row
from prlhf.models.personalized import PersonalizedLM
from prlhf.params import ReferenceParams, TokenParams, load
from prlhf.stages import reference as stage
from prlhf.truncation import Truncation, measure

ROOT = Path(__file__).resolve().parents[2]
MANY = 10**9


@pytest.fixture(scope="module")
def base(tiny_path: Path) -> BaseModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRLHF_DEVICE", "cpu")
        return load_base(tiny_path, "float32")


def table(rows: list[tuple[str, str, str, str | None]], start: int = 1) -> pd.DataFrame:
    """Prepared pairs from (prompt, chosen, rejected, user's text); every second one is ann's."""
    found = pd.DataFrame(rows, columns=["prompt", "chosen", "rejected", "user_text"], dtype=object)
    names = [f"{'ab'[i % 2]}{i // 2 % 3}" for i in range(len(rows))]
    numbers = range(start, start + len(rows))
    return found.assign(
        prompt=[canonical_prompt(prompt) for prompt in found["prompt"]],
        pair_id=[content_hash(str(number)) for number in numbers],
        user_id=names,
        row=list(numbers),
        user_index=[1 + i % 2 for i in range(len(rows))],
    )


def found_in(tables: dict[str, pd.DataFrame], encoder: Encoder) -> Truncation:
    return measure(tables, encoder, Encoder(encoder.chat, MANY, MANY, MANY), None)


# Few letters, so that many texts begin alike; long and short ones; letters of several bytes.
TEXT = st.text("ab é", max_size=12)
PAIR = st.tuples(st.text("abé", min_size=1, max_size=9), TEXT, TEXT, st.none() | TEXT)


@given(
    train=st.lists(PAIR, max_size=8),
    test=st.lists(PAIR, max_size=4),
    limits=st.tuples(st.integers(40, 60), st.integers(2, 9), st.integers(8, 11)),
)
def test_it_counts_what_each_limit_cuts_and_sets_aside_what_is_left_equal(
    base: BaseModel,
    train: list[tuple[str, str, str, str | None]],
    test: list[tuple[str, str, str, str | None]],
    limits: tuple[int, int, int],
) -> None:
    """Against the encoder itself, pair by pair and limit by limit."""
    encoder = Encoder(base.chat, *limits)
    whole = Encoder(base.chat, MANY, MANY, MANY)
    # A pair that is told apart at any limit, so that there is one.
    told = ("a", "a", "b", None)
    tables = {"train": table([*train, told]), "test": table([*test, told], start=100)}
    result = found_in(tables, encoder)
    for split, pairs in tables.items():
        texts = result.summary["texts"][split]
        for field in ("chosen", "rejected"):
            cut = [encoder.response(text) != whole.response(text) for text in pairs[field]]
            longest = max(len(whole.response(text)) for text in pairs[field])
            expected = {"texts": len(pairs), "cut": sum(cut), "share": np.mean(cut)}
            assert texts[field] == expected | {"longest": longest}
        cut = [encoder.prompt(prompt) != whole.prompt(prompt) for prompt in pairs["prompt"]]
        assert texts["prompt"]["cut"] == sum(cut)
        read = [
            (p, t) for p, t in zip(pairs["prompt"], encoder.user_texts(pairs), strict=True) if t
        ]
        short = Encoder(base.chat, MANY, MANY, limits[2])
        cut = [short.prompt(*each) != whole.prompt(*each) for each in read]
        assert texts["user_text"]["cut"] == sum(cut)
        assert texts["user_text"]["texts"] == len(read)

        aside = result.set_aside[result.set_aside["split"] == split].set_index("pair_id")
        for _, pair in pairs.iterrows():
            one, other = pair["chosen"], pair["rejected"]
            equal = encoder.response(one) == encoder.response(other)
            assert (pair["pair_id"] in aside.index) == equal
            if not equal:
                continue
            row = aside.loc[pair["pair_id"]]
            assert (row["row"], row["user_id"]) == (pair["row"], pair["user_id"])
            if one == other:
                assert row["reason"] == EQUAL_TOKENS
                assert pd.isna(row["max_response"])
                continue
            assert row["reason"] == EQUAL_AFTER_CUT
            enough = [Encoder(base.chat, 99, int(row["max_response"]) - less) for less in (0, 1)]
            assert [e.response(one) == e.response(other) for e in enough] == [False, True]
        counts = result.summary["pairs"][split]
        assert counts["all"] == len(pairs) == counts["used"] + len(aside)
        assert counts[EQUAL_AFTER_CUT] + counts[EQUAL_TOKENS] == len(aside)
        assert len(result.told_apart(pairs, split)) == counts["used"]
    assert ("set_aside" in result.summary["warnings"]) == bool(len(result.set_aside))


def test_texts_that_the_tokenizer_makes_the_same_are_equal_at_any_limit(tiny_path: Path) -> None:
    base = load_base(tiny_path, "float32")
    base.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    pairs = table([("Why?", "YES", "yes", None), ("Why?", "yes", "no", None)])
    result = found_in({"train": pairs}, Encoder(base.chat, 64, 32, 20))
    assert result.set_aside["reason"].tolist() == [EQUAL_TOKENS]
    assert result.set_aside["pair_id"].tolist() == [pairs["pair_id"][0]]
    (warning,) = result.warnings
    assert "1 of 2 pairs are set aside (1 of 2 train)" in warning
    with pytest.raises(UserError, match=r"model\.name: all pairs of train \(1\) .* same tokens"):
        found_in({"train": pairs[:1], "test": pairs[1:]}, Encoder(base.chat, 64, 32, 20))


@pytest.mark.parametrize("split", [*SPLITS, "unseen"])
def test_a_split_without_a_pair_that_is_told_apart_is_one_clear_error(
    base: BaseModel, split: str
) -> None:
    fine = table([("Why?", "yes", "no", None)])
    equal = table([("Why?", "1234567 a", "1234567 b", None), ("How?", "12345x", "12345y", None)])
    tables = {name: equal if name == split else fine for name in (*SPLITS, "unseen")}
    with pytest.raises(UserError) as error:
        found_in(tables, Encoder(base.chat, 64, 5, 20))
    assert error.value.lines() == [
        f"params.yaml: tokens.max_response: all pairs of {split} (2) have two responses that are "
        "the same in their first 5 tokens (9 would tell all of them apart, 6 some of each)"
    ]
    tables[split] = equal[:0]  # one that is empty anyway is none
    assert found_in(tables, Encoder(base.chat, 64, 5, 20)).warnings == []


def test_warnings_name_the_limit_and_what_would_do(base: BaseModel) -> None:
    rows = [(f"Why {i}?", "x" * (99 if i == 0 else 7), "no", "I am ann") for i in range(200)]
    encoder = Encoder(base.chat, 8, 5, 20)
    result = found_in({"train": table(rows)}, encoder)
    prompt = max(len(Encoder(base.chat, MANY, 5).prompt(p)) for p in table(rows)["prompt"])
    assert result.warnings == [
        f"200 of 200 prompts (100%) lose their middle at tokens.max_prompt: 8; {prompt} would keep "
        "all whole",
        "200 of 200 chosen responses (100%) and 0 of 200 rejected responses (0%) lose their end at "
        "tokens.max_response: 5; 100 would keep all whole, 8 99% of them",
    ]
    # Which would keep them whole, and not one less.
    for limit, cut in ((100, 0), (99, 1), (8, 1), (7, 200)):
        result = found_in({"train": table(rows)}, Encoder(base.chat, 64, limit, 20))
        assert result.summary["texts"]["train"]["chosen"]["cut"] == cut
        assert bool(result.warnings) == bool(cut)


def test_a_limit_that_the_model_has_no_positions_for_is_said(base: BaseModel) -> None:
    encoder, whole = Encoder(base.chat, 64, 5, 20), Encoder(base.chat, MANY, MANY, MANY)
    pairs = table([("Why?", "x" * 40, "no", None)])
    (warning,) = measure({"train": pairs}, encoder, whole, 64 + 20 + 30).warnings
    assert warning.endswith("; the model has positions for 30 beside the other limits")
    (warning,) = measure({"train": pairs}, encoder, whole, 64 + 20 + 41).warnings
    assert "positions" not in warning


# -- the stage, and what later stages read --------------------------------------------------------

LONG = "the very same words "
ROWS = [
    ("Why?", "yes", "no", "I am ann"),
    ("How?", LONG + "a", LONG + "b", None),
    ("When?", LONG, "now", None),
]


@pytest.fixture
def project(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRLHF_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_path, tmp_path / "models/base")
    write_json(tmp_path / "models/base/prlhf_source.json", {"kind": "directory", "name": "tiny"})
    for number, split in enumerate((*SPLITS, "unseen")):
        pairs = table(ROWS[:1] if split == "validation" else ROWS, start=10 * number)
        write_parquet(tmp_path / f"data/prepared/{split}.parquet", pairs)
    return tmp_path


def run(max_response: int) -> None:
    """The stage, under this limit."""
    tokens = TokenParams(
        max_prompt=64, max_response=max_response, max_user_text=20, reference_text=False
    )
    model = load(ROOT / "params.yaml").model.model_copy(update={"dtype": "float32"})
    stage.run(model=model, tokens=tokens, reference=ReferenceParams(features=True))


def test_the_stage_says_what_it_cut_and_later_stages_do_without(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(8)
    said = capsys.readouterr().err
    assert (
        "reference: warning: 6 of 10 chosen responses (60%) and 3 of 10 rejected responses (30%) "
        "lose their end at tokens.max_response: 8; 22 would keep all whole\n" in said
    )
    assert (
        "reference: warning: 3 of 10 pairs are set aside (1 of 3 train, 1 of 3 test, 1 of 3 "
        "unseen): 3 have two responses that are the same up to tokens.max_response: 8; 21 would "
        "tell them apart; they are listed in data/reference/set_aside.parquet\n" in said
    )
    summary = read_json(Path("reports/reference.json"))
    assert summary["limits"] == {"max_prompt": 64, "max_response": 8, "max_user_text": 20}
    assert summary["texts"]["test"]["chosen"]["cut"] == 2
    assert summary["pairs"]["test"] == {"all": 3, "used": 2, EQUAL_AFTER_CUT: 1, EQUAL_TOKENS: 0}
    assert all(warning in said for warning in summary["warnings"].values())
    aside = read_parquet("data/reference/set_aside.parquet")
    assert list(aside.columns) == list(SET_ASIDE_COLUMNS)
    assert aside["row"].tolist() == [1, 21, 31]
    logps = load_reference(Path("data/reference")).logps
    assert text_key(canonical_prompt("Why?"), "yes") in logps
    assert text_key(canonical_prompt("How?"), LONG + "a") not in logps

    places = Path("data/prepared"), Path("data/reference")
    for split, kept in (("train", [0, 2]), ("validation", [10]), ("test", [20, 22])):
        pairs = read_pairs(*places, split)
        assert pairs["row"].tolist() == kept
        assert pairs.index.tolist() == list(range(len(kept)))
        some = read_pairs(*places, split, ["chosen", "prompt"])
        pd.testing.assert_frame_equal(some, pairs[["chosen", "prompt"]])
        # All that is left has a reference.
        assert {text_key(p, c) for p, c in zip(pairs["prompt"], pairs["chosen"], strict=True)} <= {
            *logps
        }

    run(22)
    assert "warning" not in capsys.readouterr().err
    assert read_json(Path("reports/reference.json"))["warnings"] == {}
    assert len(read_parquet("data/reference/set_aside.parquet")) == 0
    pd.testing.assert_frame_equal(
        read_pairs(*places, "train"), read_parquet("data/prepared/train.parquet")
    )


def test_nothing_is_written_when_all_pairs_of_a_split_are_equal(project: Path) -> None:
    write_parquet(project / "data/prepared/test.parquet", table(ROWS[1:2]))
    with pytest.raises(UserError, match=r"tokens\.max_response: all pairs of test \(1\)"):
        run(8)
    assert not Path("data/reference").exists()
    assert not Path("reports").exists()


def test_long_texts_make_no_library_speak(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Transformers would warn of sequences longer than the tokenizer's `model_max_length`."""
    config = project / "models/base/tokenizer_config.json"
    settings = read_json(config) | {"model_max_length": 16}
    write_json(config, settings)
    run(8)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(re.match(r"reference: warning: \d", line) for line in lines)


# -- ties -----------------------------------------------------------------------------------------


@given(st.lists(st.floats(-5, 5) | st.floats(-2e-3, 2e-3) | st.just(float("nan")), min_size=1))
def test_margins_within_rounding_are_ties_in_every_library(margins: list[float]) -> None:
    expected = [1.0 if m > 1e-3 else 0.5 if abs(m) <= 1e-3 else 0.0 for m in margins]
    assert agreement(np.array(margins), ROUNDING).tolist() == expected
    assert agreement(pd.Series(margins), ROUNDING).tolist() == expected
    tensor = torch.tensor(margins, dtype=torch.float64)
    assert agreement(tensor, ROUNDING).tolist() == expected


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_rounding_makes_no_winner(base: BaseModel, scale: float) -> None:
    """One model in two batchings has margins against itself that are ties, and not all zero."""
    encoder = Encoder(base.chat, 64, 400)
    lm = PersonalizedLM.reference(base, encoder)
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(list("abcdefgh "), 380)) for _ in range(12)]
    prompt = encoder.prompt(canonical_prompt("Why?"))
    ids = [encoder.response(text) for text in texts]
    head = lm.causal_lm.get_output_embeddings().weight
    before = head.data.clone()
    try:
        head.data *= scale
        alone = lm.score([Row(GENERIC, prompt, [each]) for each in ids], label="a", max_rows=1)
        packed = lm.score([Row(GENERIC, prompt, ids)], label="b")
    finally:
        head.data.copy_(before)
    noise = (alone.logps.double() - packed.logps.double()).numpy()
    margins = noise[:, None] - noise[None, :]
    assert 0 < np.abs(margins).max() <= ROUNDING
    assert (agreement(margins, ROUNDING) == 0.5).all()
