"""Generation from the trained models, and what is made of the scores."""

from __future__ import annotations

from pydantic import Field

from prlhf.params.section import Section


class GenerateParams(Section):
    """`generate`: answers to prompts, per method and user. Time grows with all of them."""

    prompts_path: str = Field(
        min_length=1,
        description="The prompts: `data/prepared/test.parquet` for the held-out ones, or a file of "
        "your own. A .json list or .jsonl lines of text, chat messages or `{prompt: ...}`, a "
        ".parquet table with a column `prompt`, a .txt with a prompt a line; also gzipped (.gz). "
        "Prompts of the training and validation data are left out. The pipeline re-runs when its "
        "content changes.",
    )
    prompts: int | None = Field(
        ge=1, description="Prompts answered at most, a fixed sample; null for all."
    )
    users: int | None = Field(
        ge=1,
        description="Seen users answered at most, evenly spread; null for all. Each gets every "
        "prompt.",
    )
    max_new_tokens: int = Field(ge=1, description="Longest answer, in tokens.")
    temperature: float = Field(ge=0, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(gt=0, le=1, description="Nucleus sampling; 1 is off.")
    repetition_penalty: float = Field(ge=1, description="Penalty on repeated tokens; 1 is off.")
    no_repeat_ngram: int = Field(
        ge=0, description="No n-gram of this length occurs twice; 0 is off."
    )
    batch_size: int = Field(
        ge=1, description="Answers generated side by side. More is faster and takes more memory."
    )


class EvaluateParams(Section):
    """`evaluate`: metrics, their intervals, and what the report shows."""

    bootstrap: int = Field(ge=100, description="Bootstrap resamples behind each interval.")
    confidence: float = Field(ge=0.5, lt=1, description="Confidence level of the intervals.")
    sample_prompts: int = Field(ge=1, description="Prompts in the report's side-by-side samples.")
    sample_users: int = Field(ge=1, description="Users in the report's side-by-side samples.")
