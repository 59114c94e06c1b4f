"""The model card: what it says, to people and to the hub, and what it never says."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard

from prlhf.infra.io import sha256
from prlhf.models.model_card import model_card, validation_figures
from prlhf.models.user_model import read_card
from training_project import hashes, lay_out, train, train_reward

USERS = ["ann@example.org", "ben@example.org", "cyd@example.org"]
LIKED = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [3.0, 0.0]])


@pytest.fixture(autouse=True)
def project(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRLHF_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path, tiny_path, USERS, weights=LIKED, source="hub")
    return tmp_path


def test_a_trained_model_has_a_card_for_the_hub(project: Path) -> None:
    directory = train("pdpo", "cluster")
    found = ModelCard.load(directory / "README.md")
    assert found.data.to_dict() == {
        "base_model": "org/Tiny",
        "datasets": ["org/choices"],
        "library_name": "peft",
        "license": "apache-2.0",
        "model_name": "pdpo",
        "pipeline_tag": "text-generation",
        "tags": ["prlhf", "lora", "preferences", "personalization", "dpo"],
    }
    text = found.text
    for part in (
        "trained by P-DPO",
        "the choices of 3 users",
        'PersonalizedLM.from_pretrained("models/pdpo")',
        "`tiny`, package `tiny-llm==1.0`, sha256 `00`",
        f"| sha256 of `train.parquet` | `{sha256(Path('data/prepared/train.parquet'))}` |",
        "9 pairs of 3 users, from `org/choices` (hub)",
        "alpha 0.5, beta 0.3",
        "lora_lr 0.001",
        "| Loss on validation pairs |",
        "it can be wrong, biased or unsafe",
    ):
        assert part in text, part
    adapter = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    assert adapter["base_model_name_or_path"] == "org/Tiny"


def test_nothing_in_it_names_a_user_a_machine_or_a_time(project: Path) -> None:
    directory = train("pdpo", "individual")
    text = (directory / "README.md").read_text(encoding="utf-8")
    for word in (*USERS, "example.org", str(project), "/tmp", str(Path.home())):
        assert word not in text
    once = hashes(directory)
    assert hashes(train("pdpo", "individual")) == once


def test_kinds_say_what_they_are(project: Path) -> None:
    text = (train("dpo", "uniform") / "README.md").read_text(encoding="utf-8")
    assert "trained by DPO on the choices of 3 users" in text
    text = (train("groups", "group") / "README.md").read_text(encoding="utf-8")
    assert "one for each known group of users" in text
    card = read_card(train("pdpo", "cluster"))
    assert "answers each of them to their own taste" in model_card(card)
    assert "alike, because nothing was gained" in model_card({**card, "personal": False})


def test_data_of_ones_own_are_no_data_set_of_the_hub(project: Path, tiny_path: Path) -> None:
    lay_out(project, tiny_path, USERS, weights=LIKED, source="local")
    source = Path("models/base/prlhf_source.json")
    source.write_text(json.dumps({"kind": "directory", "name": "my-model"}), encoding="utf-8")
    data = ModelCard.load(train("pdpo", "cluster") / "README.md").data
    assert (data.datasets, data.base_model, data.license) == (None, None, None)


def test_validation_figures_are_those_of_the_weights_that_were_kept() -> None:
    curves = pd.DataFrame(
        {
            "step": [5, 10, 15, 20],
            "split": ["train", "validation", "train", "validation"],
            "loss": [4.0, 3.0, 2.0, 3.5],
            "accuracy_generic": [0.5, 0.75, 0.5, 0.25],
        }
    )
    assert validation_figures([(curves, 10)]) == {"loss": 3.0, "accuracy_generic": 0.75}
    assert validation_figures([(curves, 20)]) == {"loss": 3.5, "accuracy_generic": 0.25}
    assert validation_figures([(curves, 10), (curves, 20)])["loss"] == 3.25
    assert validation_figures([(curves, 5)]) == {}


def test_a_reward_model_says_how_to_ask_it(project: Path) -> None:
    for split in ("test", "unseen"):
        table = pd.read_parquet("data/prepared/validation.parquet")
        table.assign(prompt_split="test").to_parquet(f"data/prepared/{split}.parquet")
    found = ModelCard.load(train_reward("pdpo", "cluster") / "README.md")
    assert found.data.tags[-1] == "reward-model"
    assert found.data.pipeline_tag is None
    for part in (
        "# reward_pdpo",
        "A personalised reward model on `tiny`",
        'PersonalizedRewardModel.from_pretrained("models/reward_pdpo")',
        "| sha256 of `unseen.parquet` |",
    ):
        assert part in found.text, part
