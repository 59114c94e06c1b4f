"""Types and ranges of parameters in words, for error messages and for the reference."""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as at
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ANY_KEY = "<name>"
"""How a key of the user's own choosing is written in documentation."""


class _AnyKey(Mapping[str, FieldInfo]):
    """The keys of a section that is keyed by names of the user's own choosing."""

    def __init__(self, field: FieldInfo) -> None:
        self._field = field

    def __getitem__(self, key: str) -> FieldInfo:
        return self._field

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def keys_of(annotation: Any) -> Mapping[str, FieldInfo] | None:
    """The keys that a section takes, as they stand in the file; None if it is no section.

    A section keyed by free names (`methods`) lists none, and answers for any.
    """
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {field.alias or name: field for name, field in annotation.model_fields.items()}
    if get_origin(annotation) is dict:
        return _AnyKey(FieldInfo.from_annotation(get_args(annotation)[1]))
    return None


def all_keys(annotation: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all keys, sections before what is in them."""
    for name, field in (keys_of(annotation) or {}).items():
        yield (*prefix, name)
        yield from all_keys(field.annotation, (*prefix, name))


def type_of(annotation: Any, allowed: str = "") -> str:
    """A type in plain words: `float` is "a number", `Literal["a", "b"]` is "a or b".

    Args:
        annotation: The type.
        allowed: The range of its first member, as `range_of` gives it.
    """
    members = [
        get_args(member)[0] if get_origin(member) is Annotated else member
        for member in _members(annotation)
    ]
    words = [
        _NAMES.get(get_origin(member) or member, "a mapping")
        for member in members
        if get_origin(member) is not Literal
    ]
    # "a number, auto or null" reads better than "null or a number".
    values = [word for word in words if word != "null"]
    values += [str(v) for one in members if get_origin(one) is Literal for v in get_args(one)]
    values += ["null"] if "null" in words else []
    if allowed:
        values[0] += f" ({allowed})"
    return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} or {values[-1]}"


def range_of(field: FieldInfo) -> str:
    """The values allowed beyond the type, e.g. "from 0 to below 0.5"; empty if all are."""
    low = high = ""
    within = (get_args(m)[1:] for m in _members(field.annotation) if get_origin(m) is Annotated)
    for bound in itertools.chain(field.metadata, *within):
        match bound:
            case at.Ge(ge=value):
                low = f"at least {value}"
            case at.Gt(gt=value):
                low = f"above {value}"
            case at.Le(le=value):
                high = f"at most {value}"
            case at.Lt(lt=value):
                high = f"below {value}"
            case at.MinLen():
                low = "not empty"
    if low.startswith("at least") and high:
        low = low.replace("at least", "from", 1)
        high = high.replace("at most ", "", 1)
        return f"{low} to {high}"
    return " and ".join(bound for bound in (low, high) if bound)


def expectation(field: FieldInfo) -> str:
    """What a field takes, in a phrase that follows "must be"."""
    return type_of(field.annotation, range_of(field))


def annotation_doc(field: FieldInfo) -> str:
    """What a field is for: its description, or its section's without the leading "`name`: "."""
    if field.description:
        return field.description
    text = " ".join((getattr(field.annotation, "__doc__", None) or "").split())
    text = text.partition("`: ")[2] or text
    return text[:1].upper() + text[1:]


def shown(value: Any) -> str:
    """A value as it stands in the file, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    text = f'the text "{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list of names",
    dict: "a mapping",
    types.NoneType: "null",
}
