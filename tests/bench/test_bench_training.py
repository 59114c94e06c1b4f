"""The training benchmark: same work, same result, and nothing measured where it is not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import training, training_page
from benchmarks.agreement import Disagreement, compare
from benchmarks.clock import _peak_of, alternate, ratio
from benchmarks.training import QUICK, check, measure, prepare, same_losses
from benchmarks.variants import Variant
from benchmarks.workload import USER_TOKENS, Shape, Workload, draw
from prlhf.models.base import BaseModel

KEYS = ["ours", "unshared", "full_logits", "reference", "plain", "trl"]

# TRL names an argument that transformers is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def result(tiny_random: BaseModel) -> dict[str, Any]:
    return measure(tiny_random, [QUICK], rounds=2, pairs=4, batch=2, matrix=128)


@pytest.fixture(scope="module")
def prepared(
    tiny_random: BaseModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workload, dict[str, Variant]]:
    """Shared: tests undo what they spoil."""
    workload, variants = prepare(tiny_random, QUICK, 2, 2, 0, tmp_path_factory.mktemp("variants"))
    return workload, {variant.key: variant for variant in variants}


def test_every_variant_is_measured_on_the_same_tokens(result: dict[str, Any]) -> None:
    [shape] = result["shapes"]
    rows = {row["key"]: row for row in shape["variants"]}
    assert list(rows) == KEYS
    for row in rows.values():
        assert len(row["seconds"]) == 2
        per_pair = row["tokens_per_second"] / row["pairs_per_second"]
        assert per_pair == pytest.approx(shape["tokens"] / 4)
    assert rows["ours"]["time_ratio"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert rows["plain"]["time_ratio"] == ratio(rows["plain"]["seconds"], rows["ours"]["seconds"])


def test_what_each_technique_saves_in_memory(result: dict[str, Any]) -> None:
    peaks = {row["key"]: row["peak_bytes"] for row in result["shapes"][0]["variants"]}
    assert peaks["ours"] < min(peaks["unshared"], peaks["full_logits"])
    assert peaks["plain"] > max(peaks["unshared"], peaks["full_logits"])


def test_all_agree_to_rounding(result: dict[str, Any]) -> None:
    for row in result["shapes"][0]["variants"][1:]:
        assert row["agreement"]["loss"] < 1e-5, row["key"]
        assert row["agreement"]["gradient"] < 1e-4, row["key"]


def test_the_table_and_the_plot_have_every_variant(result: dict[str, Any]) -> None:
    text = training_page.text(result)
    drawing = str(training_page.plot(result).render())
    for row in result["shapes"][0]["variants"]:
        assert f"| {row['name']} |" in text
        assert f">{row['name']}</text>" in drawing
    assert "On a GPU: not measured." in text
    assert "random:tiny" in text
    assert "2 pairs a step, 4 pairs and 2 rounds" in text


def test_operations_are_multiplications_and_additions(
    result: dict[str, Any], tiny_random: BaseModel
) -> None:
    """Two for each weight a position meets, forward and again backward; attention and LoRA more."""
    layers = sum(
        m.weight.numel() for n, m in tiny_random.model.named_modules() if n.endswith("_proj")
    )
    # Two conditions; a response's last token is not read.
    pairs = draw(QUICK, 4, 258, seed=1).pairs
    positions = sum(
        2 * (USER_TOKENS + len(p.prompt) + len(p.chosen) + len(p.rejected) - 2) for p in pairs
    )
    least = 2 * 2 * layers * positions
    assert least < result["shapes"][0]["operations"] < 3 * least


# -- wrong variants ------------------------------------------------------------------------------


def refused(ours: Variant, wrong: Variant, match: str) -> None:
    with pytest.raises(Disagreement, match=match):
        check([ours, wrong], torch.float32, pairs=2)
    cast(Any, wrong.trainer.model).zero_grad()


@pytest.mark.parametrize("key", KEYS[1:])
def test_a_wrong_gradient_is_refused(
    prepared: tuple[Workload, dict[str, Variant]], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is the same."""
    variants = prepared[1]
    original = variants[key].trainer.compute_loss

    def wrong(*arguments: Any, **options: Any) -> Any:
        loss = original(*arguments, **options)
        return 1.01 * loss - 0.01 * loss.detach()

    monkeypatch.setattr(variants[key].trainer, "compute_loss", wrong)
    refused(variants["ours"], variants[key], r"gradient of .*nothing is measured")


