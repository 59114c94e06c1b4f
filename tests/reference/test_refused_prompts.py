"""Rows whose prompts a chat template refuses: named, with the rule, before anything is computed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from prlhf.data import SPLITS
from prlhf.data.prompts import canonical_prompt
from prlhf.infra.errors import UserError
from prlhf.infra.io import write_parquet
from prlhf.params import ReferenceParams, TokenParams
from prlhf.params.loading import load
from prlhf.stages import reference as stage
from source_tree import ROOT
from tiny import TEMPLATE, tiny_tokenizer

NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
)
FAILS = "{% if messages[0].role == 'system' %}{{ messages[0].content + 1 }}{% endif %}"


@pytest.mark.parametrize(
    ("front", "rule"),
    [(NO_SYSTEM, "System role not supported"), (FAILS, "it fails with TypeError: can only")],
)
def test_the_first_refused_row_is_named(
    front: str, rule: str, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRLHF_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_path, tmp_path / "models/base")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = front + TEMPLATE
    tokenizer.save_pretrained(tmp_path / "models/base")
    asked = {"role": "user", "content": "Why\nis that?"}
    kind = {"role": "system", "content": "Be kind."}
    for split in (*SPLITS, "unseen"):
        # Of the rows 4 to 9, one of each split, those of test and unseen have a system message.
        rows = [9, 4] if split == "test" else [8, 5] if split == "unseen" else [6, 7]
        prompts = [[kind, asked], [asked]] if split in ("test", "unseen") else [[asked]] * 2
        table = pd.DataFrame(
            {
                "pair_id": [f"{split}{row}" for row in rows],
                "user_id": "ann",
                "user_index": 1,
                "row": rows,
                "prompt": [canonical_prompt(prompt) for prompt in prompts],
                "chosen": "So.",
                "rejected": "Well.",
                "user_text": None,
            }
        )
        write_parquet(tmp_path / f"data/prepared/{split}.parquet", table)
    tokens = TokenParams(max_prompt=64, max_response=8, max_user_text=20, reference_text=False)
    model = load(ROOT / "params.yaml").model.model_copy(update={"dtype": "float32"})
    with pytest.raises(UserError) as caught:
        stage.run(model=model, tokens=tokens, reference=ReferenceParams(features=True))
    [line] = caught.value.lines()
    assert line.startswith(
        "row 8, prompt 'Why is that?': the model's chat template "
        f"refuses a prompt with the roles system, user: {rule}"
    )
    assert not Path("data/reference").exists()
