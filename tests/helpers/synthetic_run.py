"""A plausible finished run, made without a model: what evaluation and report read.

`write_run(root, ...)` writes data/prepared, data/generated, data/scores and reports/ as the earlier
stages would, with known properties: personalised methods know their users, the baseline knows the
majority.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from prlhf.data.ids import content_hash
from prlhf.data.reference import (
    SET_ASIDE,
    SET_ASIDE_COLUMNS,
    Scored,
    save_reference,
    text_key,
)
from prlhf.infra.io import write_json, write_parquet, write_text
from prlhf.reference import distinct_texts

SUBJECTS = ("tea", "rain", "shoes", "sleep", "bread", "trains", "owls", "paint", "maps", "soap")
PROSE = """
It helps to begin with clean water and a little patience because small steps add up.
Most people find that a steady routine works better than sudden effort.
You can ask a friend to check the result and then try again the next day.
After a week the difference is easy to see, and it costs almost nothing to keep going.
Some prefer to do it in the morning, when the house is quiet and the light is good.
"""
LOOP = "the same again " * 20
SIZES = {"longer": 7, "shorter": 3}
UNSEEN = {"longer": 3, "shorter": 1}


def sentence(rng: np.random.Generator, length: int) -> str:
    """`length` words of ordinary English prose."""
    prose = PROSE.split()
    start = int(rng.integers(0, len(prose)))
    picked = [prose[(start + i) % len(prose)] for i in range(length)]
    text = " ".join(picked).strip(".,")
    return f"{text[:1].upper()}{text[1:]}."


def prompt_text(number: int) -> str:
    question = f"What should I know about {SUBJECTS[number % len(SUBJECTS)]}, part {number}?"
    return json.dumps([{"role": "user", "content": question}])


def users_table(
    sizes: Mapping[str, int], unseen: Mapping[str, int], *, grouped: bool = True
) -> pd.DataFrame:
    rows = []
    for seen, table in ((True, sizes), (False, unseen)):
        for group, size in table.items():
            for number in range(size):
                prefix = group if seen else f"new-{group}"
                rows.append((f"{prefix}-{number:02}", group if grouped else None, seen))
    users = pd.DataFrame(rows, columns=["user_id", "group", "seen"])
    users["group"] = users["group"].astype("object")
    users["user_index"] = np.where(users["seen"], np.arange(len(users)) + 1, 0)
    users["pairs_train"] = np.where(users["seen"], 12, 0)
    return users


def write_run(
    root: Path,
    *,
    sizes: Mapping[str, int] = SIZES,
    unseen: Mapping[str, int] = UNSEEN,
    methods: Sequence[str] = ("dpo", "pdpo"),
    personalised: Sequence[str] = ("pdpo",),
    prompts: int = 30,
    pairs_per_user: int = 12,
    task: str | None = "length",
    grouped: bool = True,
    skill: float = 0.97,
    seed: int = 0,
    answer: str | None = None,
) -> pd.DataFrame:
    """Write the run under `root` and return its users.

    Args:
        root: Working directory of the run.
        sizes: Seen users per group; the first group is the one the baseline serves.
        unseen: Held-out users per group.
        methods: Trained methods; `base` is always there.
        personalised: Those of `methods` that answer single users.
        prompts: Held-out prompts.
        pairs_per_user: Held-out pairs of each user.
        task: `task` of dataset.json.
        grouped: Whether the data set knows its groups.
        skill: How often a personalised method takes what its user took.
        seed: Of the random draws.
        answer: Text of every first personalised answer, to try hostile content.
    """
    rng = np.random.default_rng(seed)
    users = users_table(sizes, unseen, grouped=grouped)
    names = list(sizes)
    true_group = [
        next(g for g in (*names, *unseen) if user.removeprefix("new-").rpartition("-")[0] == g)
        for user in users["user_id"]
    ]
    texts = [prompt_text(number) for number in range(prompts)]
    ids = [content_hash(text) for text in texts]
    held_out = _pairs(rng, users, true_group, texts, ids, pairs_per_user)
    test = held_out[held_out["seen"]].drop(columns=["seen", "like_majority"])
    write_parquet(root / "data/prepared/test.parquet", test.reset_index(drop=True))
    other = _write_other_splits(root / "data/prepared", seed, users, true_group, pairs_per_user)
    scored = pd.concat(
        [held_out.assign(split=np.where(held_out["seen"], "test", "unseen")), other],
        ignore_index=True,
    )
    write_parquet(root / "data/prepared/users.parquet", users)
    nothing = pd.DataFrame(columns=list(SET_ASIDE_COLUMNS))
    write_parquet(root / "data/reference" / SET_ASIDE, nothing)
    write_json(
        root / "data/prepared/dataset.json",
        {"name": task or "local", "source": "builtin", "task": task, "rows": len(held_out)},
    )
    for method in ("base", *methods):
        own = method in personalised
        generated = _generated(rng, method, own, users, true_group, names[0], texts, ids)
        if answer is not None and own:
            generated["text"] = answer
        write_parquet(root / f"data/generated/{method}.parquet", generated)
        tokens = generated["tokens"].to_numpy()
        level = {"base": 1.1, "dpo": 1.4}.get(method, 1.5)
        write_parquet(
            root / f"data/scores/{method}/generations.parquet",
            pd.DataFrame(
                {
                    "generation_id": generated["generation_id"],
                    "nll": tokens * rng.normal(level, 0.2, len(tokens)).clip(0.2),
                    "tokens": tokens,
                }
            ),
        )
        if method == "base":
            continue
        _write_scores(root / f"data/scores/{method}", rng, scored, users, own, skill)
        _write_curve(root / f"reports/curves/{method}.csv", rng, own)
    _write_reports(root, users, len(held_out), prompts)
    return users


def _pairs(
    rng: np.random.Generator,
    users: pd.DataFrame,
    true_group: Sequence[str],
    texts: Sequence[str],
    ids: Sequence[str],
    pairs_per_user: int,
) -> pd.DataFrame:
    rows = []
    long, short = sentence(rng, 45), sentence(rng, 12)
    majority = true_group[0]
    for user, group in zip(users.itertuples(), true_group, strict=True):
        for number in rng.permutation(len(texts))[:pairs_per_user]:
            prefers_long = group != "shorter"
            rows.append(
                {
                    "pair_id": content_hash(str(user.user_id), ids[number]),
                    "prompt_id": ids[number],
                    "unit": ids[number],
                    "user_id": user.user_id,
                    "user_index": user.user_index,
                    "prompt": texts[number],
                    "chosen": long if prefers_long else short,
                    "rejected": short if prefers_long else long,
                    "group": user.group,
                    "seen": user.seen,
                    "like_majority": group == majority,
                }
            )
    return pd.DataFrame(rows)


def _write_other_splits(
    folder: Path, seed: int, users: pd.DataFrame, true_group: Sequence[str], pairs_per_user: int
) -> pd.DataFrame:
    """Pairs about prompts of their own: half to train on, half, which are returned, to validate."""
    rng = np.random.default_rng([seed, 1])
    texts = [prompt_text(number) for number in range(1000, 1000 + 2 * pairs_per_user)]
    ids = [content_hash(text) for text in texts]
    pairs = _pairs(rng, users, true_group, texts, ids, pairs_per_user)
    train = pairs["prompt"].isin(texts[::2])
    validation = pairs[~train & pairs["seen"]].assign(split="validation")
    pairs = pairs.drop(columns="like_majority")
    for split, rows in (("train", train), ("validation", ~train)):
        table = pairs[rows & pairs["seen"]].drop(columns="seen")
        write_parquet(folder / f"{split}.parquet", table.reset_index(drop=True))
    unseen = pairs[~pairs["seen"]].drop(columns="seen")
    unseen = unseen.assign(prompt_split=np.where(train[unseen.index], "train", "validation"))
    write_parquet(folder / "unseen.parquet", unseen.reset_index(drop=True))
    return validation


def write_features(root: Path) -> None:
    """Features of all texts of a run, the first of which is the number of words."""
    tables = {
        split: pd.read_parquet(root / f"data/prepared/{split}.parquet")
        for split in ("train", "validation", "test", "unseen")
    }
    texts = distinct_texts(tables.values())
    keys = [text_key(prompt, text) for prompt, _, found in texts for text in found]
    values = torch.cat([_features(found) for _, _, found in texts])
    part = Scored(keys, torch.zeros(len(keys)), values.half())
    save_reference(root / "data/reference", [part], texts=len(keys), width=values.shape[1])
    for path in (root / "data/generated").glob("*.parquet"):
        found = _features(list(pd.read_parquet(path)["text"])).half()
        out = root / "data/scores" / path.stem / "features.safetensors"
        save_file({"features": found}, str(out))


def _features(texts: Sequence[str]) -> torch.Tensor:
    return torch.tensor(
        [[len(text.split()), text.count("e"), text.count("a"), 1.0] for text in texts]
    )


def _generated(
    rng: np.random.Generator,
    method: str,
    own: bool,
    users: pd.DataFrame,
    true_group: Sequence[str],
    majority: str,
    texts: Sequence[str],
    ids: Sequence[str],
) -> pd.DataFrame:
    served: list[tuple[str, str | None, str | None, str]] = [("generic", None, None, majority)]
    if own:
        served += [
            ("user", str(user["user_id"]), user["group"], group)
            for user, group in zip(users.to_dict("records"), true_group, strict=True)
            if user["seen"]
        ]
    rows = []
    for condition, user_id, group, taste in served:
        for text, prompt_id in zip(texts, ids, strict=True):
            mean = 14 if taste in ("shorter", "concise", "curt") else 48
            answer = sentence(rng, max(2, int(rng.normal(mean, mean / 6))))
            lucky = rng.random()
            answer = LOOP if lucky < 0.02 else "" if lucky < 0.03 else answer
            rows.append(
                {
                    "generation_id": content_hash(method, user_id or "", prompt_id),
                    "method": method,
                    "condition": condition,
                    "user_id": user_id,
                    "group": group,
                    "prompt_id": prompt_id,
                    "prompt": text,
                    "text": answer,
                    "tokens": int(1.3 * len(answer.split())),
                    "finished": bool(rng.random() > 0.03),
                }
            )
    return pd.DataFrame(rows)


def _write_scores(
    folder: Path,
    rng: np.random.Generator,
    held_out: pd.DataFrame,
    users: pd.DataFrame,
    own: bool,
    skill: float,
) -> None:
    """`held_out` are the pairs with their `split`."""
    like_majority = held_out["like_majority"].to_numpy()
    sign = np.where(like_majority, 1.0, -1.0)
    noise = rng.gamma(4.0, 2.0, len(held_out))
    generic = sign * noise * np.where(rng.random(len(held_out)) < 0.97, 1, -1)
    personal = noise * np.where(rng.random(len(held_out)) < skill, 1, -1) if own else generic
    keys = ["pair_id", "prompt_id", "user_id", "user_index", "group"]
    parts = []
    scored_as = {"user": ("test", "validation"), "generic": ("test", "unseen")}
    for condition, margin in (("user", personal), ("generic", generic)):
        part = held_out[[*keys, "split"]].assign(condition=condition, margin=margin)
        parts.append(part[part["split"].isin(scored_as[condition])])
    write_parquet(folder / "pairs.parquet", pd.concat(parts, ignore_index=True))
    if not own:
        return
    seen = users[users["seen"]]
    codes, _ = pd.factorize(seen["user_id"].str.rpartition("-")[0])
    angle = 2 * np.pi * codes / (codes.max() + 1)
    table = pd.DataFrame(
        {
            "user_id": seen["user_id"].to_numpy(),
            "group": seen["group"].to_numpy(),
            "seen": True,
            "x": np.cos(angle) + rng.normal(0, 0.15, len(seen)),
            "y": np.sin(angle) + rng.normal(0, 0.15, len(seen)),
        }
    )
    generic_row = pd.DataFrame(
        [{"user_id": None, "group": None, "seen": False, "x": 0.3, "y": 0.1}]
    )
    write_parquet(folder / "embeddings.parquet", pd.concat([table, generic_row]))


def _write_curve(path: Path, rng: np.random.Generator, own: bool) -> None:
    lines = [
        "step,epoch,split,loss,accuracy_user,accuracy_generic,margin_user,margin_generic,nll,"
        "learning_rate"
    ]
    for step in range(1, 121):
        done = step / 120
        for split in ("train", "validation"):
            if split == "validation" and step % 20:
                continue
            wobble = 0.08 if split == "train" else 0.02
            loss = 0.7 * np.exp(-3 * done) + 0.1 + rng.normal(0, wobble)
            generic = 0.5 + 0.2 * done + rng.normal(0, wobble)
            user = 0.5 + 0.47 * done + rng.normal(0, wobble) if own else generic
            nll = 1.9 - 0.5 * done + rng.normal(0, wobble)
            lines.append(
                f"{step},{done:.3f},{split},{loss:.4f},{min(user, 1):.4f},{generic:.4f},"
                f"{8 * done:.4f},{3 * done:.4f},{nll:.4f},{3e-4 * (1 - done):.6f}"
            )
    write_text(path, "\n".join(lines) + "\n")
    account = {
        "pairs": {"all": 2400, "seen": 480},
        "users": {"all": 10, "seen": 9},
        "runs": [{"plan": {}, "steps": 120, "kept_step": 100}],
    }
    write_json(path.with_suffix(".json"), account)


def _write_reports(root: Path, users: pd.DataFrame, pairs: int, prompts: int) -> None:
    seen = users[users["seen"]]
    codes, _ = pd.factorize(seen["user_id"].str.rpartition("-")[0])
    write_json(
        root / "reports/pretrain.json",
        {
            "method": "reward",
            "clusters": int(codes.max()) + 1,
            "assignments": dict(zip(seen["user_id"], codes.tolist(), strict=True)),
            "gain": {
                "personal": True,
                "users": len(seen),
                "pairs": 12 * len(seen),
                "log_loss": {"personal": 0.21, "shared": 0.62, "difference": 0.41, "se": 0.05},
                "accuracy": {"personal": 0.95, "shared": 0.71, "difference": 0.24, "se": 0.04},
                "shuffled": {
                    "log_loss": {"personal": 0.63, "shared": 0.62, "difference": -0.01, "se": 0.02},
                    "accuracy": {"personal": 0.7, "shared": 0.71, "difference": -0.01, "se": 0.02},
                },
            },
        },
    )
    check = {
        "expectation": "expect_column_values_to_not_be_null",
        "arguments": {"column": "user_id"},
        "on_failure": "quarantine",
        "success": True,
        "unexpected": 0,
    }
    write_json(
        root / "reports/validation.json",
        {
            "success": True,
            "rows": {"ingested": 5 * pairs + 9, "usable": 5 * pairs, "quarantined": 9},
            "quarantined": {"duplicate": 5, "empty_chosen": 4, "missing_user": 0},
            "users": {"seen": len(seen), "unseen": len(users) - len(seen)},
            "pairs": {"train": 3 * pairs, "validation": pairs, "test": pairs, "unseen": 0},
            "prompts": {"train": 3 * prompts, "validation": prompts, "test": prompts},
            "balance": {"chosen_longer": 0.7, "largest_user": 0.1, "groups": {}},
            "warnings": [],
            "expectations": {
                "rows": {
                    "missing_user": check,
                    "empty_chosen": {**check, "success": False, "unexpected": 4},
                }
            },
        },
    )
