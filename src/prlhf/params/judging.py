"""Who compares answers, and how."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prlhf.params.section import Section, conflict

JudgeKind = Literal["oracle", "reward_model", "trained_reward_model", "llm"]


class RewardJudgeParams(Section):
    """`judge.reward_model`: a low-rank P-RM on features, cross-fitted by prompt."""

    pairs: Literal["held_out", "all"] = Field(
        description="What it learns users from, beside held-out users' pairs. `held_out`: "
        "validation and test pairs, which the judged models were not trained on; `all`: training "
        "pairs, too, where users have too few others. Never pairs of a prompt that it judges."
    )
    folds: int = Field(
        ge=2,
        description="Parts of the test prompts; each is judged by a model fitted without it.",
    )
    rank: int = Field(ge=1, description="Dimensions that the features are projected to.")
    clusters: int = Field(ge=1, description="Kinds of preference K that users are mixtures of.")
    steps: int = Field(ge=1, description="Optimiser steps, each on all pairs.")
    lr: float = Field(gt=0, description="Learning rate.")
    l2: float = Field(ge=0, description="L2 penalty on the weights.")
    tie: float = Field(
        ge=0,
        lt=0.5,
        description="A tie when the probability that an answer wins is at most this far from 0.5.",
    )


class TrainedJudgeParams(Section):
    """`judge.trained_reward_model`: a reward model on the language model."""

    method: str | None = Field(
        description="Which of `reward_models`; needed for `trained_reward_model`."
    )
    tie: float = Field(
        ge=0,
        lt=0.5,
        description="A tie when the probability that an answer wins is at most this far from 0.5.",
    )


class LlmJudgeParams(Section):
    """`judge.llm`: a language model behind an OpenAI-compatible endpoint."""

    base_url: str = Field(min_length=1, description="Address of the endpoint, up to `/v1`.")
    model: str | None = Field(description="The model's name there; needed for `llm`.")
    api_key_env: str | None = Field(
        description="Environment variable that holds the API key; null for a server that wants "
        "none. The key itself belongs in no file."
    )
    context: Literal["auto", "criteria", "profile"] = Field(
        description="What the judge is told of a user. `criteria`: what the user's group wants; "
        "`profile`: the user's text and earlier choices; `auto`: the criterion where the group "
        "has one, the profile otherwise."
    )
    criteria: dict[
        str,
        Annotated[
            str,
            Field(min_length=1, description="What users of this group want, as told the judge."),
        ],
    ] = Field(
        description="Criteria of your own by group, besides those of the built-in groups and of "
        "PSOUPS."
    )
    examples: int = Field(
        ge=0, description="`profile`: earlier choices of the user shown at most, from train."
    )
    example_chars: int = Field(
        ge=50, description="`profile`: longer texts in examples lose their middle (characters)."
    )
    choices: int | None = Field(
        ge=0,
        description="Held-out choices of users that are judged, too, to see whether the judge "
        "agrees with them; null for all.",
    )
    temperature: float | None = Field(
        ge=0, le=2, description="Sampling temperature; null for models that take none."
    )
    max_tokens: int | None = Field(
        ge=1,
        description="Longest answer of the judge, in tokens; null for models that take no limit.",
    )
    timeout: float = Field(gt=0, description="Seconds without an answer until a request fails.")
    concurrency: int = Field(ge=1, description="Requests on their way at the same time.")
    retries: int = Field(
        ge=0,
        description="Times that a request is sent again after errors 408, 409, 429 and 5xx, "
        "time-outs and broken connections.",
    )
    reask: int = Field(
        ge=0, description="Times that the judge is asked again when its answer cannot be read."
    )
    price_input: float = Field(ge=0, description="Price of a million input tokens.")
    price_output: float = Field(ge=0, description="Price of a million output tokens.")
    max_requests: int | None = Field(
        ge=1,
        description="Requests that all verdicts together may take, those of earlier runs "
        "included; null for no limit.",
    )
    max_cost: float | None = Field(
        gt=0,
        description="What all verdicts together may cost, those of earlier runs included; null "
        "for no limit.",
    )

    @model_validator(mode="after")
    def _cost_is_known(self) -> Self:
        if self.max_cost is not None and not self.price_input + self.price_output:
            raise conflict("max_cost", "needs judge.llm.price_input or price_output above 0")
        return self


class JudgeParams(Section):
    """`judge`: who compares the answers of two methods. Its verdicts are kept by DVC."""

    kind: Literal["auto", "oracle", "reward_model", "trained_reward_model", "llm", "none"] = Field(
        description="The judge. `oracle`: the built-in task's own rule; `reward_model`: a reward "
        "model fitted to users' held-out choices on fixed features; `trained_reward_model`: one of "
        "`reward_models`; `llm`: a language model, over the network; `auto`: the oracle where the "
        "data set has one, otherwise none; `none`: no win rates."
    )
    also: list[JudgeKind] = Field(
        description="Other judges that judge the same, to compare them with the first."
    )
    unseen_users: int | None = Field(
        ge=1,
        description="Held-out users judged for at most, evenly spread; null for all. Where a "
        "method reads what users say, they are among those whom it answered (`generate.users`).",
    )
    degenerate_repetition: float = Field(
        gt=0,
        le=1,
        description="An answer is degenerate, and loses, when more than this share of its 3-grams "
        "are repeats. Of people's own texts about one in a thousand reaches 0.3.",
    )
    degenerate_nll: float = Field(
        gt=0,
        description="An answer is degenerate, too, when it lies more than this many nats per token "
        "above the base model's own mean.",
    )
    reward_model: RewardJudgeParams
    trained_reward_model: TrainedJudgeParams
    llm: LlmJudgeParams

    @model_validator(mode="after")
    def _judges_are_whole(self) -> Self:
        if self.also and self.kind == "none":
            raise conflict("also", "must be empty when judge.kind is none")
        if self.kind in self.also or len(set(self.also)) < len(self.also):
            raise conflict("also", "names a judge twice, or the one of judge.kind")
        if "llm" in (self.kind, *self.also) and not self.llm.model:
            raise conflict("llm.model", "must name a model when the judge is llm")
        trained = self.trained_reward_model
        if "trained_reward_model" in (self.kind, *self.also) and trained.method is None:
            raise conflict(
                "trained_reward_model.method",
                "must name one of reward_models when the judge is trained_reward_model",
            )
        return self
