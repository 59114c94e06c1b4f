"""Scores for the evaluation: log-probabilities of pairs and answers, and a map of the users."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from prlhf.data import GENERIC
from prlhf.data.reference import text_key
from prlhf.infra.kept import KeptWork
from prlhf.models.packing import Row
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.user_model import UserModel

MOST_MAPPED: Final = 2000
"""Most users on the map; of more, an evenly spread sample is taken."""

SCORED_COLUMNS: Final = ("pair_id", "prompt_id", "user_id", "user_index", "group")


def score_pairs(
    lm: PersonalizedLM,
    test: pd.DataFrame,
    unseen: pd.DataFrame,
    reference: dict[str, float],
    name: str,
    *,
    validation: pd.DataFrame | None = None,
    reference_text: bool = False,
    work: KeptWork | None = None,
) -> pd.DataFrame:
    """Implicit-reward margins of held-out pairs.

    Pairs of seen users are scored as the user and, but for those of validation, as the generic
    user, pairs of unseen users as the generic user. If the model reads users' texts, it does so in
    all cases: the generic user is `u_0 = (u_text, generic id)`. Each distinct (user, text, prompt,
    response) is computed once.

    Args:
        lm: the trained model.
        test: held-out pairs of seen users.
        unseen: held-out pairs of unseen users.
        reference: log pi_ref by text key, nats.
        name: of the method, shown with the progress.
        validation: pairs of seen users that settings are chosen by, and not reported on.
        reference_text: whether pi_ref reads users' texts, too.
        work: see `PersonalizedLM.score`.

    Returns:
        Columns split, condition, those of the pair, chosen_logp, rejected_logp, ref_chosen_logp,
        ref_rejected_logp (nats, summed over tokens) and margin (nats, without beta).
    """
    parts = [
        test.assign(split="test", condition="user", scored_as=test["user_index"]),
        test.assign(split="test", condition="generic", scored_as=GENERIC),
        unseen.assign(split="unseen", condition="generic", scored_as=GENERIC),
    ]
    if validation is not None:
        index = validation["user_index"]
        parts.append(validation.assign(split="validation", condition="user", scored_as=index))
    pairs = pd.concat(parts, ignore_index=True)
    if not lm.user_model.tells_apart:
        pairs["scored_as"] = GENERIC
    user_texts = lm.encoder.user_texts(pairs)
    # To sort by; no user's text is empty.
    own = [text or "" for text in user_texts]
    logps = _logps(lm, pairs, own, name, work)
    seen_by_reference = user_texts if reference_text else [None] * len(pairs)
    for side in ("chosen", "rejected"):
        keys = zip(pairs["scored_as"], pairs["prompt"], own, pairs[side], strict=True)
        pairs[f"{side}_logp"] = [logps[key] for key in keys]
        texts = map(text_key, pairs["prompt"], pairs[side], seen_by_reference)
        pairs[f"ref_{side}_logp"] = [reference[text] for text in texts]
    pairs["margin"] = (pairs["chosen_logp"] - pairs["ref_chosen_logp"]) - (
        pairs["rejected_logp"] - pairs["ref_rejected_logp"]
    )
    sides = ["chosen_logp", "rejected_logp", "ref_chosen_logp", "ref_rejected_logp"]
    return pairs[["split", "condition", *SCORED_COLUMNS, *sides, "margin"]]


def _logps(
    lm: PersonalizedLM,
    pairs: pd.DataFrame,
    user_texts: Sequence[str],
    name: str,
    work: KeptWork | None,
) -> dict[tuple[int, str, str, str], float]:
    """log pi by (scored_as, prompt, user's text, response)."""
    texts: dict[tuple[int, str, str], set[str]] = {}
    for side in ("chosen", "rejected"):
        for user, prompt, own, response in zip(
            pairs["scored_as"], pairs["prompt"], user_texts, pairs[side], strict=True
        ):
            texts.setdefault((user, prompt, own), set()).add(response)
    conditions = [(key, sorted(texts[key])) for key in sorted(texts)]
    encode = lm.encoder
    rows = (
        Row(user, encode.prompt(prompt, own or None), [encode.response(r) for r in responses])
        for (user, prompt, own), responses in conditions
    )
    scores = lm.score(rows, label=f"score {name}: pairs", total=len(conditions), work=work)
    keys = [(*condition, text) for condition, responses in conditions for text in responses]
    return dict(zip(keys, scores.logps.tolist(), strict=True))


def score_generations(
    base: PersonalizedLM, generated: pd.DataFrame, name: str, work: KeptWork | None = None
) -> tuple[pd.DataFrame, Tensor | None]:
    """Negative log-likelihood and features of generated texts under the base model, in one pass.

    The likelihood leaves the end mark out, which says something about length but not
    about fluency. The features include it, as those of the reference pass do.

    Args:
        base: `PersonalizedLM.reference(...)`.
        generated: columns generation_id, prompt, text.
        name: of the method, shown with the progress.
        work: see `PersonalizedLM.score`.

    Returns:
        Columns generation_id, nll (nats, summed over tokens), tokens; and, in the main process, the
        mean last hidden state of each text, float16 [N, d].
    """
    chat = base.encoder.chat
    rows = (
        Row(
            GENERIC,
            base.encoder.prompt(prompt),
            [[*chat.text(text), *chat.conventions.closing]],
        )
        for prompt, text in zip(generated["prompt"], generated["text"], strict=True)
    )
    label = f"score {name}: answers"
    scores = base.score(rows, label=label, total=len(generated), features=True, work=work)
    assert scores.last is not None
    table = pd.DataFrame(
        {
            "generation_id": generated["generation_id"].to_numpy(),
            "nll": (scores.last - scores.logps).double().numpy(),
            "tokens": scores.tokens.numpy() - 1,
        }
    )
    return table, scores.features


@torch.no_grad()
def user_map(user_model: UserModel, users: pd.DataFrame) -> pd.DataFrame:
    """A two-dimensional map of the users' embeddings: their first two principal components.

    Args:
        user_model: a trained user model with at least one user token.
        users: the prepared users table.

    Returns:
        Columns user_id, group, seen, x, y; the generic user is the row without a user_id.
    """
    seen = users[users["seen"]].sort_values("user_index", ignore_index=True)
    if len(seen) > MOST_MAPPED:
        seen = seen.iloc[np.linspace(0, len(seen) - 1, MOST_MAPPED).round().astype(int)]
    generic = pd.DataFrame({"user_id": [None], "user_index": [GENERIC], "group": [None]})
    table = pd.concat([seen[["user_id", "user_index", "group"]], generic], ignore_index=True)
    indices = torch.tensor(table["user_index"].to_numpy(dtype=np.int64))
    points = user_model(indices.to(next(user_model.parameters()).device)).flatten(1)
    xy = principal_components(points.double().cpu().numpy())
    table = table.assign(seen=table["user_index"] != GENERIC, x=xy[:, 0], y=xy[:, 1])
    return table[["user_id", "group", "seen", "x", "y"]]


def principal_components(points: np.ndarray) -> np.ndarray:
    """Coordinates [N, 2] on the first two principal axes of points [N, D], signs fixed."""
    centered = points - points.mean(0)
    # From the N x N Gram matrix, because D (tokens times width) is often larger than N.
    values, vectors = np.linalg.eigh(centered @ centered.T)
    xy = vectors[:, ::-1][:, :2] * np.sqrt(np.clip(values[::-1][:2], 0, None))
    if xy.shape[1] < 2:
        xy = np.pad(xy, ((0, 0), (0, 2 - xy.shape[1])))
    signs = [1.0 if column[np.abs(column).argmax()] >= 0 else -1.0 for column in xy.T]
    return xy * signs
