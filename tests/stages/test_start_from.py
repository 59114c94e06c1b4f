"""`train.start_from`: training that goes on from a trained model, with other people as well."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from preferences import optimizer_params, train_params
from prlhf.data.reference import load_reference
from prlhf.infra.errors import UserError
from prlhf.infra.io import read_parquet
from prlhf.models.base import Encoder, load_base
from prlhf.models.lora import load_adapters
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.pretrained import load_pretrained
from prlhf.models.user_model import load_user_model, read_card
from prlhf.params import LoraParams
from prlhf.training.dataset import PreferenceDataset
from prlhf.training.finetune import fit
from prlhf.training.trainer import PDPOTrainer
from training_project import LIKED, SOURCE, USERS, hashes, lay_out, train

pytestmark = pytest.mark.usefixtures("project")


def kept(directory: Path, name: str = "earlier") -> str:
    """A copy of a model, as another run's start."""
    shutil.copytree(directory, name)
    return name


def adapter(directory: Path) -> dict[str, Tensor]:
    return load_file(str(directory / "adapter_model.safetensors"))


def fails(name: str, kind: str, start_from: str, **optimizer) -> str:
    with pytest.raises(UserError) as caught:
        train(name, kind, start_from, **optimizer)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["individual", "cluster"])
def test_going_on_is_training_the_trained_model(kind: str) -> None:
    first = kept(train("pdpo", kind))
    done = train("pdpo", kind, first)

    base = load_base(Path("models/base"), "float32")
    users = load_user_model(Path(first))
    start = load_pretrained(Path("models/user_model")).initial(kind, base)
    users.set_prior(start.prior)
    wrapped = PeftModel.from_pretrained(base.model, first, is_trainable=True)
    lm = PersonalizedLM(base, wrapped, users, Encoder(base.chat, 64, 32))
    logps = load_reference(Path("data/reference")).logps
    pairs = {
        split: PreferenceDataset(read_parquet(f"data/prepared/{split}.parquet"), logps, lm.encoder)
        for split in ("train", "validation")
    }
    settings = optimizer_params(micro_batch_size=2, batch_size=2)
    fit(PDPOTrainer, lm, train_params(), settings, pairs, checkpoints=Path("c"), seed=3, label="t")

    found = load_user_model(done)
    for name, value in users.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    trained = {name: p for name, p in wrapped.named_parameters() if "lora_" in name}
    for name, value in adapter(done).items():
        assert torch.equal(trained[name.replace(".weight", ".default.weight")], value), name
        assert not torch.equal(adapter(Path(first))[name], value), name


def test_people_are_matched_by_id(project: Path, tiny_path: Path) -> None:
    first = kept(train("pdpo", "cluster", user_lr=0.5, weights_lr=0.5))
    before = load_user_model(Path(first))
    # Ben is gone, Abe and Zoe are new, and the pretraining has its clusters the other way round.
    people = ["abe", "ann", "cyd", "zoe"]
    liked = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [0.0, 3.0], [0.0, 3.0]])
    lay_out(project, tiny_path, people, weights=liked)
    done = train("pdpo", "cluster", first, user_lr=1e-9, weights_lr=1e-9, lora_lr=1e-9)
    after = load_user_model(done)
    assert after.users == people

    def embedding(model, user: str | None) -> Tensor:
        return model(torch.tensor([model.index(user)]))[0]

    with torch.no_grad():
        for user in ("ann", "cyd", None):
            torch.testing.assert_close(embedding(after, user), embedding(before, user))
        # Zoe's choices are like those of Ann and Cyd: she starts on their side of the generic user.
        step = (embedding(before, "ann") - embedding(before, None)).flatten()
        zoe = (embedding(after, "zoe") - embedding(before, None)).flatten()
        abe = (embedding(after, "abe") - embedding(before, None)).flatten()
        assert 0.3 < float(zoe @ step / step.norm() ** 2) < 1.0
        assert float(abe @ step) < 0
    assert "ben" not in (done / "user_model.json").read_text(encoding="utf-8")


def test_several_models_go_by_their_methods(project: Path) -> None:
    Path("earlier").mkdir()
    shutil.copytree(train("pdpo", "cluster"), "earlier/pdpo")
    shutil.copytree(train("dpo", "uniform"), "earlier/dpo")
    still = {"user_lr": 1e-9, "weights_lr": 1e-9, "lora_lr": 1e-9}
    for name, kind in (("pdpo", "cluster"), ("dpo", "uniform")):
        found = adapter(train(name, kind, "earlier", **still))
        for key, value in adapter(Path("earlier") / name).items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6)
    assert fails("other", "cluster", "earlier") == (
        "params.yaml: train.start_from: earlier holds no trained model, and no directory other "
        "with one (copy models/other of an earlier run there)"
    )


