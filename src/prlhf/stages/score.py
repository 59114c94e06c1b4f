"""Stage `score`: held-out pairs under a method, its answers under the base model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from safetensors.torch import save_file

from prlhf import distributed
from prlhf.evaluation.scoring import score_generations, score_pairs, user_map
from prlhf.io import read_parquet, write_parquet
from prlhf.models.base import Encoder, load_base
from prlhf.models.load import BASE_METHOD, BASE_PATH, PROMPTED_METHOD, load_method
from prlhf.models.personalized import PersonalizedLM
from prlhf.training.reference_files import load_reference

if TYPE_CHECKING:
    from prlhf.params import ModelParams, TokenParams

PARAMS: Final = ("model", "tokens")

PREPARED: Final = Path("data/prepared")
REFERENCE: Final = Path("data/reference")
GENERATED: Final = Path("data/generated")
OUTPUT: Final = Path("data/scores")


def run(*, model: ModelParams, tokens: TokenParams, name: str) -> None:
    """Write `data/scores/<name>/`: pairs and user map (not for the base model), generations.

    The features of the generations are for a reward model as judge; they cost nothing here.
    """
    with distributed.output(OUTPUT / name) as directory:
        if name != BASE_METHOD:
            lm = load_method(name, model.dtype, tokens)
            test = read_parquet(PREPARED / "test.parquet")
            unseen = read_parquet(PREPARED / "unseen.parquet")
            unseen = unseen[unseen["prompt_split"] == "test"]
            # `prompted` is itself the base model with the text: its reference must not see it.
            reference_text = tokens.reference_text and name != PROMPTED_METHOD
            logps = load_reference(REFERENCE).logps
            pairs = score_pairs(lm, test, unseen, logps, name, reference_text=reference_text)
            write_parquet(directory / "pairs.parquet", pairs)
            if lm.user_model.tokens:
                users = read_parquet(PREPARED / "users.parquet")
                write_parquet(directory / "embeddings.parquet", user_map(lm.user_model, users))
            # The adapter is in the way of what follows, and so is the memory it takes.
            del lm
        base = load_base(BASE_PATH, model.dtype)
        encoder = Encoder(base.tokenizer, tokens.max_prompt, tokens.max_response)
        generated = read_parquet(GENERATED / f"{name}.parquet")
        reference = PersonalizedLM.reference(base, encoder)
        scores, features = score_generations(reference, generated, name)
        write_parquet(directory / "generations.parquet", scores)
        save_file({"features": features}, str(directory / "features.safetensors"))
