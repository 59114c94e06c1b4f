"""What features of many texts on a wide model take: memory of the steps that make and read them.

    python -m benchmarks.features                     50,000 texts, width 4096 (minutes)
    python -m benchmarks.features --quick             500 texts, width 64
    python -m benchmarks.features --json features.json

The features are those of a model of random weights, wide but thin, so that it takes little time and
memory itself. Each step runs in a process of its own. *Own memory* is the most that it held at a
time and cannot give back; pages of mapped files, which can, count in *resident* only.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prlhf.data.prompts import canonical_prompt
from prlhf.data.reference import load_reference
from prlhf.infra.cache import ResultCache
from prlhf.infra.progress import quiet_transformers
from prlhf.models.base import BaseModel, Encoder
from prlhf.models.conventions import chat_tokenizer
from prlhf.models.personalized import PersonalizedLM
from prlhf.people.features import Axes, Examples
from prlhf.reference import reference_pass
from prlhf.scoring import score_generations

WORDS: Final = [f"w{number}" for number in range(255)]
POLL: Final = 0.02
"""Seconds between two looks at a process's memory."""


def thin_model(width: int) -> BaseModel:
    """A language model of random weights: one layer, narrow but for its hidden states."""
    quiet_transformers()
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
    )
    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<|end|>", *WORDS])}, "w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|end|>")
    model = LlamaForCausalLM(config).requires_grad_(False).eval()
    return BaseModel(model, chat_tokenizer(tokenizer), Path("thin"), {})


def feedback(texts: int) -> pd.DataFrame:
    """As many pairs as texts: each prompt has two responses, and two users who disagree."""
    random = np.random.default_rng(0)

    def some(rows: int, words: int) -> list[str]:
        return [" ".join(WORDS[i] for i in row) for row in random.integers(255, size=(rows, words))]

    table = pd.DataFrame(
        {
            "prompt": [canonical_prompt(text) for text in some(texts // 2, 6)],
            "chosen": some(texts // 2, 8),
            "rejected": some(texts // 2, 8),
            "user_index": 1,
            "weight": 1.0,
        }
    )
    mirrored = table.assign(chosen=table["rejected"], rejected=table["chosen"], user_index=2)
    both = pd.concat([table, mirrored], ignore_index=True)
    return both.assign(unit=both["prompt"])


# -- the steps -----------------------------------------------------------------------------------


def start(directory: Path, texts: int, width: int) -> None:
    """Nothing but the imports, the model and the texts: what the other steps stand on."""
    thin_model(width)
    feedback(texts)


def make(directory: Path, texts: int, width: int) -> None:
    """Stage `reference`: the pass over all texts."""
    base = thin_model(width)
    lm = PersonalizedLM.reference(base, Encoder(base.chat, 64, 64))
    (directory / "reference").mkdir()
    cache = ResultCache(directory / "cache", 2**40, "thin")
    reference_pass(lm, [feedback(texts)], directory / "reference", cache=cache)


def make_again(directory: Path, texts: int, width: int) -> None:
    """The same, when an earlier pass computed everything."""
    (directory / "reference").rename(directory / "first")
    make(directory, texts, width)


def read_logps(directory: Path, texts: int, width: int) -> None:
    """Stages `train` and `score`: the reference without its features, in each process."""
    load_reference(directory / "reference")


def fit_rewards(directory: Path, texts: int, width: int) -> None:
    """`pretrain.method: reward`: principal axes of all pairs, and the texts projected to them."""
    examples = Examples.of(feedback(texts), load_reference(directory / "reference"))
    axes = Axes.of(examples, 256)
    examples.project(axes.vectors)


def score_answers(directory: Path, texts: int, width: int) -> None:
    """Stage `score`: as many answers under the base model."""
    base = thin_model(width)
    table = feedback(texts).head(texts).rename(columns={"chosen": "text"})
    table["generation_id"] = range(len(table))
    lm = PersonalizedLM.reference(base, Encoder(base.chat, 64, 64))
    score_generations(lm, table, "thin")


STEPS: Final[dict[str, Callable[[Path, int, int], None]]] = {
    step.__name__: step
    for step in (start, make, make_again, read_logps, fit_rewards, score_answers)
}


# -- measuring -----------------------------------------------------------------------------------


def _own() -> int:
    """Bytes of this process's memory that no file backs (0 where the system does not tell)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    [line] = [line for line in status.read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


@contextmanager
def watched() -> Iterator[list[int]]:
    """The most memory of its own that the process held in the block, as the list's only item."""
    peak, over = [_own()], threading.Event()

    def look() -> None:
        while not over.wait(POLL):
            peak[0] = max(peak[0], _own())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def measure(step: str, directory: Path, texts: int, width: int) -> dict[str, Any]:
    """Take a step in this process: seconds, and bytes of memory at most."""
    started = time.monotonic()
    with watched() as own:
        STEPS[step](directory, texts, width)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "step": step,
        "seconds": round(time.monotonic() - started, 1),
        "own_bytes": own[0],
        # Linux counts kilobytes, macOS bytes.
        "resident_bytes": resident * (1 if sys.platform == "darwin" else 1024),
    }


def table(results: list[dict[str, Any]]) -> str:
    """The figures as a Markdown table, in GB (10^9 bytes)."""
    lines = ["| Step | Seconds | Own memory, GB | Resident, GB |", "|---|--:|--:|--:|"]
    lines += [
        f"| {each['step']} | {each['seconds']:.0f} | {each['own_bytes'] / 1e9:.2f} "
        f"| {each['resident_bytes'] / 1e9:.2f} |"
        for each in results
    ]
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, take the steps one after the other, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--texts", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--quick", action="store_true", help="500 texts of width 64")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    texts, width = (500, 64) if options.quick else (options.texts, options.width)
    if options.step:
        found = measure(options.step, options.directory, texts, width)
        sys.stdout.write(json.dumps(found) + "\n")
        return
    results = []
    with tempfile.TemporaryDirectory(prefix="prlhf-benchmark-") as directory:
        for step in STEPS:
            command = [sys.executable, "-m", "benchmarks.features", "--step", step]
            command += ["--directory", directory, "--texts", str(texts), "--width", str(width)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results.append(json.loads(done.stdout))
            sys.stderr.write(f"{results[-1]}\n")
    size = texts * width * 2 / 1e9
    sys.stdout.write(f"{texts:,} texts, width {width}: {size:.2f} GB of features\n\n")
    sys.stdout.write(f"{table(results)}\n")
    if options.json:
        report = {"texts": texts, "width": width, "results": results}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
