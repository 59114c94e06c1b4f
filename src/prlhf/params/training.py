"""The user model, its pretraining, and P-DPO training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import annotated_types as at
from pydantic import Field, model_validator

from prlhf.params.section import Section, conflict, listed


class UserModelParams(Section):
    """`user_model`: the embeddings that stand for a user in front of the prompt."""

    tokens: int = Field(ge=1, description="User tokens T_u: embeddings per user.")
    clusters: Annotated[int, at.Ge(1)] | Literal["auto"] = Field(
        description="Preference clusters K (kind `cluster`, and the pretraining). `auto` chooses K "
        "on validation data.",
    )
    max_clusters: int = Field(ge=1, description="The largest K that `auto` tries.")
    init_scale: float = Field(
        ge=0,
        description="Size of the first group offsets, as a multiple of the standard deviation of "
        "the word embeddings.",
    )
    generic_pull: float = Field(
        ge=0,
        description="Kind `cluster`: how strongly the generic user's weights are pulled to the "
        "population's mean.",
    )
    offset_penalty: float = Field(
        ge=0, description="Kind `individual`: L2 penalty on the users' offsets."
    )


class PretrainParams(Section):
    """`pretrain`: learn who the users are before the language model is tuned."""

    method: Literal["reward", "soft_prompt", "none"] = Field(
        description="`reward`: a low-rank personalised reward model on the reference features "
        "(seconds). `soft_prompt`: P-DPO on the user model alone, with the language model frozen "
        "(minutes on a CPU). `none`: start from the generic user."
    )
    alpha: float = Field(
        ge=0, le=1, description="Weight of the personalised term while pretraining."
    )
    rank: int = Field(ge=1, description="`reward`: dimensions that the features are projected to.")
    steps: int = Field(ge=1, description="`reward`: optimiser steps, each on all pairs.")
    lr: float = Field(gt=0, description="`reward`: learning rate.")
    l2: float = Field(ge=0, description="`reward`: L2 penalty on the weights.")
    soft_prompt_steps: int = Field(ge=1, description="`soft_prompt`: optimiser steps.")
    soft_prompt_lr: float = Field(gt=0, description="`soft_prompt`: learning rate.")
    soft_prompt_beta: float = Field(gt=0, description="`soft_prompt`: beta of its P-DPO.")
    soft_prompt_batch_size: int = Field(ge=1, description="`soft_prompt`: pairs per step.")


class MethodParams(Section):
    """`methods.<name>`: a model that can be trained."""

    kind: Literal["uniform", "individual", "cluster", "group"] = Field(
        description="The preference assumption. `uniform`: no user tokens, plain DPO; "
        "`individual`: an offset per user; `cluster`: a mixture of K cluster embeddings per user; "
        "`group`: no user tokens, but an adapter for each known group of users, each trained on "
        "its group's pairs, `train.epochs` passes over them and `train.max_steps` steps at most."
    )
    text: bool = Field(
        description="Whether it reads `user_text`, what is known of the user in words, in front of "
        "the prompt; for unknown users, too."
    )


class CompareParams(Section):
    """`compare`: which of the methods run."""

    trained: list[str] = Field(
        min_length=1, description="The methods to train: keys of `methods`, each once."
    )
    all: list[str] = Field(
        min_length=1,
        description="The models to answer, score and evaluate: `base`, the untuned model, all of "
        "`trained`, and `prompted` if wanted, the untuned model behind the user's text; each once.",
    )

    @model_validator(mode="after")
    def _lists_agree(self) -> Self:
        for key, names in (("trained", self.trained), ("all", self.all)):
            if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
                raise conflict(key, f"names {', '.join(twice)} more than once")
        # A model that is evaluated but not trained would be one of other parameters.
        wanted = ["base", *self.trained]
        if set(self.all) - {"prompted"} != set(wanted):
            raise conflict(
                "all",
                f"must name base and all of compare.trained: {listed(wanted)}; prompted may stand "
                "beside them",
            )
        return self


class LoraParams(Section):
    """`lora`: the low-rank adapter on the frozen base model."""

    r: int = Field(ge=1, description="Rank.")
    alpha: float = Field(gt=0, description="Scale; the adapter is multiplied by alpha / r.")
    dropout: float = Field(ge=0, lt=1, description="Dropout on the adapter's input.")
    targets: Literal["auto", "all"] | list[str] = Field(
        min_length=1,
        description="Names of the layers that get an adapter; `auto` is the attention projections, "
        "`all` every linear layer but the output head.",
    )


class ObjectiveParams(Section):
    """What P-DPO minimises."""

    alpha: float = Field(
        ge=0,
        le=1,
        description="Weight of the personalised term; 1 - alpha is the generic user's. 0 trains "
        "the generic user only.",
    )
    beta: float = Field(gt=0, description="Inverse temperature of the implicit reward (per nat).")
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = Field(
        description="Member of the loss family. `robust` needs `label_smoothing` > 0 to differ "
        "from `sigmoid`."
    )
    label_smoothing: float = Field(
        ge=0, lt=0.5, description="Assumed share of flipped labels (`sigmoid` and `robust`)."
    )
    nll: float = Field(
        ge=0,
        description="Coefficient of the chosen response's negative log-likelihood per token; keeps "
        "the text fluent.",
    )
    chosen_penalty: float = Field(
        ge=0,
        description="Coefficient of the penalty for a chosen response that falls below the "
        "reference model's probability.",
    )


class FitParams(Section):
    """How an adapter and a user model are trained on pairs, whatever the loss."""

    lora: LoraParams
    lora_lr: float = Field(
        gt=0, description="Learning rate of the adapter, and of a reward model's head."
    )
    user_lr: float = Field(gt=0, description="Learning rate of the user model.")
    weight_decay: float = Field(ge=0, description="AdamW weight decay on the adapter (and head).")
    epochs: float = Field(gt=0, description="Passes over the training pairs.")
    max_steps: int | None = Field(
        ge=1, description="Optimiser steps at most; null for what `epochs` gives."
    )
    batch_size: int = Field(ge=1, description="Pairs per optimiser step.")
    micro_batch_size: int = Field(
        ge=1,
        description="Pairs per forward pass; must divide `batch_size`. Lower it when memory is "
        "short: the gradient stays the same.",
    )
    term_sampling: bool = Field(
        description="Compute one term of each pair at a time, the personalised one with "
        "probability `alpha`, else the generic user's: half the computation, and the same "
        "objective on average, with more noise. Validation always computes both."
    )
    length_bucketing: bool = Field(
        description="Compute pairs of similar length together, so that less is padded: another "
        "order of the data, as random from epoch to epoch. It saves what is padded otherwise, 10 "
        "to 25 % of the computation where lengths vary by 40 %; nothing at a `micro_batch_size` "
        "of 1."
    )
    warmup_ratio: float = Field(
        ge=0, lt=1, description="Share of the steps in which the learning rates rise from 0."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        description="What the learning rates do after the warm-up."
    )
    max_grad_norm: float = Field(gt=0, description="Gradients are clipped to this norm.")
    eval_every: int = Field(ge=1, description="Steps between two validations.")
    eval_pairs: int = Field(
        ge=1, description="Validation pairs looked at each time (a fixed sample)."
    )
    checkpoint_every: int = Field(
        ge=1, description="Steps between two checkpoints; a killed run resumes from the last."
    )
    attention: Literal["auto", "sdpa", "flex"] = Field(
        description="How attention is computed while training, the same but for rounding. `flex` "
        "skips what the packing of several responses behind one prompt leaves empty, and needs a "
        "GPU; `auto` is `flex` on a GPU, where the model has it, and `sdpa` elsewhere."
    )
    compile: bool = Field(
        description="Compile the model (`torch.compile`): the first steps take minutes, the others "
        "less time, mostly on a GPU. Needs a C++ compiler."
    )
    gradient_checkpointing: bool = Field(
        description="Recompute activations in the backward pass: far less memory, about a third "
        "more time."
    )

    @model_validator(mode="after")
    def _batch_is_whole(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise conflict(
                "micro_batch_size",
                f"must divide batch_size ({self.batch_size}), not {self.micro_batch_size}",
            )
        return self


class TrainParams(FitParams, ObjectiveParams):
    """`train`: P-DPO."""


class RewardTrainParams(FitParams):
    """`train_reward_model`: the personalised reward model."""

    pairs: Literal["train", "held_out"] = Field(
        description="What it learns from. `train`: the pairs that the methods are trained on; "
        "`held_out`: what they are not trained on, so that it may judge them: the users' "
        "validation pairs, and those of held-out users about all but test prompts. It then starts "
        "from an untrained user model."
    )
    alpha: float = Field(
        ge=0,
        le=1,
        description="Weight of the personalised term; 1 - alpha is the generic user's. 0 trains "
        "the generic user only.",
    )
