"""Stage `generate`: answers to held-out prompts, for each user and for the generic user."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from prlhf import distributed
from prlhf.data.contract import require_stated
from prlhf.data.prompts import read_prompts, without_learned
from prlhf.io import content_hash, read_parquet, write_parquet
from prlhf.models.generation import Sampling
from prlhf.models.load import load_method
from prlhf.models.user_model import GENERIC
from prlhf.progress import say

if TYPE_CHECKING:
    from prlhf.params import GenerateParams, ModelParams, TokenParams

PARAMS: Final = ("seed", "model", "tokens", "generate")

PREPARED: Final = Path("data/prepared")
TEST: Final = PREPARED / "test.parquet"
OUTPUT: Final = Path("data/generated")
USERS: Final = ("user_id", "user_index", "group", "user_text", "seen")


def run(
    *, seed: int, model: ModelParams, tokens: TokenParams, generate: GenerateParams, name: str
) -> None:
    """Write `data/generated/<name>.parquet`.

    Raises:
        UserError: the method reads what users say of themselves, and nobody says anything; or the
            prompts cannot be read.
    """
    found = prompts_to_answer(Path(generate.prompts_path), f"generate {name}")
    prompts = some_prompts(found, generate.prompts, seed)
    lm = load_method(name, model.dtype, tokens)
    users = read_parquet(PREPARED / "users.parquet", USERS)
    if lm.encoder.reads_text:
        require_stated(users["user_text"], f"method {name}")
    rows = requests(
        prompts,
        users,
        personalised=lm.personalised,
        reads_text=lm.encoder.reads_text,
        most=generate.users,
    )
    completions = lm.complete(
        list(zip(rows["user_index"].tolist(), rows["prompt"].tolist(), strict=True)),
        lm.encoder.user_texts(rows),
        sampling=Sampling(
            generate.max_new_tokens,
            generate.temperature,
            generate.top_p,
            generate.repetition_penalty,
            generate.no_repeat_ngram,
        ),
        seed=seed,
        batch_size=generate.batch_size,
        label=f"generate {name}",
    )
    if not distributed.is_main():
        return
    rows["generation_id"] = [
        content_hash(name, condition, user or "", prompt)
        for condition, user, prompt in zip(
            rows["condition"], rows["user_id"], rows["prompt_id"], strict=True
        )
    ]
    rows["method"] = name
    rows["text"] = [lm.decode(completion.ids) for completion in completions]
    rows["tokens"] = [len(completion.ids) for completion in completions]
    rows["finished"] = [completion.finished for completion in completions]
    columns = ["generation_id", "method", "condition", "user_id", "group", "prompt_id", "prompt"]
    write_parquet(OUTPUT / f"{name}.parquet", rows[[*columns, "text", "tokens", "finished"]])


def prompts_to_answer(path: Path, label: str) -> pd.DataFrame:
    """The prompts of the held-out pairs, or of another file, less those that were learned from.

    Args:
        path: `generate.prompts_path`.
        label: of the lines that say what is left out.
    """
    columns = ["prompt_id", "prompt"]
    if path == TEST:
        return read_parquet(TEST, columns)
    found = read_prompts(path)
    unseen = read_parquet(PREPARED / "unseen.parquet", ["prompt_id", "prompt_split"])
    learned = set(unseen.loc[unseen["prompt_split"] != "test", "prompt_id"])
    for split in ("train", "validation"):
        learned |= set(read_parquet(PREPARED / f"{split}.parquet", ["prompt_id"])["prompt_id"])
    new = without_learned(found, learned, path)
    if len(new) < len(found):
        say(
            f"{label}: {len(found) - len(new)} of {len(found)} prompts of {path} are left out: "
            "they are in the training or validation data"
        )
    return new


def some_prompts(found: pd.DataFrame, most: int | None, seed: int) -> pd.DataFrame:
    """Distinct prompts (columns prompt_id, prompt); a fixed sample if too many."""
    prompts = found.drop_duplicates("prompt_id").sort_values("prompt_id", ignore_index=True)
    if most is None or len(prompts) <= most:
        return prompts
    chosen = np.random.default_rng(seed).permutation(len(prompts))[:most]
    return prompts.iloc[np.sort(chosen)].reset_index(drop=True)


def requests(
    prompts: pd.DataFrame,
    users: pd.DataFrame,
    *,
    personalised: bool,
    reads_text: bool,
    most: int | None,
) -> pd.DataFrame:
    """Who is to be answered: the generic user, and each user whom the method tells apart.

    Args:
        prompts: columns prompt_id, prompt.
        users: the prepared users table.
        personalised: whether the method tells seen users apart.
        reads_text: whether it tells unseen users apart, too: by what they say of themselves.
        most: users answered at most under either condition, evenly spread over the table; None
            for all.
    """
    generic = prompts.assign(
        condition="generic", user_id=None, group=None, user_index=GENERIC, user_text=None
    )
    parts = [generic]
    if reads_text:
        unseen = users[~users["seen"]].sort_values("user_id", ignore_index=True)
        parts.insert(0, _each(unseen, prompts, most).assign(condition="unseen"))
    if personalised:
        seen = users[users["seen"]].sort_values("user_index", ignore_index=True)
        parts.insert(0, _each(seen, prompts, most).assign(condition="user"))
    return pd.concat(parts, ignore_index=True)


def _each(users: pd.DataFrame, prompts: pd.DataFrame, most: int | None) -> pd.DataFrame:
    """Every prompt for every user, or for `most` of them."""
    if most is not None and len(users) > most:
        users = users.iloc[np.linspace(0, len(users) - 1, most).round().astype(int)]
    return users[["user_id", "user_index", "group", "user_text"]].merge(prompts, how="cross")
