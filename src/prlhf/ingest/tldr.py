"""TL;DR: summaries of Reddit posts, compared in pairs by hired workers (Stiennon et al., 2020).

The users are the workers. With `labels: length` their choices are replaced by the paper's synthetic
ones: a worker either always prefers the longer summary or always the shorter one.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from prlhf.data.ids import shuffled
from prlhf.data.prompts import canonical_prompt
from prlhf.infra.errors import UserError
from prlhf.infra.progress import say
from prlhf.ingest.columns import Source, typed_rows
from prlhf.ingest.files import file_format
from prlhf.ingest.published import Node, published_files, read_nodes
from prlhf.ingest.tables import READERS
from prlhf.params import DataParams, TldrParams

HUB_ID: Final = "openai/summarize_from_feedback"
# The repository holds a loading script, which `datasets` no longer runs; the hub's own Parquet
# export of it is a branch.
REVISION: Final = "refs/convert/parquet"

FIELDS: Final = ("info", "summaries", "choice", "worker")
SIDES: Final = {"train": "train", "validation": "test", "valid": "test"}
"""The public splits, by what their files are called: the paper tests on the validation split."""


@dataclass(frozen=True)
class Part:
    """A file of comparisons, and its name in the rows; `side` is None if it is the only one."""

    path: Path
    name: str
    side: str | None


def read(data: DataParams, *, seed: int) -> Source:
    """See `sources.read`; synthetic choices have an oracle."""
    root = published_files(data, ["comparisons/*"], hub_id=HUB_ID, revision=REVISION)
    task = "length" if data.tldr.labels == "length" else None
    return Source(rows(comparisons(root), data.tldr, seed=seed), "tldr", task)


def comparisons(root: Path) -> list[Part]:
    """The files of comparisons below a directory, or the one that `root` is.

    A file's name or its directory's tells the public split, as in `train.jsonl` and
    `comparisons/validation/0000.parquet`.

    Raises:
        UserError: There is no such file.
    """
    if root.is_file():
        return [Part(root, root.name, None)]
    root = root / "comparisons" if (root / "comparisons").is_dir() else root
    parts = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        words = set(re.split(r"[^a-z]+", name.lower()))
        sides = [side for word, side in SIDES.items() if word in words]
        data_file = file_format(path) in READERS and path.is_file()
        if data_file and len(sides) == 1 and not any(p.startswith(".") for p in name.split("/")):
            parts.append(Part(path, name, sides[0]))
    if not parts:
        hint = "their names or directories say train or validation"
        raise UserError("no file of comparisons", where=root, fix=hint)
    return parts


def rows(parts: Iterable[Part], params: TldrParams, *, seed: int) -> pd.DataFrame:
    """Comparisons of two summaries by supervised policies, in the order of the files.

    The `params.users` workers with most training rows are seen users, all others unseen ones. The
    public splits are kept as sides if there are both. With `labels: length`, `group` is "longer" or
    "shorter", and pairs of equally long summaries, about which such users have no opinion, are left
    out.

    Raises:
        UserError: A file is damaged, or a record is not what is published.
    """
    frame, read = _comparisons(parts, real=params.labels == "choice")
    if frame.empty:
        raise UserError(
            f"none of {read} comparisons is between two supervised policies",
            where="data.source: tldr",
            fix="read the public files of the configuration comparisons",
        )
    said = f"{len(frame)} of {read} comparisons are between supervised policies"
    both = {"train", "test"} <= set(frame["side"])
    counted = frame.loc[frame["side"] == "train", "user_id"] if both else frame["user_id"]
    known = set(most_frequent(counted, params.users))
    first, second = frame["first"], frame["second"]
    if params.labels == "length":
        users = frame["user_id"].unique()
        groups = {
            user: group
            for several in (known, set(users) - known)
            for user, group in length_groups(several, params.longer_share, seed).items()
        }
        frame["group"] = frame["user_id"].map(groups)
        longer = first.str.len() - second.str.len()
        first_wins = (longer > 0) == (frame["group"] == "longer")
    else:
        first_wins = frame["choice"] == 0
    frame["chosen"] = first.where(first_wins, second)
    frame["rejected"] = second.where(first_wins, first)
    frame["unseen"] = ~frame["user_id"].isin(known)
    if params.labels == "length":
        frame = frame[longer != 0]
        said += f", {len(longer) - len(frame)} of them between summaries of equal length"
    say(f"ingest: tldr: {said}")
    extra = ["first", "second", "choice"] + ([] if both else ["side"])
    return typed_rows(pd.DataFrame(frame.drop(columns=extra).reset_index(drop=True)))


def most_frequent(users: Iterable[str], count: int) -> list[str]:
    """The `count` users with most rows; the earlier name first among equals."""
    found = Counter(users)
    return sorted(found, key=lambda user: (-found[user], user))[:count]


def length_groups(users: Iterable[str], longer_share: float, seed: int) -> dict[str, str]:
    """Who prefers longer summaries: as near to that share of the users as whole users allow."""
    order = shuffled(users, seed, "tldr_length")
    longer = math.floor(len(order) * longer_share + 0.5)
    return {user: "longer" if rank < longer else "shorter" for rank, user in enumerate(order)}


def supervised(policies: Iterable[str]) -> bool:
    """Whether all policies are supervised ones that were trained on Reddit."""
    return all("sup" in name and "ppo" not in name and "cnn" not in name for name in policies)


def prompt_text(info: Node) -> str:
    """The prompt that the paper's base model was tuned on. Lines without content are left out.

    Raises:
        UserError: There is neither a post nor an article.
    """
    texts = (info.text_or_none(name) for name in ("post", "article"))
    post = next((text for text in texts if text is not None), None)
    if post is None:
        raise info.error("post", "neither a post nor an article")
    fields = {
        "SUBREDDIT": (subreddit := info.text_or_none("subreddit")) and f"r/{subreddit}",
        "TITLE": info.text_or_none("title"),
        "POST": post,
    }
    lines = [f"{name}: {value}\n" for name, value in fields.items() if value]
    return "".join(lines) + "TL;DR: "


def _comparisons(parts: Iterable[Part], *, real: bool) -> tuple[pd.DataFrame, int]:
    """The rows between supervised policies, and how many rows there are."""
    kept: list[tuple[object, ...]] = []
    read = 0
    prompts: dict[str, str] = {}  # posts are compared many times: one string for each
    for part in parts:
        for number, node in read_nodes(part.path, FIELDS):
            read += 1
            summaries = node.children("summaries")
            if len(summaries) != 2:
                raise node.error("summaries", f"expected two, found {len(summaries)}")
            if not supervised([summary.text("policy") for summary in summaries]):
                continue
            text = prompt_text(node.child("info"))
            if text not in prompts:
                prompts[text] = canonical_prompt(text)
            choice = node.integer("choice") if real else 0
            if choice not in (0, 1):
                raise node.error("choice", f"expected 0 or 1, found {choice}")
            texts = [summary.text("text") for summary in summaries]
            user = node.text("worker")
            kept.append((number, part.name, part.side, user, prompts[text], *texts, choice))
    names = ["row", "source", "side", "user_id", "prompt", "first", "second", "choice"]
    return pd.DataFrame(kept, columns=names), read
