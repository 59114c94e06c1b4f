"""The model card of a model directory: `README.md`, in the form of the Hugging Face hub.

All that it says is in the directory's own card (`user_model.json`), so that it can be written anew
at any time: with the figures of an evaluation, say, which come after the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from prlhf.infra.io import read_json, sha256, write_text
from prlhf.models.user_model import read_card

MODEL_CARD: Final = "README.md"
TEMPLATE: Final = Path(__file__).parent / "templates" / "model_card.md.j2"

_PAPER = "[Li et al., 2024](https://arxiv.org/abs/2402.05133)"

_SUMMARIES: Final = {
    "uniform": "A LoRA adapter for {base}, trained by DPO on the choices of {users} users between "
    "two responses each. It answers all of them alike.",
    "alike": f"A LoRA adapter for {{base}}, trained by P-DPO ({_PAPER}) on the choices of "
    "{users} users between two responses each. It answers all of them alike, because nothing was "
    "gained on validation pairs by telling them apart.",
    "group": "LoRA adapters for {base}, one for each known group of users, trained by DPO on the "
    "choices of {users} users between two responses each.",
    "individual": "A LoRA adapter for {base} and embeddings of its users, trained by P-DPO "
    f"({_PAPER}) on the choices of {{users}} users between two responses each. It answers each of "
    "them to their own taste.",
    "reward": f"A personalised reward model on {{base}} (P-RM, {_PAPER}): what a user thinks of a "
    "response to a prompt, learned from the choices of {users} users between two responses each.",
}
_SUMMARIES["cluster"] = _SUMMARIES["individual"]

_VALIDATION: Final = {
    "loss": "Loss on validation pairs",
    "accuracy_user": "Choices predicted, validation pairs, as their users",
    "accuracy_generic": "Choices predicted, validation pairs, as the generic user",
}


def describe_data(prepared: Path, names: Sequence[str], learned: pd.DataFrame) -> dict[str, Any]:
    """What a card records of the data: where they are from, how many, and what pins them.

    Args:
        prepared: the directory of the prepared tables.
        names: those of them that were read.
        learned: the pairs that were learned from.
    """
    about = read_json(prepared / "dataset.json")
    return {
        "name": about["name"],
        "source": about["source"],
        "pairs": len(learned),
        "users": int(learned["user_id"].nunique()),
        "sha256": {name: sha256(prepared / f"{name}.parquet") for name in names},
    }


def validation_figures(runs: Sequence[tuple[pd.DataFrame, int]]) -> dict[str, float]:
    """What a model reached on validation pairs: the mean over the training runs behind it.

    Args:
        runs: the training curves of each, and the step after which its weights were kept.
    """
    rows = []
    for curves, step in runs:
        watched = curves[(curves["split"] == "validation") & (curves["step"] <= step)]
        rows.append(watched.tail(1).reindex(columns=list(_VALIDATION)))
    means = pd.concat(rows).mean().dropna()
    return {str(name): round(float(value), 6) for name, value in means.items()}


def write_model_card(directory: Path) -> None:
    """Write the model card of an existing model directory; equal models give equal bytes."""
    write_text(directory / MODEL_CARD, model_card(read_card(directory)))


def model_card(
    card: Mapping[str, Any],
    *,
    figures: Sequence[tuple[str, str]] = (),
    results: Sequence[EvalResult] = (),
    note: str = "",
    repo: str | None = None,
) -> str:
    """The model card as text.

    Args:
        card: what `user_model.json` says.
        figures: an evaluation's figures, as labels and values to print.
        results: those of them that the hub is to show beside the model.
        note: a remark on the figures.
        repo: the repository on the hub that it is for; None for a directory under `models/`.
    """
    base, data = {"name": "base"} | card["base"], card["data"]
    reward = "reward_model" in card
    name = f"reward_{card['reward_model']}" if reward else card["method"]
    kind = "reward" if reward else card["user_model"]["kind"]
    alike = kind in {"individual", "cluster"} and not card["personal"]
    tags = ["prlhf", "lora", "preferences", "personalization"]
    content = ModelCardData(
        base_model=base.get("hub_id"),
        library_name="peft",
        license=base["license"].lower() if "license" in base else None,
        pipeline_tag=None if reward else "text-generation",
        tags=[*tags, "reward-model" if reward else "dpo"],
        datasets=[data["name"]] if data["source"] == "hub" else None,
        model_name=name,
        eval_results=list(results) or None,
    )
    validation = [
        (label, f"{card['validation'][key]:.4g}")
        for key, label in _VALIDATION.items()
        if key in card["validation"]
    ]
    text = ModelCard.from_template(
        content,
        template_path=str(TEMPLATE),
        name=name,
        summary=_SUMMARIES["alike" if alike else kind].format(
            base=f"`{base['name']}`", users=data["users"]
        ),
        base=base,
        users=data["users"],
        stripped=kind != "uniform" and not card["users"],
        repo=repo,
        figures=[*validation, *figures],
        note=note,
        made=_how_it_was_made(card),
        **(_REWARD if reward else _LANGUAGE),
    )
    return str(text)


_LANGUAGE: Final = {
    "imports": "from prlhf.generation import generate\n"
    "from prlhf.models.personalized import PersonalizedLM",
    "loader": "PersonalizedLM",
    "usage": 'answers = generate(model, ["What is a shark?"] * 2, users=["ann", None])',
}
_REWARD: Final = {
    "imports": "from prlhf.rewards.lm import PersonalizedRewardModel",
    "loader": "PersonalizedRewardModel",
    "usage": 'rewards = model.reward(["What is a shark?"] * 2, ["A fish.", "A large fish."], '
    '["ann", None])',
}


def _how_it_was_made(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Labels and values, without anything that names a user."""
    base, data = {"name": "base"} | card["base"], card["data"]
    pinned = [f"{key} `{base[key]}`" for key in ("package", "commit", "sha256") if key in base]
    rows = [("Base model", ", ".join([f"`{base['name']}`", *pinned]))]
    if "started_from" in card:
        started = card["started_from"]
        rows.append(("Went on from", f"`{started['name']}`, sha256 `{started['sha256']}`"))
    size = f"{data['pairs']} pairs of {data['users']} users"
    rows.append(("Data", f"{size}, from `{data['name']}` ({data['source']})"))
    for name, digest in data["sha256"].items():
        rows.append((f"sha256 of `{name}.parquet`", f"`{digest}`"))
    sections = [
        ("User model", card["user_model"]),
        ("Objective", card["objective"]),
        ("Optimiser", card["optimizer"]),
        *(("Training run", run) for run in card["training"]["runs"]),
        ("Longest texts, in tokens", card["tokens"]),
        ("Seed", {"seed": card["seed"]}),
    ]
    for label, values in sections:
        # Groups go by names that the data bring.
        shown = {key: value for key, value in values.items() if key != "groups"}
        rows.append((label, ", ".join(f"{key} {_plain(value)}" for key, value in shown.items())))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({', '.join(f'{key} {_plain(part)}' for key, part in value.items())})"
    return "none" if value is None else str(value)