@pytest.mark.parametrize("key", ["unshared", "full_logits"])
def test_a_wrong_reference_is_refused(
    prepared: tuple[Workload, dict[str, Variant]], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = prepared[1]
    losses = cast(Any, variants[key].trainer).pair_losses

    def wrong(model: Any, batch: Any) -> Any:
        return losses(model, replace(batch, ref_chosen=batch.ref_chosen - 0.5))

    monkeypatch.setattr(variants[key].trainer, "pair_losses", wrong)
    refused(variants["ours"], variants[key], "nothing is measured")


@pytest.mark.parametrize("key", ["reference", "plain"])
def test_the_policy_as_its_own_reference_is_refused(
    prepared: tuple[Workload, dict[str, Variant]], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = prepared[1]
    policy = cast(Any, variants[key].trainer.model).lm
    monkeypatch.setattr(policy, "disable_adapter", nullcontext)
    refused(variants["ours"], variants[key], "nothing is measured")


def test_a_wrong_reference_of_trl_is_refused(
    prepared: tuple[Workload, dict[str, Variant]], monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = prepared[1]
    trainer = variants["trl"].trainer
    rows = [
        {**row, "ref_chosen_logps": row["ref_chosen_logps"] - 0.5}
        for row in cast(Any, trainer.train_dataset)
    ]
    monkeypatch.setattr(trainer, "train_dataset", rows)
    refused(variants["ours"], variants["trl"], "nothing is measured")


def test_other_users_in_front_are_refused(
    prepared: tuple[Workload, dict[str, Variant]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL behind the generic user's tokens only."""
    workload, variants = prepared
    trainer = variants["trl"].trainer
    generic = workload.user_tokens[0].tolist()
    rows = [
        {**row, "prompt_ids": generic + row["prompt_ids"][USER_TOKENS:]}
        for row in cast(Any, trainer.train_dataset)
    ]
    monkeypatch.setattr(trainer, "train_dataset", rows)
    refused(variants["ours"], variants["trl"], "nothing is measured")


def test_one_condition_less_is_refused(
    prepared: tuple[Workload, dict[str, Variant]], monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = prepared[1]
    trainer = variants["unshared"].trainer
    collator = replace(cast(Any, trainer.data_collator), as_generic=False)
    monkeypatch.setattr(trainer, "data_collator", collator)
    refused(variants["ours"], variants["unshared"], "nothing is measured")


def test_responses_that_see_each_other_are_refused(
    prepared: tuple[Workload, dict[str, Variant]], monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = prepared[1]
    trainer = variants["full_logits"].trainer
    collate = trainer.data_collator

    def wrong(pairs: Any) -> Any:
        batch = collate(pairs)["batch"]
        return {"batch": replace(batch, packed=replace(batch.packed, shared=False))}

    monkeypatch.setattr(trainer, "data_collator", wrong)
    refused(variants["ours"], variants["full_logits"], "nothing is measured")


def test_a_loss_that_drifts_while_timed_is_refused(
    prepared: tuple[Workload, dict[str, Variant]],
) -> None:
    variants = [prepared[1]["ours"], prepared[1]["plain"]]
    same_losses(variants, {"ours": 0.7, "plain": 0.7001}, torch.float32)
    with pytest.raises(Disagreement, match="plain: its loss differs"):
        same_losses(variants, {"ours": 0.7, "plain": 0.71}, torch.float32)
    with pytest.raises(Disagreement, match="plain: its loss differs from ours by nan"):
        same_losses(variants, {"ours": 0.7, "plain": float("nan")}, torch.float32)


def test_a_variant_without_the_adapter_is_refused() -> None:
    loss, slope = torch.tensor(0.7), torch.ones(2)
    ours = loss, {"lm.a.lora_A": slope, "user_model.shared": slope}
    with pytest.raises(Disagreement, match="no gradient for the adapter"):
        compare("wrong", ours, (loss, {"user_model.shared": slope}), torch.float32)


def test_gradients_that_vanish_prove_nothing() -> None:
    loss, slope = torch.tensor(0.7), torch.zeros(2)
    with pytest.raises(Disagreement, match="vanishes"):
        compare("wrong", (loss, {"lora_A": slope}), (loss, {"lora_A": slope}), torch.float32)


# -- the parts -----------------------------------------------------------------------------------


def test_lengths_are_ragged_around_the_shape_and_the_same_every_time() -> None:
    shape = Shape("s", 100, 50)
    workload = draw(shape, 40, 258, seed=3)
    assert draw(shape, 40, 258, seed=3).pairs == workload.pairs
    prompts = [len(pair.prompt) for pair in workload.pairs]
    responses = [len(r) for pair in workload.pairs for r in (pair.chosen, pair.rejected)]
    assert 60 <= min(prompts) < 80 < 120 < max(prompts) <= 140
    assert 30 <= min(responses) < 40 < 60 < max(responses) <= 70


def test_tokens_are_those_of_four_plain_sequences() -> None:
    workload = draw(Shape("s", 10, 5), 3, 258, seed=0)
    sequences = [
        [0] * USER_TOKENS + pair.prompt + response
        for pair in workload.pairs
        for _ in ("user", "generic")
        for response in (pair.chosen, pair.rejected)
    ]
    assert workload.tokens() == sum(map(len, sequences))


def test_trl_gets_each_pair_behind_its_user_and_behind_the_generic_one(
    prepared: tuple[Workload, dict[str, Variant]],
) -> None:
    workload, variants = prepared
    rows = variants["trl"].trainer.train_dataset
    prompts = [row["prompt_ids"] for row in rows]
    ids = workload.user_tokens.tolist()
    pairs = workload.pairs
    assert prompts == [ids[p.user_index] + p.prompt for p in pairs] + [
        ids[0] + p.prompt for p in pairs
    ]


def test_rounds_alternate() -> None:
    calls: list[str] = []

    def task(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    seconds = alternate({"a": lambda: task("a"), "b": lambda: task("b")}, 2, "test")
    assert calls == ["a", "b", "a", "b"]
    assert seconds == {"a": [1.0, 3.0], "b": [2.0, 4.0]}
    halves = ratio([1.0, 4.0, 3.0], [2.0, 4.0, 4.0])
    assert halves == {"median": 0.75, "min": 0.5, "max": 1.0}


def test_peak_memory_is_what_lives_at_the_same_time() -> None:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as finished:
        first = torch.empty(10**6)
        second = torch.empty(10**6)
        del first
        third = torch.empty(10**5)
        del second, third
    assert _peak_of(finished) == 8 * 10**6


# -- the command ---------------------------------------------------------------------------------


def test_a_quick_run_says_what_it_found_and_writes_nothing(
    command: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    status, said = command(training.main, "--quick")
    assert status == 0
    assert "| TRL |" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--model", "random:nothing"],
            "error: --model: no shape is called 'nothing' (use one of random:tiny, random:narrow, "
            "random:smollm2-135m, random:llama-1b, random:llama-8b)",
        ),
        (
            ["--model", "random:tiny", "--shapes", "tldr,nothing"],
            "error: --shapes: no shape is called 'nothing' (use some of tldr, psoups, prism)",
        ),
        (
            ["--model", "random:tiny", "--pairs", "3"],
            "error: --pairs: 3 pairs are no whole batches of 2 (use a multiple)",
        ),
        (
            ["--model", "nowhere"],
            "error: nowhere: no base model here (run `dvc repro base_model`)",
        ),
        (
            ["--model", "random:tiny", "--device", "cuda"],
            "error: --device: this machine has no CUDA device (use cpu)",
        ),
    ],
)
def test_mistakes_are_one_line(
    command: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    line: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command(training.main, *arguments) == (2, f"{line}\n")
