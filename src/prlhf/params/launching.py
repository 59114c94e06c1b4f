"""How many processes share a stage's work."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prlhf.params.section import Section


class LaunchParams(Section):
    """`launch`: where the stages run that work on the language model.

    Those are `reference`, `train`, `train_reward_model`, `generate`, `score` and `score_rewards`.

    No stage depends on it: it changes results by rounding only, and re-runs nothing.
    """

    processes: int = Field(
        ge=1, description="Processes on each machine that share the work: one for each of its GPUs."
    )
    machines: int = Field(
        ge=1,
        description="Machines. More than one need a project directory that all of them see, "
        "`MASTER_ADDR` and `NODE_RANK` in their environment, and `prlhf join` on all but the "
        "first; see [distributed](distributed.md).",
    )
    strategy: Literal["ddp", "fsdp"] = Field(
        description="`ddp`: every process holds the whole base model. `fsdp`: each holds a part of "
        "every layer, for models that do not fit one GPU; slower."
    )
