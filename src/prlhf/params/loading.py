"""Reading `params.yaml`, changing keys of it, and saying what is wrong with it at which line."""

import difflib
from collections.abc import Collection, Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

from prlhf.infra.errors import UserError, UserErrors
from prlhf.params.schema import RESERVED, Params
from prlhf.params.section import all_keys, as_written, expectation, keys_of

PARAMS_FILE = Path("params.yaml")
REFERENCE = "docs/parameters.md lists the keys"

MAX_DEPTH: Final = 32
"""Values within values; parameters have four. YAML's reader takes as long as their number squared,
and of a few hundred it runs out of calls within calls."""


def load(path: Path = PARAMS_FILE) -> Params:
    """Read and check all parameters.

    Raises:
        UserError: The file is missing, empty or not YAML.
        UserErrors: Keys are unknown, missing, of a wrong type or out of range: every one of them,
            each with its line.
    """
    return _checked(read_yaml(path), path)


def parse(text: str, path: Path = PARAMS_FILE) -> Params:
    """Check parameters that are not in a file, such as those of another revision.

    Args:
        text: The YAML.
        path: What messages call it.

    Raises:
        UserError: As `load`.
    """
    return _checked(parse_yaml(text, path), path)


def _checked(document: CommentedMap, path: Path) -> Params:
    try:
        return Params.model_validate(as_python(document))
    except ValidationError as error:
        raise UserErrors(_explain(error, document, path)) from None


# -- YAML ----------------------------------------------------------------------------------------


def read_yaml(path: Path) -> CommentedMap:
    """A YAML mapping that knows the line of each of its keys.

    Raises:
        UserError: The file is missing, empty, not UTF-8, not YAML (duplicate keys included), or
            holds something else than a mapping, values nested too deeply, or aliases.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            "no such file", where=path, fix="run this in the directory that holds it"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError("is not UTF-8 text", where=f"{path}:{line}") from None
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path) -> CommentedMap:
    """As `read_yaml`, of a text that messages call `path`."""
    try:
        _require_plain(text, path)
        document = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else path
        problem = str(error.problem or error.context or "cannot be read")
        raise UserError(f"is not valid YAML: {problem}", where=where) from None
    except YAMLError as error:
        raise UserError(f"is not valid YAML: {str(error).splitlines()[0]}", where=path) from None
    if document is None:
        raise UserError("is empty", where=path, fix=REFERENCE)
    if not isinstance(document, CommentedMap):
        raise UserError("must hold keys and values, like `seed: 7`", where=path, fix=REFERENCE)
    return document


def _require_plain(text: str, origin: str | Path) -> None:
    """Refuse what a few characters can make too much of, before anything is made of it."""
    depth = 0
    for event in YAML().parse(text):
        where = f"{origin}:{event.start_mark.line + 1}"
        depth += isinstance(event, CollectionStartEvent)
        depth -= isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UserError("is nested too deeply", where=where, fix=REFERENCE)
        # A few aliases of aliases can stand for more values than any memory holds.
        if isinstance(event, AliasEvent):
            raise UserError(
                f"refers to another value as *{event.anchor}",
                where=where,
                fix="write the value itself",
            )
        # The others are YAML's own: `!!str`.
        valued = isinstance(event, ScalarEvent | CollectionStartEvent)
        if valued and (event.tag or "").startswith("!"):
            raise UserError(f"has the tag {event.tag}", where=where, fix="leave the tag out")


def as_python(node: Any) -> Any:
    """ruamel's round-trip nodes as plain Python: strict models refuse subclasses of float, int."""
    if isinstance(node, dict):
        return {key: as_python(value) for key, value in node.items()}
    if isinstance(node, list):
        return [as_python(value) for value in node]
    if isinstance(node, bool) or node is None:
        return node
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


# -- other values --------------------------------------------------------------------------------


def overridden(path: Path, changes: Mapping[str, Any]) -> str:
    """The text of a parameter file with some keys changed; everything else, comments too, stays.

    Args:
        path: The file to start from. It is only read.
        changes: Dotted key -> value (`{"train.alpha": 0.3}`). A mapping changes the keys it names
            and leaves the others of its section: `{"train": {"alpha": 0.3}}` is the same. A key of
            `methods` that the file lacks is a new method.

    Raises:
        UserError: The file is missing or is not YAML.
        UserErrors: Keys are unknown (the nearest is named), or values are of a wrong type, out of
            range or contradict others: every one of them. Faults that the file has without the
            changes are reported at their lines.
    """
    document = read_yaml(path)
    changed = dict(_leaves(changes))
    faults = [
        UserError("is no name of a parameter", where=".".join(key), fix="write it as train.alpha")
        for key in changed
        if not all(key)
    ]
    for key, value in changed.items():
        if all(key):
            _put(document, key, value)
    try:
        Params.model_validate(as_python(document))
    except ValidationError as error:
        faults += _explain(error, document, path, changed)
    if faults:
        raise UserErrors(faults)
    yaml = YAML(typ="rt")
    yaml.width = 10_000  # it would break longer lines
    yaml.preserve_quotes = True
    # Otherwise the value would be left empty.
    yaml.representer.add_representer(
        type(None),
        lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null"),
    )
    stream = StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def parse_override(text: str) -> tuple[str, Any]:
    """`train.alpha=0.3` as key and value, the value read as YAML.

    Raises:
        UserError: There is no `=`, or the value is not YAML, is nested too deeply or has aliases.
    """
    key, equals, value = text.partition("=")
    if not (key.strip() and equals):
        raise UserError("is no override", where=text, fix="write key=value, as train.alpha=0.3")
    try:
        _require_plain(value, text)
        return key.strip(), YAML(typ="safe", pure=True).load(value)
    except YAMLError as error:
        raise UserError(
            f"the value is not valid YAML: {str(error).splitlines()[0]}", where=text
        ) from None


