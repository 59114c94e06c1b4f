"""Without user tokens P-DPO is DPO: loss and gradient equal those of TRL's `DPOTrainer`.

Both read the same texts and go their own ways from there: tokens, reference, batch, loss. TRL
computes log-probabilities in float32 whatever the weights are, so float32 is what is compared.

Left out because TRL defines no counterpart: label smoothing of `sigmoid` (TRL smooths `robust`
only), and the penalty on a chosen response below the reference.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer

from personal import enliven, randomise_adapter
from preferences import arguments, optimizer_params, train_params
from prlhf.data.prompts import canonical_prompt
from prlhf.data.reference import load_reference
from prlhf.models.base import BaseModel, Encoder, load_base
from prlhf.models.lora import add_lora
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.user_model import UniformUserModel
from prlhf.params import LoraParams, TrainParams
from prlhf.reference import reference_pass
from prlhf.training.dataset import PreferenceDataset, PreferenceExample
from prlhf.training.trainer import PDPOTrainer
from tiny import tiny_llama, tiny_tokenizer

# TRL names an argument that transformers is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

BETA = 0.3
RAGGED = [
    ("how are you", " fine", " not your concern"),
    ("yes", " no no no no", " no"),
    ("a longer prompt than both others", " ok", " maybe, or not"),
]
EVEN = [("how are you", " fine", " well"), ("yes", " nope", " no! "), ("a", " bcde", " fghi")]
TEXTS = {"ragged": RAGGED, "even": EVEN}


@dataclass(frozen=True)
class Policy:
    """A model that has moved away from its reference, in two independent copies."""

    base: BaseModel
    encoder: Encoder
    ours: PersonalizedLM
    theirs: nn.Module


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """A tiny model without a chat template: TRL's own would add a line break after the answer."""
    path = tmp_path_factory.mktemp("trl") / "base"
    enliven(tiny_llama()).save_pretrained(path)
    tiny_tokenizer(chat=False).save_pretrained(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRLHF_DEVICE", "cpu")
        return load_base(path, "float32")


@pytest.fixture(scope="module", params=["full", "lora"])
def policy(base: BaseModel, request: pytest.FixtureRequest) -> Policy:
    """Every weight trained, or an adapter only."""
    encoder = Encoder(base.chat, max_prompt=64, max_response=32)
    model: Any = copy.deepcopy(base.model)
    if request.param == "lora":
        model = add_lora(
            model,
            LoraParams(r=2, alpha=4, dropout=0.0, targets="auto"),
            base_name="tiny",
            seed=1,
        )
    else:
        move(model.requires_grad_(True))
    lm = PersonalizedLM(base, model, UniformUserModel([], 0, base.hidden_size), encoder)
    randomise_adapter(lm)
    return Policy(base, encoder, lm, copy.deepcopy(model))


def move(model: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    disable_progress_bars()
    yield
    enable_progress_bars()


def their_loss(
    policy: Policy, where: Path, texts: list[tuple[str, str, str]], loss: list[str], **options: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean loss of a batch under TRL, and its gradient."""
    columns = ("prompt", "chosen", "rejected")
    trainer = DPOTrainer(
        model=copy.deepcopy(policy.theirs),
        ref_model=copy.deepcopy(policy.base.model),
        args=DPOConfig(
            output_dir=str(where),
            beta=options.pop("beta", BETA),
            loss_type=loss,
            max_length=None,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to=[],
            disable_tqdm=True,
            **options,
        ),
        train_dataset=Dataset.from_list([dict(zip(columns, row, strict=True)) for row in texts]),
        processing_class=policy.base.tokenizer,
    )
    batch = trainer.data_collator(list(trainer.train_dataset))
    value = trainer.compute_loss(trainer.model, batch)
    return value.detach(), slopes(trainer.model, value)


def our_loss(
    policy: Policy, where: Path, pairs: list[PreferenceExample], objective: TrainParams
) -> tuple[Tensor, dict[str, Tensor]]:
    """The same under `PDPOTrainer`."""
    lm = copy.deepcopy(policy.ours)
    trainer = PDPOTrainer(
        lm,
        objective,
        optimizer_params(),
        arguments=arguments(optimizer_params(), where, pairs=len(pairs), watch=False),
        train_pairs=pairs,
        eval_pairs=[],
    )
    value = trainer.compute_loss(lm, trainer.data_collator(pairs))
    return value.detach(), slopes(lm.lm, value)


def slopes(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(value, list(named.values()))
    return dict(zip(named, found, strict=True))


def encoded(policy: Policy, texts: list[tuple[str, str, str]]) -> list[PreferenceExample]:
    """Pairs as the pipeline makes them, reference log-probabilities included."""
    table = pd.DataFrame(texts, columns=["prompt", "chosen", "rejected"])
    table = table.assign(prompt=table["prompt"].map(canonical_prompt), user_index=0, weight=1.0)
    lm = PersonalizedLM.reference(policy.base, policy.encoder)
    with TemporaryDirectory() as name:
        reference_pass(lm, [table], Path(name))
        logps = load_reference(Path(name)).logps
    return list(PreferenceDataset(table, logps, policy.encoder))


def assert_equal(
    ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]]
) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=2e-5, atol=2e-5)
    assert ours[1].keys() == theirs[1].keys()
    assert len(ours[1]) >= 8
    largest = max(float(slope.abs().max()) for slope in theirs[1].values())
    assert largest > 1e-2
    for name, slope in ours[1].items():
        torch.testing.assert_close(
            slope,
            theirs[1][name],
            rtol=1e-4,
            atol=1e-5 * largest,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("texts", TEXTS)
@pytest.mark.parametrize(
    ("loss", "smoothing"), [("sigmoid", 0.0), ("hinge", 0.0), ("robust", 0.0), ("robust", 0.2)]
)
def test_loss_and_gradient_of_a_batch(
    policy: Policy, tmp_path: Path, texts: str, loss: str, smoothing: float
) -> None:
    pairs = encoded(policy, TEXTS[texts])
    ours = our_loss(
        policy,
        tmp_path,
        pairs,
        train_params(alpha=0.5, beta=BETA, loss=loss, label_smoothing=smoothing),
    )
    assert_equal(
        ours, their_loss(policy, tmp_path, TEXTS[texts], [loss], label_smoothing=smoothing)
    )


@pytest.mark.parametrize("row", range(len(RAGGED)))
def test_each_pair_with_the_likelihood_term(policy: Policy, tmp_path: Path, row: int) -> None:
    """TRL's `sft` is a mean over a batch's tokens, ours over each pair's: alike for one pair."""
    ours = our_loss(
        policy,
        tmp_path,
        encoded(policy, [RAGGED[row]]),
        train_params(alpha=0.5, beta=BETA, nll_coef=0.7),
    )
    theirs = their_loss(
        policy, tmp_path, [RAGGED[row]], ["sigmoid", "sft"], loss_weights=[1.0, 0.7]
    )
    assert_equal(ours, theirs)


def test_ipo_up_to_the_mean_over_tokens(policy: Policy, tmp_path: Path) -> None:
    """TRL takes log-ratios per token, the paper (eq. 17) and ours summed.

    With n tokens in every response, (h/n - 1/(2 beta))^2 = (h - 1/(2 beta/n))^2 / n^2: theirs is
    ours at beta / n, divided by n^2.
    """
    pairs = encoded(policy, EVEN)
    [n] = {len(response) for pair in pairs for response in (pair.chosen, pair.rejected)}
    value, gradient = our_loss(
        policy, tmp_path, pairs, train_params(alpha=0.5, beta=BETA / n, loss="ipo")
    )
    scaled = value / n**2, {name: slope / n**2 for name, slope in gradient.items()}
    assert_equal(scaled, their_loss(policy, tmp_path, EVEN, ["ipo"]))


def test_ipo_of_uneven_lengths_differs_by_that_mean_only(policy: Policy, tmp_path: Path) -> None:
    """Their formula, written out on our log-probabilities."""
    pairs = encoded(policy, RAGGED)
    lm = copy.deepcopy(policy.ours)
    logps = lm(lm.pack([pair.row(0) for pair in pairs])).logps.view(-1, 2)
    terms = []
    for pair, (chosen, rejected) in zip(pairs, logps, strict=True):
        h = (chosen - pair.ref_chosen) / len(pair.chosen)
        h = h - (rejected - pair.ref_rejected) / len(pair.rejected)
        terms.append((h - 1 / (2 * BETA)) ** 2)
    value = torch.stack(terms).mean()
    ours = value.detach(), slopes(lm.lm, value)
    assert_equal(ours, their_loss(policy, tmp_path, RAGGED, ["ipo"]))
