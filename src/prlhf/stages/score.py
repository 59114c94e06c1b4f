"""Stage `score`: held-out pairs under a method, its answers under the base model."""

from typing import Final

from safetensors.torch import save_file

from prlhf.data import BASE_METHOD, PROMPTED_METHOD
from prlhf.data.reference import LOGPS, SET_ASIDE, load_reference, read_pairs
from prlhf.infra import distributed
from prlhf.infra.io import (
    SOURCE,
    checkpoint_directory,
    discard,
    read_parquet,
    run_key,
    write_parquet,
)
from prlhf.infra.kept import KeptWork
from prlhf.models.base import Encoder, load_base
from prlhf.models.personalized import PersonalizedLM
from prlhf.params import ModelParams, TokenParams
from prlhf.scoring import score_generations, score_pairs, user_map
from prlhf.stages.paths import (
    BASE,
    GENERATED,
    PREPARED,
    REFERENCE,
    SCORES,
    USERS,
    method_directory,
)

PARAMS: Final = ("model", "tokens")


def run(*, model: ModelParams, tokens: TokenParams, name: str) -> None:
    """Write `data/scores/<name>/`: pairs and user map (not for the base model), generations.

    The features of the generations are for a judge that fits rewards to them; they come at no cost.
    """
    answers = GENERATED / f"{name}.parquet"
    settings = {"model": model, "tokens": tokens, "name": name}
    # The file beside the base model's weights says what they are.
    inputs = [BASE / SOURCE, PREPARED, REFERENCE / LOGPS, REFERENCE / SET_ASIDE, answers]
    if name != BASE_METHOD:
        inputs.append(method_directory(name))
    key = run_key(settings, inputs)
    distributed.require_agreement(key)
    work = KeptWork(checkpoint_directory(f"score-{name}", key))
    with distributed.output(SCORES / name) as directory:
        if name != BASE_METHOD:
            lm = PersonalizedLM.from_pretrained(
                method_directory(name), base=BASE, dtype=model.dtype
            )
            unseen = read_pairs(PREPARED, REFERENCE, "unseen")
            pairs = score_pairs(
                lm,
                read_pairs(PREPARED, REFERENCE, "test"),
                unseen[unseen["prompt_split"] == "test"],
                load_reference(REFERENCE).logps,
                name,
                validation=read_pairs(PREPARED, REFERENCE, "validation"),
                # `prompted` is the base model with the text; its reference is the one without.
                reference_text=tokens.reference_text and name != PROMPTED_METHOD,
                work=work.part("pairs"),
            )
            write_parquet(directory / "pairs.parquet", pairs)
            if lm.user_model.tokens:
                users = read_parquet(USERS)
                write_parquet(directory / "embeddings.parquet", user_map(lm.user_model, users))
            # Frees its memory, and with it the adapter.
            del lm
        base = load_base(BASE, model.dtype)
        reference = PersonalizedLM.reference(base, Encoder.from_params(base.chat, tokens))
        generated = read_parquet(answers)
        scores, features = score_generations(reference, generated, name, work.part("answers"))
        write_parquet(directory / "generations.parquet", scores)
        if features is not None:
            save_file({"features": features}, str(directory / "features.safetensors"))
    if distributed.is_main():
        discard(work.directory)
