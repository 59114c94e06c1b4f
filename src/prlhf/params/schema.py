"""The whole of `params.yaml`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from prlhf.params.data import DataParams, SplitParams, ValidateParams
from prlhf.params.evaluation import EvaluateParams, GenerateParams
from prlhf.params.model import ModelParams, TokenParams
from prlhf.params.section import Section, conflict, listed
from prlhf.params.training import (
    CompareParams,
    MethodParams,
    PretrainParams,
    TrainParams,
    UserModelParams,
)

RESERVED = ("base", "prompted", "user_model")
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
        description="The models that can be trained, by name; `compare` says which of them are.",
    )
    compare: CompareParams
    train: TrainParams
    generate: GenerateParams
    evaluate: EvaluateParams

    @model_validator(mode="after")
    def _methods_are_known(self) -> Self:
        if unknown := [name for name in self.compare.trained if name not in self.methods]:
            raise conflict(
                "compare.trained",
                f"names {', '.join(unknown)}, but methods has {listed(self.methods)}",
            )
        return self
