"""What the sections of `params.yaml` share, and what they say of each key.

In messages, in docs/parameters.md, and in the comments of `params.yaml`.
"""

import itertools
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as at
from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.tokens import ScalarToken

ANY_KEY = "<name>"
"""How documentation writes a key that users name themselves."""

INTRODUCTION = """\
# Parameters

<!-- Written by `prlhf params docs` from the typed parameters: edit src/prlhf/params/ instead. -->

Everything that can be set stands in `params.yaml` with its value, and every key must be there:
there are no defaults besides that file. The first sentence about a key is its comment there.
`prlhf params check` verifies a file without running anything, and every stage does so before it
starts. Beside each section stand the stages that read it: a changed value re-runs those stages and
what follows them.
"""

COLUMN = 32
"""Where comments of params.yaml begin."""


class Section(BaseModel):
    """A section: no unknown keys, no defaults, no type conversion, no change after loading.

    Keys have no defaults because DVC sees only what is in the file: a default in the code could
    change without re-running anything.
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


def require_known(key: str, names: Iterable[str], where: str, known: Collection[str]) -> None:
    """Raise `conflict` if `key` has a name that is not among the keys or names of `where`."""
    if unknown := [name for name in names if name not in known]:
        raise conflict(key, f"names {', '.join(unknown)}, but {where} has {listed(known)}")


def require_distinct(key: str, names: Sequence[str]) -> None:
    """Raise `conflict` if `key` has a name twice."""
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise conflict(key, f"names {', '.join(twice)} more than once")


# -- keys ----------------------------------------------------------------------------------------


class _AnyKey(Mapping[str, FieldInfo]):
    """The keys of a section whose keys users name themselves."""

    def __init__(self, field: FieldInfo) -> None:
        self._field = field

    def __getitem__(self, key: str) -> FieldInfo:
        return self._field

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def keys_of(annotation: Any) -> Mapping[str, FieldInfo] | None:
    """The keys of a section as they are spelt in the file; None if it is no section.

    A section whose keys users name themselves (`methods`) lists none, and has a field for any.
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


def meaning(field: FieldInfo) -> str:
    """A field's description, or its section's docstring without the leading "`name`: "."""
    if field.description:
        return " ".join(field.description.split())
    text = " ".join((getattr(field.annotation, "__doc__", None) or "").split())
    text = text.partition("`: ")[2] or text
    return text[:1].upper() + text[1:]


# -- values --------------------------------------------------------------------------------------

_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list of names",
    dict: "a mapping",
    types.NoneType: "null",
}


def type_of(annotation: Any, allowed: str = "") -> str:
    """A type in plain words: `float` is "a number", `Literal["a", "b"]` is "a or b".

    `allowed`, a range as of `range_of`, follows the first word.
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
    values += choices(annotation)
    values += ["null"] if "null" in words else []
    if allowed:
        values[0] += f" ({allowed})"
    return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} or {values[-1]}"


def choices(annotation: Any) -> list[str]:
    """The words that a type lists as its values."""
    literals = [one for one in _members(annotation) if get_origin(one) is Literal]
    return [str(value) for one in literals for value in get_args(one)]


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


def as_written(value: Any) -> str:
    """A value as it is written in the file, shortened."""
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


# -- the reference page --------------------------------------------------------------------------


def reference_page(params: type[Section], declared: Mapping[str, Sequence[str]]) -> str:
    """The reference as Markdown.

    Args:
        params: The whole of `params.yaml`.
        declared: Stage -> the keys of params.yaml that it reads.
    """
    parts = [INTRODUCTION]
    for name, field in (keys_of(params) or {}).items():
        stages = [
            f"`{stage}`"
            for stage, read in declared.items()
            if name in {key.partition(".")[0] for key in read}
        ]
        parts += [f"\n## {name}\n", f"{meaning(field)}\n"]
        parts += [f"Read by: {', '.join(stages) or 'no stage'}.\n"]
        parts += ["| Key | Type | Range | Meaning |", "|---|---|---|---|"]
        parts += [*(_row(*entry) for entry in _leaves(name, field)), ""]
    return "\n".join(parts).rstrip().replace("\n\n\n", "\n\n") + "\n"


def _leaves(key: str, field: FieldInfo) -> Iterator[tuple[str, FieldInfo]]:
    keys = keys_of(field.annotation)
    if keys is None:
        yield key, field
        return
    for name in keys or [ANY_KEY]:
        yield from _leaves(f"{key}.{name}", keys[name])


def _row(key: str, field: FieldInfo) -> str:
    cells = [f"`{key}`", type_of(field.annotation), range_of(field), meaning(field)]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


# -- comments ------------------------------------------------------------------------------------


def commented(text: str, params: type[Section]) -> str:
    """A parameter file with a comment behind each key; values and other lines stay as they are.

    Keys that users name themselves keep their own comments, and so do the keys below them.

    Args:
        text: The file's content, which must be valid YAML.
        params: The whole of `params.yaml`.
    """
    places: dict[int, FieldInfo] = {}
    for line, field in _places(YAML(typ="rt").load(text), keys_of(params) or {}):
        places.setdefault(line, field)
    ends = _ends(text)
    lines = text.splitlines()
    for line in places.keys() & ends.keys():
        own = lines[line][: ends[line]]
        width = COLUMN if len(own) < COLUMN else len(own) + 2
        lines[line] = f"{own:{width}}# {comment(places[line])}"
    return "\n".join(lines) + "\n"


def same(text: str, other: str) -> bool:
    """Whether two files differ by no more than white space."""
    return text.split() == other.split()


def comment(field: FieldInfo) -> str:
    """The first sentence about a field, and the words to choose from if it takes nothing else."""
    text = meaning(field)
    words = choices(field.annotation) if get_origin(field.annotation) is Literal else []
    if words and text.startswith("`"):  # there is no sentence before what each word means
        return " | ".join(words)
    first = text.partition(". ")[0].removesuffix(".").replace("`", "")
    if first[1:2].islower() or first[1:2] == " ":
        first = first[:1].lower() + first[1:]
    return ": ".join([first, *([" | ".join(words)] if words else [])])


def _places(
    document: CommentedMap, keys: Mapping[str, FieldInfo]
) -> Iterator[tuple[int, FieldInfo]]:
    """The line of each key, counted from 0, and what it is."""
    for name, field in keys.items():
        if name in (document.lc.data or {}):
            yield document.lc.key(name)[0], field
            if isinstance(document[name], CommentedMap):
                yield from _places(document[name], keys_of(field.annotation) or {})


def _ends(text: str) -> dict[int, int]:
    """Line -> column where its YAML ends; without lines on which a longer text begins."""
    ends: dict[int, int] = {}
    for token in YAML(typ="safe", pure=True).scan(text):
        start, end = token.start_mark, token.end_mark
        if isinstance(token, ScalarToken) and start.line < end.line:
            ends.pop(start.line, None)
        elif start.index < end.index:
            ends[end.line] = end.column
    return ends
