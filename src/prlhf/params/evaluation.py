"""The answers, who compares them, and what is made of the scores."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prlhf.params.section import Section, conflict

JudgeKind = Literal["oracle", "feature_reward", "reward_model", "llm"]


class GenerateParams(Section):
    """`generate`: answers to prompts, per method and user. Time grows with all of them."""

    prompts_path: str = Field(min_length=1)
    """The held-out prompts, or a file of your own. The former are `data/prepared/test.parquet`.
    Your own: a .json list or .jsonl lines of text, chat messages or `{prompt: ...}`, a .parquet
    table with a column `prompt`, a .txt with a prompt a line; also packed (.gz, .zst). Prompts of
    the training and validation data are left out. The pipeline re-runs when its content changes."""
    prompts: int | None = Field(ge=1)
    """Prompts answered at most, a fixed sample; null for all."""
    users: int | None = Field(ge=1)
    """Seen users answered at most, each on every prompt; null for all. They are evenly spread."""
    max_new_tokens: int = Field(ge=1)
    """Longest answer, in tokens."""
    temperature: float = Field(ge=0)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(gt=0, le=1)
    """Nucleus sampling; 1 is off."""
    repetition_penalty: float = Field(ge=1)
    """Penalty on repeated tokens; 1 is off."""
    no_repeat_ngram: int = Field(ge=0)
    """No n-gram of this length occurs twice; 0 is off."""
    batch_size: int = Field(ge=1)
    """Answers generated side by side. More is faster and takes more memory."""


class FeatureRewardJudgeParams(Section):
    """`judge.feature_reward`: a hierarchical reward model on features, cross-fitted by prompt."""

    pairs: Literal["held_out", "all"]
    """What it learns users from. Held-out users' pairs are always among it. `held_out`: validation
    and test pairs, too, which the judged models were not trained on; `all`: also training pairs,
    where users have too few others. Never pairs of a prompt that it judges."""
    folds: int = Field(ge=2)
    """Parts of the test prompts; a model fitted without a part judges it."""
    tie: float = Field(ge=0, lt=0.5)
    """A tie when the probability of winning is at most this far from 0.5."""


class RewardModelJudgeParams(Section):
    """`judge.reward_model`: a reward model on the language model."""

    method: str | None
    """Which of `reward_models`; needed for this judge."""
    tie: float = Field(ge=0, lt=0.5)
    """A tie when the probability of winning is at most this far from 0.5."""


class LlmJudgeParams(Section):
    """`judge.llm`: a language model behind an OpenAI-compatible endpoint."""

    base_url: str = Field(min_length=1)
    """Address of the endpoint, up to `/v1`."""
    model: str | None
    """The model's name there; needed for this judge."""
    api_key_env: str | None
    """Environment variable with the API key; null for none. The key itself belongs in no file."""
    context: Literal["auto", "criteria", "profile"]
    """What the judge is told of a user. `criteria`: what the user's group wants; `profile`: the
    user's text and earlier choices; `auto`: the criterion where the group has one, the profile
    otherwise."""
    criteria: dict[
        str,
        Annotated[
            str,
            Field(min_length=1, description="What users of this group want, as told the judge."),
        ],
    ]
    """Criteria of your own, by group. They come besides those of the built-in groups and of
    PSOUPS."""
    examples: int = Field(ge=0)
    """`profile`: earlier choices of the user shown at most, from train."""
    example_chars: int = Field(ge=50)
    """`profile`: longer texts in examples lose their middle (characters)."""
    choices: int | None = Field(ge=0)
    """Held-out choices of users that are judged, too; null for all. They show whether the judge
    agrees with the users."""
    temperature: float | None = Field(ge=0, le=2)
    """Sampling temperature; null for models that take none."""
    max_tokens: int | None = Field(ge=1)
    """Longest answer of the judge, in tokens; null to send no limit."""
    timeout: float = Field(gt=0)
    """Seconds without an answer until a request fails."""
    concurrency: int = Field(ge=1)
    """Requests on their way at the same time."""
    retries: int = Field(ge=0)
    """Times that a failed request is sent again. Errors 408, 409, 429 and 5xx, time-outs and broken
    connections are such failures."""
    reask: int = Field(ge=0)
    """Times that the judge is asked again when its answer is unreadable."""
    price_input: float = Field(ge=0)
    """Price of a million input tokens."""
    price_output: float = Field(ge=0)
    """Price of a million output tokens."""
    max_requests: int | None = Field(ge=1)
    """Requests that all verdicts together may take; null for no limit. Those of earlier runs
    count."""
    max_cost: float | None = Field(gt=0)
    """What all verdicts together may cost; null for no limit. Earlier runs count."""

    @model_validator(mode="after")
    def _cost_is_known(self) -> Self:
        if self.max_cost is not None and not self.price_input + self.price_output:
            raise conflict("max_cost", "needs judge.llm.price_input or price_output above 0")
        return self


class JudgeParams(Section):
    """`judge`: who compares the answers of two methods. Its verdicts are kept by DVC."""

    kind: Literal["auto", JudgeKind, "none"]
    """`oracle`: the built-in task's own rule; `feature_reward`: a reward model fitted to users'
    held-out choices on fixed features; `reward_model`: one of `reward_models`; `llm`: a language
    model, over the network; `auto`: the oracle where the data set has one, otherwise none; `none`:
    no win rates."""
    also: list[JudgeKind]
    """Other kinds that judge the same answers, to compare the judges."""
    unseen_users: int | None = Field(ge=1)
    """Held-out users judged for at most; null for all. They are evenly spread. Where a method reads
    what users say, they are among those whom it answered (`generate.users`)."""
    degenerate_repetition: float = Field(gt=0, le=1)
    """Share of repeated 3-grams above which an answer is degenerate. It then loses. Of people's own
    texts about one in a thousand reaches 0.3."""
    degenerate_nll: float = Field(gt=0)
    """Excess nats per token that make an answer degenerate, too. It is the excess over the mean of
    the base model's own answers."""
    feature_reward: FeatureRewardJudgeParams
    reward_model: RewardModelJudgeParams
    llm: LlmJudgeParams

    @model_validator(mode="after")
    def _judges_are_whole(self) -> Self:
        kinds = (self.kind, *self.also)
        if self.also and self.kind == "none":
            raise conflict("also", "must be empty when judge.kind is none")
        if len(set(kinds)) < len(kinds):
            raise conflict("also", "names a judge twice, or the one of judge.kind")
        if "llm" in kinds and not self.llm.model:
            raise conflict("llm.model", "must name a model when the judge is llm")
        if "reward_model" in kinds and self.reward_model.method is None:
            raise conflict(
                "reward_model.method",
                "must name one of reward_models when the judge is reward_model",
            )
        return self


class EvaluateParams(Section):
    """`evaluate`: metrics, their intervals, and what the report shows."""

    baseline: str = Field(min_length=1)
    """What gains are measured against: one of compare.all."""
    subject: str = Field(min_length=1)
    """The report's subject, whose gains these are: one of compare.all."""
    margin: float = Field(ge=0, lt=1)
    """A difference in accuracy that matters to nobody. Methods are called equal if the interval of
    their difference lies within this of zero."""
    confidence: float = Field(ge=0.5, lt=1)
    """Confidence level of the intervals."""
    sample_prompts: int = Field(ge=1)
    """Prompts in the report's side-by-side samples."""
    sample_users: int = Field(ge=1)
    """Users in the report's side-by-side samples."""
