"""What the training of a user model starts from, and what it believes of users it has not met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Start:
    """What the user models of all kinds start from.

    Attributes:
        users: ids of the N seen users, in index order.
        opening: the generic user's embeddings, float32 [T, d].
        directions: offsets of the clusters from them, float32 [K, T, d].
        weights: logits over the clusters, float32 [N + 1, K], row 0 the generic user's.
    """

    users: Sequence[str]
    opening: Tensor
    directions: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Prior:
    """What training believes of a user whom it has not met: normal distributions.

    Attributes:
        pairs: each user's training pairs, added up by weight, float [N + 1]; row 0 is not read.
        weights_spread: `cluster`: standard deviation of a user's logits about their start; None for
            no prior.
        offset_spread: `individual`: that of the entries of an offset about the mean of the user's
            mixture, in units of the embeddings; None for no prior.
        generic_pull: `cluster`: what the generic user's logits cost for each user at a distance of
            1 from them, in nats.
    """

    pairs: Tensor
    weights_spread: float | None
    offset_spread: float | None
    generic_pull: float
