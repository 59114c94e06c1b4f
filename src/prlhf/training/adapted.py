"""The model that is trained: the base model with a fresh adapter, a user model and an encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prlhf.models.base import BaseModel, Encoder
from prlhf.models.lora import add_lora
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.user_model import UserModel

if TYPE_CHECKING:
    from prlhf.params import LoraParams, TokenParams


def encoder_of(base: BaseModel, tokens: TokenParams, *, text: bool) -> Encoder:
    """Prompts and responses to tokens, for a method that reads users' texts or one that does not.

    Args:
        base: whose tokenizer it is.
        tokens: `tokens.*` of `params.yaml`.
        text: whether it reads users' texts.
    """
    return Encoder(
        base.tokenizer,
        tokens.max_prompt,
        tokens.max_response,
        tokens.max_user_text if text else None,
    )


def adapted(
    base: BaseModel,
    user_model: UserModel,
    encoder: Encoder,
    lora: LoraParams,
    *,
    seed: int,
    where: str,
    about: dict[str, Any],
) -> PersonalizedLM:
    """The base model behind a fresh adapter, which starts as the identity, and a user model.

    Args:
        base: gets the adapter's layers put in.
        user_model, encoder, about: see `PersonalizedLM`.
        lora: rank, scale, dropout and targets of the adapter.
        seed: of its first values.
        where: the key that names its targets, for errors.

    Raises:
        UserError: the model has no layer of these names.
    """
    lm = add_lora(
        base.model,
        rank=lora.r,
        alpha=lora.alpha,
        dropout=lora.dropout,
        targets=lora.targets,
        base_name=str(base.source.get("name", "base")),
        seed=seed,
        where=where,
    )
    return PersonalizedLM(base, lm, user_model, encoder, about)
