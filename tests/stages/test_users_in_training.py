"""The stage `train`: who is trained as themselves, who as the generic user, and who is trusted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prlhf.infra.io import read_json, read_parquet, write_parquet
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.user_model import load_user_model, read_card
from training_project import LIKED, USERS, lay_out, train

pytestmark = pytest.mark.usefixtures("project")


@pytest.mark.parametrize("kind", ["individual", "cluster"])
def test_users_with_few_pairs_stay_where_they_were_placed(kind: str) -> None:
    users = read_parquet(Path("data/prepared/users.parquet"))
    users["few"] = users["user_id"] == "ben"
    write_parquet(Path("data/prepared/users.parquet"), users)
    model = load_user_model(train("pdpo", kind))
    rows = model.weights.weight if kind == "cluster" else model.offsets.weight
    placed = LIKED if kind == "cluster" else torch.zeros_like(rows)
    moved = [not torch.equal(row, start) for row, start in zip(rows, placed, strict=True)]
    assert moved[1:] == [True, False, True]
    # What others taught the two of a kind, they are taught as well.
    embeddings = model(torch.tensor([0, 2]))
    assert not torch.equal(embeddings[0], embeddings[1])


def test_where_nothing_is_to_be_gained_p_dpo_is_dpo(project: Path, tiny_path: Path) -> None:
    lay_out(project, tiny_path, USERS, weights=torch.zeros(4, 2), personal=False)
    plain, personal = train("dpo", "uniform"), train("pdpo", "cluster")
    one, other = (
        load_file(str(where / "adapter_model.safetensors")) for where in (plain, personal)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    card = read_card(personal)
    assert card["personal"] is False
    assert card["user_model"]["kind"] == "uniform"
    assert "trust" not in read_json(Path("reports/curves/pdpo.json"))
    lm = PersonalizedLM.from_pretrained(personal)
    assert not lm.personalized
    assert lm.user_model.index("ann") == 1


@pytest.mark.parametrize("pairs", [None, 3])
def test_held_out_pairs_decide_how_far_users_are_trusted(pairs: int | None) -> None:
    directory = train("pdpo", "cluster", trust_pairs=pairs)
    found = read_json(Path("reports/curves/pdpo.json")).get("trust")
    trust = 1.0 if found is None else found["trust"]
    assert (found is None) == (pairs is None)
    assert load_user_model(directory).trust == trust
    card = read_card(directory)
    assert card["training"].get("trust") == found
    assert card["personal"] == (trust > 0)
    if found is not None:
        assert (found["users"], found["pairs"]) == (3, 3)
        assert trust == float(min(found["loss"], key=found["loss"].get))
