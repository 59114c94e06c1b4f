"""What all sections of `params.yaml` share."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A section: no unknown keys, no defaults, no type conversion, no change after loading.

    Keys have no defaults here because DVC sees only what stands in the file: a default that lived
    in the code could change without re-running what depends on it.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def conflict(key: str, problem: str) -> PydanticCustomError:
    """The error of a validator that looks at several keys; it is reported at `key`."""
    return PydanticCustomError("conflict", "{problem}", {"key": key, "problem": problem})


def listed(names: Iterable[str]) -> str:
    """Names as a list in YAML."""
    return f"[{', '.join(names)}]"
