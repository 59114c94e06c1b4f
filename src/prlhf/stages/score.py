"""Stage `score`: held-out pairs under a method, its answers under the base model."""

from typing import Final

from safetensors.torch import save_file

from prlhf.data import BASE_METHOD, PROMPTED_METHOD
from prlhf.data.reference import load_reference
from prlhf.infra import distributed
from prlhf.infra.io import read_parquet, write_parquet
from prlhf.models.base import Encoder, load_base
from prlhf.models.personalized import PersonalizedLM
from prlhf.params import ModelParams, TokenParams
from prlhf.scoring import score_generations, score_pairs, user_map
from prlhf.stages.paths import (
    BASE,
    GENERATED,
    REFERENCE,
    SCORES,
    USERS,
    method_directory,
    split_table,
)

PARAMS: Final = ("model", "tokens")


def run(*, model: ModelParams, tokens: TokenParams, name: str) -> None:
    """Write `data/scores/<name>/`: pairs and user map (not for the base model), generations.

    The features of the generations are for a judge that fits rewards to them; they come at no cost.
    """
    with distributed.output(SCORES / name) as directory:
        if name != BASE_METHOD:
            lm = PersonalizedLM.from_pretrained(
                method_directory(name), base=BASE, dtype=model.dtype
            )
            unseen = read_parquet(split_table("unseen"))
            pairs = score_pairs(
                lm,
                read_parquet(split_table("test")),
                unseen[unseen["prompt_split"] == "test"],
                load_reference(REFERENCE).logps,
                name,
                validation=read_parquet(split_table("validation")),
                # `prompted` is the base model with the text; its reference is the one without.
                reference_text=tokens.reference_text and name != PROMPTED_METHOD,
            )
            write_parquet(directory / "pairs.parquet", pairs)
            if lm.user_model.tokens:
                users = read_parquet(USERS)
                write_parquet(directory / "embeddings.parquet", user_map(lm.user_model, users))
            # Frees its memory, and with it the adapter.
            del lm
        base = load_base(BASE, model.dtype)
        reference = PersonalizedLM.reference(base, Encoder.from_params(base.tokenizer, tokens))
        generated = read_parquet(GENERATED / f"{name}.parquet")
        scores, features = score_generations(reference, generated, name)
        write_parquet(directory / "generations.parquet", scores)
        if features is not None:
            save_file({"features": features}, str(directory / "features.safetensors"))
