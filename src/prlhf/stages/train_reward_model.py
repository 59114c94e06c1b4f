"""Stage `train_reward_model`: a personalised reward model, on a method's kind of user model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from prlhf import distributed
from prlhf.data.contract import require_stated
from prlhf.io import atomic_path, read_parquet, write_json, write_parquet, write_text
from prlhf.models.base import load_base
from prlhf.models.reward_model import PersonalizedRewardModel
from prlhf.progress import say
from prlhf.training.adapted import adapted, encoder_of
from prlhf.training.checkpoints import ROOT, discard, run_key
from prlhf.training.pairs import PairTable
from prlhf.training.pretrained import load_pretrained
from prlhf.training.reward import accuracy_report, fit_reward_model, score_held_out
from prlhf.training.reward_data import divide

if TYPE_CHECKING:
    from prlhf.params import MethodParams, ModelParams, RewardTrainParams, TokenParams

PARAMS: Final = ("seed", "model", "tokens", "train_reward_model", "methods.*")

BASE: Final = Path("models/base")
PREPARED: Final = Path("data/prepared")
PRETRAINED: Final = Path("models/user_model")
SCORES: Final = Path("data/scores")
REPORTS: Final = Path("reports/reward_models")


def run(
    *,
    seed: int,
    model: ModelParams,
    tokens: TokenParams,
    train_reward_model: RewardTrainParams,
    method: MethodParams,
    name: str,
) -> None:
    """Write `models/reward_<name>` and what it makes of held-out pairs.

    The latter is in `reports/reward_models/<name>.{json,csv}`, and pair by pair in
    `data/scores/reward_<name>/pairs.parquet`.

    Raises:
        UserError: the model has no layer for LoRA, the method reads texts that nobody wrote, or
            there is nothing to learn from.
    """
    train = train_reward_model
    settings = {
        "reward_model": True,
        "seed": seed,
        "model": model.model_dump(),
        "tokens": tokens.model_dump(),
        "train": train.model_dump(),
        "method": method.model_dump(),
    }
    splits = ("train", "validation", "test", "unseen")
    inputs = [BASE, *(PREPARED / f"{split}.parquet" for split in splits), PRETRAINED]
    key = run_key(settings, inputs)
    distributed.require_agreement(key)
    checkpoints = ROOT / f"reward_{name}-{key}"

    data = divide({s: read_parquet(PREPARED / f"{s}.parquet") for s in splits}, train.pairs)
    if method.text:
        require_stated(data.learned["user_text"], f"params.yaml: methods.{name}.text")

    base = load_base(BASE, model.dtype)
    encoder = encoder_of(base, tokens, text=method.text)
    pretrained = load_pretrained(PRETRAINED)
    if data.users is not None:
        # Pretraining learned from the training pairs.
        pretrained = pretrained.untrained(data.users)
    origin = {"learned_from": train.pairs}
    lm = adapted(
        base,
        pretrained.initial(method.kind, base, text=method.text),
        encoder,
        train.lora,
        seed=seed,
        where="train_reward_model.lora.targets",
        about={"reward_model": name, **origin, "objective": {"alpha": train.alpha}},
    )
    reward_model = PersonalizedRewardModel(lm)
    label = f"train_reward_model {name}"
    curves = fit_reward_model(
        reward_model,
        train,
        train_pairs=PairTable(data.learned, None, encoder),
        eval_pairs=PairTable(data.watched, None, encoder),
        checkpoints=checkpoints,
        seed=seed,
        label=label,
    )
    scored = score_held_out(reward_model, data.test, data.unseen, label)
    if not distributed.is_main():
        return
    report = accuracy_report(scored)
    accuracy = report["accuracy"]
    say(
        f"{label}: held-out accuracy {accuracy['personalised']:.3f} with users, "
        f"{accuracy['generic']:.3f} without"
    )
    with atomic_path(Path("models") / f"reward_{name}", directory=True) as directory:
        reward_model.save_pretrained(directory)
    write_parquet(SCORES / f"reward_{name}" / "pairs.parquet", scored)
    write_json(REPORTS / f"{name}.json", {"kind": method.kind, **origin, **report})
    write_text(REPORTS / f"{name}.csv", curves.to_csv(index=False, lineterminator="\n"))
    discard(checkpoints)
