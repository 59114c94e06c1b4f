"""Stage `pretrain_user_model`: who the users are, before the language model is tuned."""

from collections.abc import Mapping
from typing import Any, Final

from prlhf.data import as_trained
from prlhf.data.reference import load_reference, read_pairs
from prlhf.infra.io import atomic_path, read_parquet, write_json
from prlhf.infra.progress import say
from prlhf.models.base import Encoder, load_base, read_source
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.pretrained import Pretrained, pairs_of, variant
from prlhf.models.user_model import kind_of
from prlhf.params import MethodParams, ModelParams, PretrainParams, TokenParams, UserModelParams
from prlhf.people.features import Examples
from prlhf.people.files import save_reward
from prlhf.people.hierarchical import fit_hierarchical
from prlhf.stages.paths import BASE, PREPARED, PRETRAIN, PRETRAINED, REFERENCE, USERS
from prlhf.training.dataset import PreferenceDataset
from prlhf.training.finetune import train_soft_prompts

PARAMS: Final = ("seed", "model", "tokens", "user_model", "pretrain", "methods", "compare.trained")

REWARD_MODEL: Final = "reward_model"
"""Directory in `models/user_model` of the reward model that `pretrain.method: reward` fits."""


def run(
    *,
    seed: int,
    model: ModelParams,
    tokens: TokenParams,
    user_model: UserModelParams,
    pretrain: PretrainParams,
    methods: Mapping[str, MethodParams],
    trained: list[str],
) -> None:
    """Write `models/user_model`, the reward model in it, and `reports/pretrain.json`."""
    train, table = read_pairs(PREPARED, REFERENCE, "train"), read_parquet(USERS)
    # Users with few pairs are known by them, but training sees them as the generic user.
    trained_on = as_trained(train, table)
    users = table[table["seen"]].sort_values("user_index")["user_id"].tolist()
    reference = load_reference(REFERENCE)
    clusters = None if user_model.clusters == "auto" else user_model.clusters
    sizes = user_model.model_dump(exclude={"max_clusters"})
    pretrained = Pretrained(
        users, sizes | {"clusters": clusters or 1, "seed": seed}, pairs_of(trained_on, len(users))
    )
    report: dict[str, Any] = {"method": pretrain.method}
    fitted = None
    if pretrain.method == "reward":
        # Pairs between two units are of neither: then the texts are the units.
        by_text = bool(train["unit"].isna().any())
        fitted, figures = fit_hierarchical(
            Examples.of(train, reference, by_text=by_text),
            len(users),
            clusters=clusters,
            max_clusters=user_model.max_clusters,
            **pretrain.model_dump(include={"dimensions", "strength", "rank", "max_pairs", "folds"}),
            seed=seed,
        )
        pretrained.weights, pretrained.personal = fitted.weights, fitted.personal
        assignments = dict(zip(users, fitted.assignments.tolist(), strict=True))
        report |= {**figures, "assignments": assignments}
        say(f"pretrain_user_model: {verdict(figures)}")
    elif pretrain.method == "soft_prompt":
        base = load_base(BASE, model.dtype)
        report["loss"] = {}
        for kind, text in sorted({(methods[name].kind, methods[name].text) for name in trained}):
            if not kind_of(kind).has_embeddings:
                continue
            encoder = Encoder.from_params(base.chat, tokens, text=text)
            start = pretrained.initial(kind, base, text=text)
            lm = PersonalizedLM(base, base.model, start, encoder)
            pairs = PreferenceDataset(
                trained_on, reference.logps, encoder, reference_text=tokens.reference_text
            )
            name = variant(kind, text)
            report["loss"][name] = train_soft_prompts(
                lm, pairs, pretrain, seed=seed, label=f"soft_prompt {name}"
            )
            pretrained.trained[name] = lm.user_model.cpu()
    with atomic_path(PRETRAINED, directory=True) as directory:
        pretrained.save(directory)
        if fitted is not None:
            (directory / REWARD_MODEL).mkdir()
            save_reward(
                fitted,
                directory / REWARD_MODEL,
                users=users,
                base=BASE,
                source=read_source(BASE),
                max_prompt=tokens.max_prompt,
                max_response=tokens.max_response,
                about={"learned_from": "train", "gain": report["gain"]},
            )
    write_json(PRETRAIN, report)


def verdict(figures: Mapping[str, Any]) -> str:
    """Whether there is something to gain from knowing who chooses, in a sentence."""
    gain = figures["gain"]
    if gain["log_loss"]["difference"] is None:
        return "too few choices to tell whether users differ: all are served as the generic user"
    found, control = (
        [f"{accuracy[key]:.3f}" for key in ("personal", "shared")]
        for accuracy in (gain["accuracy"], gain["shuffled"]["accuracy"])
    )
    if gain["personal"]:
        kinds = f"users are mixtures of {figures['clusters']} kinds"
    else:
        kinds = "nothing to gain from telling users apart, all are served as the generic user"
    return (
        f"{kinds}; {found[0]} of choices predicted with users and {found[1]} without "
        f"(cross-validated; with users shuffled {control[0]} and {control[1]})"
    )
