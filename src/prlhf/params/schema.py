"""The whole of `params.yaml`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from prlhf.params.data import DataParams, SplitParams, ValidateParams
from prlhf.params.evaluation import EvaluateParams, GenerateParams
from prlhf.params.judging import JudgeParams
from prlhf.params.model import ModelParams, TokenParams
from prlhf.params.section import Section
from prlhf.params.training import MethodParams, PretrainParams, TrainParams, UserModelParams

RESERVED = ("base", "user_model")
"""Directories under models/ that are no trained method's."""


def _not_reserved(name: str) -> str:
    if name in RESERVED:
        raise PydanticCustomError("reserved", "reserved name")
    return name


MethodName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$"), AfterValidator(_not_reserved)
]
"""Names a directory under models/."""


class Params(Section):
    """Every parameter of the pipeline; field by field the sections of `params.yaml`."""

    seed: int = Field(
        ge=0, lt=2**32, description="Seed of everything random: sampling, splits, training."
    )
    model: ModelParams
    data: DataParams
    validate_: ValidateParams = Field(alias="validate")
    split: SplitParams
    tokens: TokenParams
    user_model: UserModelParams
    pretrain: PretrainParams
    methods: dict[MethodName, MethodParams] = Field(
        min_length=1,
        description="The models to train and compare, by name; `base`, the untuned model, is "
        "always compared.",
    )
    train: TrainParams
    generate: GenerateParams
    judge: JudgeParams
    evaluate: EvaluateParams
