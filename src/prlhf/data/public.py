"""The public data sets of the paper's experiments, in the form they are published in.

They are read from local files or, unless `data.path` names some, from the Hugging Face hub.
docs/public-data.md says where each is published, and what is made of it.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prlhf.data import prism, psoups, tldr
from prlhf.data.files import READERS
from prlhf.errors import UserError
from prlhf.progress import say

if TYPE_CHECKING:
    import pandas as pd

    from prlhf.params import DataParams, HubParams


@dataclass(frozen=True)
class Published:
    """Where a data set is published.

    Attributes:
        files: Patterns of the files to fetch from a hub repository.
        hub_id: The publisher's repository on the hub; None if there is none.
        revision: The revision to read when none is asked for; None for the newest.
    """

    files: tuple[str, ...]
    hub_id: str | None = None
    revision: str | None = None


PUBLISHED: Final = {
    # The repository holds a loading script, which `datasets` no longer runs; the hub's own Parquet
    # export of it is a branch.
    "tldr": Published(("comparisons/*",), "openai/summarize_from_feedback", "refs/convert/parquet"),
    "psoups": Published((f"*{psoups.FILE}", *(f"*{name}.json" for name in psoups.NAMES))),
    "prism": Published((prism.SURVEY, prism.CONVERSATIONS), "HannahRoseKirk/prism-alignment"),
}
"""By `data.source`."""


def read(data: DataParams, *, seed: int) -> pd.DataFrame:
    """Rows of the public data set that `data.source` names, in the form of `contract.ROW_COLUMNS`.

    Raises:
        UserError: Its files are not there, are damaged, or are not what is published.
    """
    root = _download(data.hub, PUBLISHED[data.source]) if data.remote else Path(data.path)
    if not root.exists():
        raise UserError("no such file or directory", where=root, fix="set data.path")
    if data.source == "tldr":
        return tldr.rows(comparisons(root), data.tldr, seed=seed)
    if data.source == "psoups":
        return psoups.rows(soups(root))
    survey, conversations = (_only(root, name) for name in (prism.SURVEY, prism.CONVERSATIONS))
    return prism.rows(survey, conversations, data.prism, seed=seed)


def comparisons(root: Path) -> list[tldr.Part]:
    """The files of TL;DR's comparisons below a directory, or the one that `root` is.

    Which public split a file belongs to stands in its name or in its directory's, as in
    `train.jsonl` and `comparisons/validation/0000.parquet`.

    Raises:
        UserError: There is no such file.
    """
    if root.is_file():
        return [tldr.Part(root, root.name, None)]
    root = root / "comparisons" if (root / "comparisons").is_dir() else root
    parts = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        words = set(re.split(r"[^a-z]+", name.lower()))
        sides = [side for word, side in tldr.SIDES.items() if word in words]
        data_file = Path(name.removesuffix(".gz")).suffix in READERS and path.is_file()
        if data_file and len(sides) == 1 and not any(p.startswith(".") for p in name.split("/")):
            parts.append(tldr.Part(path, name, sides[0]))
    if not parts:
        raise UserError(
            "no file of comparisons",
            where=root,
            fix="their names or directories say train or validation",
        )
    return parts


def soups(root: Path) -> dict[Path, int | None]:
    """The file that holds the choices of all six users, or that of each, below a directory.

    Or the file that `root` is.

    Raises:
        UserError: There is neither, or one of the six is missing.
    """
    if root.is_file():
        return {root: None}
    raw = [f"{name}.json" for name in psoups.NAMES]
    if _named(root, psoups.FILE) or not any(_named(root, name) for name in raw):
        return {_only(root, psoups.FILE): None}
    return {_only(root, name): user for user, name in enumerate(raw, 1)}


def _only(root: Path, name: str) -> Path:
    """The one file of this name, gzipped or not, in a directory or below it."""
    found = _named(root, name)
    if len(found) != 1:
        problem = f"has {len(found)} files named {name}" if found else f"has no file {name}"
        raise UserError(problem, where=root, fix="data.path is the directory of the files")
    return found[0]


def _named(root: Path, name: str) -> list[Path]:
    return sorted([*root.rglob(name), *root.rglob(f"{name}.gz")]) if root.is_dir() else []


def _download(hub: HubParams, published: Published) -> Path:
    """The published files, from the hub or from its local cache."""
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    name = hub.id or published.hub_id
    assert name is not None, "checked with the parameters"
    huggingface_hub.logging.set_verbosity_error()
    say(f"ingest: loading {name} from the hub")
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        found = huggingface_hub.snapshot_download(
            name,
            repo_type="dataset",
            revision=hub.revision or published.revision,
            allow_patterns=list(published.files),
        )
    except Exception as error:
        # Network, cache and look-up errors of several packages: all are about these files.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot load this data set: {reason}",
            where=name,
            fix="check data.hub.* and the network, or download it and set data.path",
        ) from error
    # The hub's cache names a snapshot by its commit, which is what to pin.
    say(f"ingest: {name} is at revision {Path(found).name}")
    return Path(found)
