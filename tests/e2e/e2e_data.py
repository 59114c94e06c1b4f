"""What the projects of these tests are made of: tiny parameters, a tiny model, tiny data."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from pathlib import Path

from e2e_project import Project

from tiny import write_tiny_model

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["ash", "bay", "cob", "dew", "elm", "fog", "gum", "hop", "ivy", "jam", "kit", "log"]
OTHER_ALPHA = 0.25

# Training takes long enough to be interrupted, and its checkpoints fall between two logs.
SMALL = {
    "seed": 7,
    "model.name": "./tiny",
    "data.source": "builtin",
    "data.name": "length",
    "data.path": "seed",
    "data.pairs_per_user": 8,
    "tokens.max_prompt": 64,
    "tokens.max_response": 48,
    "user_model.tokens": 2,
    "pretrain.method": "reward",
    "methods.pdpo.kind": "cluster",
    "train.alpha": 0.5,
    "optimizer.epochs": 3.0,
    "optimizer.max_steps": None,
    "optimizer.batch_size": 8,
    "optimizer.micro_batch_size": 2,
    "optimizer.eval_every": 0.4,
    "optimizer.eval_pairs": 8,
    "optimizer.checkpoint_every": 0.2,
    "generate.prompts": 3,
    "generate.max_new_tokens": 24,
    "evaluate.sample_prompts": 2,
}


def clone(path: Path) -> Project:
    """The repository's files as they are now, without results, on a tiny model and tiny data."""
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listing.stdout.split("\0")):
        results = name == "dvc.lock" or name.startswith(("reports/", "models/"))
        if not results and (ROOT / name).is_file():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, path / name)
    project = Project(path)
    write_tiny_model(path / "tiny")
    write_responses(path / "seed/length/responses.jsonl.gz")
    project.set(SMALL)
    subprocess.run(["git", "init", "--quiet"], cwd=path, env=project.environment(), check=True)
    return project


def write_responses(path: Path) -> None:
    """Stored responses of the built-in data set `length`: a few words each, some of them not."""
    lines = []
    for number in range(14):
        # Markup in a prompt: a report that forgets to escape it shows.
        prompt = f"<b>{WORDS[number % 12]} & {number}</b>?"
        for instruction, size in (("short", 2), ("long", 6)):
            for turn in range(2):
                words = [WORDS[(3 * number + 5 * turn + i) % 12] for i in range(size + turn)]
                response = " ".join(words)
                if (number, instruction, turn) == (0, "long", 0):
                    response *= 10  # more than tokens.max_response
                if (number, instruction, turn) == (1, "long", 1):
                    response = "much too long " * 7200  # 100 kB
                row = {"prompt_id": str(number), "prompt": prompt, "instruction": instruction}
                lines.append(json.dumps(row | {"response": response, "tokens": len(response)}))
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def feedback() -> list[dict[str, str]]:
    """Six users who judge five of ten prompts each."""
    return [
        {
            "user_id": f"user {user}",
            "prompt": f"say {WORDS[(user + turn) % 10]}",
            "chosen": f"{WORDS[turn]} {user}",
            "rejected": "no",
        }
        for user in range(6)
        for turn in range(5)
    ]


def write_feedback(project: Project, rows: list[dict[str, str]]) -> None:
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (project / "feedback.jsonl").write_text(text, encoding="utf-8")
