"""Another `params.yaml`: the same file with some keys changed, for one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from prlhf.errors import UserError, UserErrors
from prlhf.params.loading import explain, plain, read_yaml
from prlhf.params.schema import Params

WIDTH = 10_000
"""Characters after which ruamel would break a line: never."""


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
        Params.model_validate(plain(document))
    except ValidationError as error:
        faults += explain(error, document, path, changed)
    if faults:
        raise UserErrors(faults)
    return _dumped(document)


def parse_override(text: str) -> tuple[str, Any]:
    """`train.alpha=0.3` as key and value, the value read as YAML.

    Raises:
        UserError: There is no `=`, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not (key.strip() and equals):
        raise UserError("is no override", where=text, fix="write key=value, as train.alpha=0.3")
    try:
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


def _dumped(document: CommentedMap) -> str:
    yaml = YAML(typ="rt")
    yaml.width = WIDTH
    yaml.preserve_quotes = True
    yaml.representer.add_representer(type(None), _null)
    stream = StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def _null(representer: Any, _: None) -> Any:
    # ruamel leaves the value empty.
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")
