"""What the public data sets share: finding their files, and reading records of nested fields.

They are read in the form they are published in, from local files or, unless `data.path` names some,
from the Hugging Face hub. docs/public-data.md says where each is published, and how it is used.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prlhf.data.prompts import UNENCODABLE, describe, encodable
from prlhf.infra.errors import UserError
from prlhf.infra.progress import say
from prlhf.ingest.files import PACKED, read_values, require_object
from prlhf.params import DataParams


def published_files(
    data: DataParams, patterns: list[str], *, hub_id: str | None = None, revision: str | None = None
) -> Path:
    """The directory of a data set's files, or the one file of it that `data.path` names.

    Args:
        data: The `data` section.
        patterns: Of the files to fetch from a hub repository.
        hub_id: The publisher's repository on the hub; None if there is none.
        revision: The revision to read when none is asked for; None for the newest.

    Raises:
        UserError: There are none, or the hub cannot be reached.
    """
    if not data.remote:
        root = Path(data.path)
        if not root.exists():
            raise UserError("no such file or directory", where=root, fix="set data.path")
        return root

    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    name = data.hub.id or hub_id
    assert name is not None, "checked with the parameters"
    with loading_from_hub(name, instead="set data.path"):
        if not sys.stderr.isatty():
            disable_progress_bars()
        found = huggingface_hub.snapshot_download(
            name,
            repo_type="dataset",
            revision=data.hub.revision or revision,
            allow_patterns=patterns,
        )
    # The hub's cache names a snapshot by its commit, which can be pinned.
    say(f"ingest: {name} is at revision {Path(found).name}")
    return Path(found)


@contextlib.contextmanager
def loading_from_hub(name: str, *, instead: str) -> Iterator[None]:
    """Say that a data set is loaded; whatever goes wrong in the block becomes one plain error.

    `instead` is what to do after downloading it by other means.

    Raises:
        UserError: It cannot be loaded.
    """
    import huggingface_hub

    # It logs every retry of every request; what failed in the end is in the error.
    huggingface_hub.logging.set_verbosity_error()
    say(f"ingest: loading {name} from the hub")
    try:
        yield
    except Exception as error:
        # No closed list is documented: network, cache, parsing and look-up errors of four packages
        # are raised, and all of them are about the data set that was asked for.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot load this data set: {reason}",
            where=name,
            fix=f"check data.hub.* and the network, or download it and {instead}",
        ) from error


def files_named(root: Path, name: str) -> list[Path]:
    """The files of this name, packed or not, in a directory or below it."""
    names = [name, *(f"{name}{suffix}" for suffix in PACKED)]
    return sorted(path for each in names for path in root.rglob(each)) if root.is_dir() else []


def file_named(root: Path, name: str) -> Path:
    """The one file of this name.

    Raises:
        UserError: There is none, or more than one.
    """
    found = files_named(root, name)
    if len(found) != 1:
        problem = f"has {len(found)} files named {name}" if found else f"has no file {name}"
        raise UserError(problem, where=root, fix="data.path is the directory of the files")
    return found[0]


def read_nodes(path: Path, wanted: Collection[str]) -> Iterator[tuple[int, Node]]:
    """The records of a file, each with its number; see `files.read_values`.

    Raises:
        UserError: See `read_values`; also where a record is no JSON object.
    """
    for number, where, record in read_values(path, wanted):
        yield number, Node(require_object(record, where), where)


@dataclass(frozen=True, slots=True)
class Node:
    """An object of a record, or the record itself, read with checks.

    Each method returns a field's value; an error names its file, row and field. A field that is not
    there and one that is null are the same: Parquet cannot tell them apart.

    Attributes:
        fields: What it holds.
        where: The record's file and line, for error messages.
        prefix: The object's own path in the record, with a trailing dot.
    """

    fields: Mapping[str, Any]
    where: str
    prefix: str = ""

    def text(self, name: str) -> str:
        """A text."""
        value = self.fields.get(name)
        if not isinstance(value, str):
            raise self._wrong(name, "text", value)
        if not encodable(value):
            raise self.error(name, UNENCODABLE)
        return value

    def text_or_none(self, name: str) -> str | None:
        """A text that may be missing."""
        return None if self.fields.get(name) is None else self.text(name)

    def integer(self, name: str) -> int:
        """A whole number, also as a float without a fraction."""
        value = self.fields.get(name)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(name, "a whole number", value)
        return value

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.fields.get(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def child(self, name: str) -> Node:
        """An object within this one."""
        return self._node(name, self.fields.get(name))

    def children(self, name: str) -> list[Node]:
        """The objects of a list."""
        value = self.fields.get(name)
        if not isinstance(value, list):
            raise self._wrong(name, "a list", value)
        items = {f"{name}[{number}]": item for number, item in enumerate(value)}
        return [self._node(place, item) for place, item in items.items()]

    def error(self, name: str, problem: str) -> UserError:
        """What is wrong with a field, for the caller to raise."""
        return UserError(f'"{self.prefix}{name}": {problem}', where=self.where)

    def _node(self, name: str, value: object) -> Node:
        if not isinstance(value, Mapping):
            raise self._wrong(name, "an object", value)
        return Node(value, self.where, f"{self.prefix}{name}.")

    def _wrong(self, name: str, expected: str, value: object) -> UserError:
        return self.error(name, f"expected {expected}, found {describe(value)}")