def _leaves(changes: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[Any]:
    for name, value in changes.items():
        key = (*prefix, *str(name).split("."))
        if isinstance(value, Mapping):
            yield from _leaves(value, key)
        else:
            yield key, value


def _put(document: CommentedMap, key: tuple[str, ...], value: Any) -> None:
    node = document
    for step in key[:-1]:
        if not isinstance(node.get(step), CommentedMap):
            node[step] = CommentedMap()
        node = node[step]
    node[key[-1]] = value


# -- faults --------------------------------------------------------------------------------------


def _explain(
    error: ValidationError,
    document: CommentedMap,
    path: Path,
    elsewhere: Collection[tuple[str, ...]] = (),
) -> list[UserError]:
    """One error per parameter, in the file's order; faults of keys set `elsewhere` have no line."""
    found: dict[tuple[str, ...], tuple[int, UserError]] = {}
    misspelt: set[tuple[str, ...]] = set()
    for detail in error.errors(include_url=False):
        key, field = _locate(detail)
        own = any(key[: len(other)] == other or other[: len(key)] == key for other in elsewhere)
        line = 0 if own else _line(document, key)
        where = "" if own else f"{path}:{line}: " if line else f"{path}: "
        problem, fix = _problem(detail, key, field)
        if field is None and (meant := _sibling(key)):
            misspelt.add(meant)
        # A union reports one error per member: they say the same about one key.
        found.setdefault(key, (line, UserError(problem, where=f"{where}{'.'.join(key)}", fix=fix)))
    missing = {tuple(map(str, d["loc"])) for d in error.errors() if d["type"] == "missing"}
    for key in misspelt & missing:  # one mistake, not two
        found.pop(key)
    return [one for _, one in sorted(found.values(), key=lambda item: item[0])]


def _problem(
    detail: ErrorDetails, key: tuple[str, ...], field: FieldInfo | None
) -> tuple[str, str | None]:
    if detail["loc"][-1:] == ("[key]",):
        return (
            "is no name for a method",
            f"use letters, digits, - and _; taken: {', '.join(RESERVED)}",
        )
    if detail["type"] == "missing":
        return "missing key", REFERENCE
    if detail["type"] == "conflict":
        return str(detail["ctx"]["problem"]), None
    if field is None:
        return "unknown key", _nearest(key)
    return f"must be {expectation(field)}, not {as_written(detail['input'])}", None


def _locate(detail: ErrorDetails) -> tuple[tuple[str, ...], FieldInfo | None]:
    """The key an error is about, without pydantic's own path steps; its field, if there is one."""
    steps = [str(step) for step in detail["loc"] if step != "[key]"]
    if detail["type"] == "conflict":
        steps += str(detail["ctx"]["key"]).split(".")
    key: list[str] = []
    field: FieldInfo | None = None
    children: Mapping[str, FieldInfo] | None = keys_of(Params)
    for step in steps:
        if children is None:  # a leaf: the rest is about the members of its type
            break
        key.append(step)
        field = children.get(step)
        children = keys_of(field.annotation) if field else None
    return tuple(key), field


def _line(document: CommentedMap, key: tuple[str, ...]) -> int:
    """The line of a key; of the nearest section around it when it is absent; 0 for the file."""
    line, node = 0, document
    for step in key:
        if not isinstance(node, CommentedMap) or step not in node:
            break
        position = (node.lc.data or {}).get(step)
        if position is None:  # put there by an override
            break
        line = position[0] + 1
        node = node[step]
    return line


def _nearest(key: tuple[str, ...]) -> str:
    if meant := _sibling(key):
        return f"did you mean {'.'.join(meant)}?"
    elsewhere = {path[-1]: path for path in all_keys(Params)}
    if close := difflib.get_close_matches(key[-1], elsewhere, n=1, cutoff=0.8):
        return f"did you mean {'.'.join(elsewhere[close[0]])}?"
    return f"known here: {', '.join(_siblings(key))}"


def _sibling(key: tuple[str, ...]) -> tuple[str, ...] | None:
    """The known key of the same section that looks most like an unknown one."""
    close = difflib.get_close_matches(key[-1], _siblings(key), n=1)
    return (*key[:-1], close[0]) if close else None


def _siblings(key: tuple[str, ...]) -> list[str]:
    keys: Mapping[str, FieldInfo] | None = keys_of(Params)
    for step in key[:-1]:
        keys = keys_of(keys[step].annotation) if keys else None
    return list(keys or ())