def test_groups_keep_their_adapters_whatever_their_order(project: Path, tiny_path: Path) -> None:
    lay_out(project, tiny_path, ["ann", "abe", "ben"])
    first = kept(train("groups", "group", lora_lr=0.05))
    assert load_user_model(Path(first)).groups == ["a", "b"]
    lay_out(project, tiny_path, ["ann", "ben", "bob", "cyd"])
    done = train("groups", "group", first, lora_lr=1e-9)
    assert load_user_model(done).groups == ["b", "a", "c"]
    for group, old in (("group_0", "group_1"), ("group_1", "group_0")):
        for key, value in adapter(Path(first) / old).items():
            torch.testing.assert_close(adapter(done / group)[key], value, rtol=0, atol=1e-6)
    fresh = adapter(done / "group_2")
    assert all(value.abs().max() < 1e-6 for key, value in fresh.items() if "lora_B" in key)


def test_pdpo_goes_on_from_dpo(project: Path) -> None:
    first = kept(train("dpo", "uniform", lora_lr=0.05))
    done = train("pdpo", "cluster", first, lora_lr=1e-9)
    for key, value in adapter(Path(first)).items():
        torch.testing.assert_close(adapter(done)[key], value, rtol=0, atol=1e-6)
    assert load_user_model(done).kind == "cluster"


def test_users_stay_known_where_new_data_show_no_gain(project: Path, tiny_path: Path) -> None:
    first = kept(train("pdpo", "cluster"))
    lay_out(project, tiny_path, USERS, weights=LIKED, personal=False)
    assert load_user_model(train("plain", "cluster")).kind == "uniform"
    found = load_user_model(train("pdpo", "cluster", first, user_lr=1e-9, weights_lr=1e-9))
    assert found.kind == "cluster"
    everyone = torch.arange(4)
    torch.testing.assert_close(found(everyone), load_user_model(Path(first))(everyone))


def test_the_lineage_is_recorded(project: Path) -> None:
    first = kept(train("dpo", "uniform"), "first")
    second = kept(train("pdpo", "cluster", first), "second")
    card = read_card(train("pdpo", "cluster", second))
    assert card["started_from"]["name"] == "pdpo"
    assert card["started_from"]["started_from"] == {
        "name": "dpo",
        "sha256": read_card(Path(second))["started_from"]["sha256"],
    }
    assert "Went on from | `pdpo`" in Path("models/pdpo/README.md").read_text(encoding="utf-8")
    assert "start_from" not in json.dumps(card)


def test_another_model_behind_the_same_path_is_another_run(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    monkeypatch.setattr(
        "prlhf.stages.train.checkpoint_directory",
        lambda name, key: keys.append(key) or Path(".cache/checkpoints") / f"{name}-{key}",
    )
    first = kept(train("pdpo", "cluster"))
    for _ in range(2):
        train("pdpo", "cluster", first)
    shutil.rmtree(first)
    kept(train("pdpo", "cluster", lora_lr=0.01))
    train("pdpo", "cluster", first)
    assert keys[1] == keys[2] != keys[4]


def test_equal_runs_give_equal_bytes(project: Path) -> None:
    first = kept(train("pdpo", "cluster"))
    once = hashes(train("pdpo", "cluster", first))
    assert hashes(train("pdpo", "cluster", first)) == once


def test_models_that_do_not_fit(project: Path, tiny_path: Path) -> None:
    first = kept(train("pdpo", "cluster"))
    where = "params.yaml: train.start_from: "
    assert fails("dpo", "uniform", first) == (
        f"{where}earlier is of kind cluster, and the method of kind uniform (start from "
        "models/base, or from a model of that kind)"
    )
    assert "of kind cluster, and the method of kind individual" in fails("o", "individual", first)
    for lora, message in (
        ({"r": 4}, "optimizer.lora.r: is 4, but the adapter in earlier has 2"),
        ({"alpha": 8.0}, "optimizer.lora.alpha: is 8.0, but the adapter in earlier has 4.0"),
        ({"targets": ["q_proj"]}, "optimizer.lora.targets: is q_proj, but the adapter in earlier"),
    ):
        whole = {"r": 2, "alpha": 4.0, "dropout": 0.0, "targets": "auto", **lora}
        assert message in fails("pdpo", "cluster", first, lora=LoraParams(**whole))
    card = read_card(Path(first))
    Path(first, "user_model.json").write_text(
        json.dumps({**card, "base": {**card["base"], "sha256": "11"}}), encoding="utf-8"
    )
    assert fails("pdpo", "cluster", first) == (
        f"{where}earlier was trained on another base model (sha256) (its own is {SOURCE['name']})"
    )
    assert "holds no trained model" in fails("pdpo", "cluster", "nowhere")


def test_the_adapter_may_be_loaded_as_ever(project: Path) -> None:
    done = train("pdpo", "cluster", kept(train("pdpo", "cluster")))
    lm = PersonalizedLM.from_pretrained(done)
    base = load_base(Path("models/base"), "float32")
    again = load_adapters(base.model, done, ["default"])
    ids = torch.arange(2, 20)[None]
    with torch.no_grad():
        assert torch.equal(lm.lm(ids).logits, again.eval()(ids).logits)
