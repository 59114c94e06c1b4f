"""Pairs as features: what reward models on the frozen base model learn from.

The features of a response are the base model's mean last hidden state over it. They are kept once
for each text, and pairs point to texts: memory grows with texts times width and with pairs, never
with pairs times width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from prlhf.data.reference import Reference

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CHUNK = 4096
"""Texts or pairs whose features are in double precision at the same time."""


@dataclass(frozen=True)
class Examples:
    """Pairs of users, by the features of their texts.

    Attributes:
        texts: features, float16 or float32 [M, d].
        chosen: row of `texts` of the chosen response, int64 [P].
        rejected: that of the rejected one, int64 [P].
        users: whose pair it is, int64 [P].
        units: what must not be on two sides of a split (a prompt, a dialogue), int64 [P, S]; with
            S > 1 a pair is on a side if all its units are, and on none otherwise.
        weights: how much a pair counts, float64 [P].
    """

    texts: Tensor
    chosen: Integers
    rejected: Integers
    users: Integers
    units: Integers
    weights: Floats

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def of(cls, table: pd.DataFrame, reference: Reference, *, by_text: bool = False) -> Self:
        """The pairs of a prepared table.

        Args:
            table: prepared pairs.
            reference: with the features of their texts.
            by_text: the units are the two texts of a pair, and not what `unit` names.
        """
        chosen, rejected = (rows.numpy() for rows in reference.rows_of(table))
        named = pd.factorize(table["unit"])[0][:, None]
        units = np.column_stack([chosen, rejected]) if by_text else named
        return cls(
            reference.features,
            chosen,
            rejected,
            table["user_index"].to_numpy(np.int64),
            units.astype(np.int64),
            table["weight"].to_numpy(np.float64),
        )

    def __getitem__(self, rows: NDArray[np.bool_] | Integers) -> Self:
        """Some of the pairs."""
        return type(self)(
            self.texts,
            self.chosen[rows],
            self.rejected[rows],
            self.users[rows],
            self.units[rows],
            self.weights[rows],
        )

    def project(self, matrix: Floats) -> tuple[Floats, csr_array]:
        """Texts times a matrix, and which differences of texts the pairs are.

        Args:
            matrix: float64 [d, r].

        Returns:
            The projected texts that occur in pairs, float64 [T, r], and a sparse matrix [P, T] with
            1 for the chosen and -1 for the rejected text of each pair: their product is the pairs'
            projected differences.
        """
        used, places = np.unique(np.stack([self.chosen, self.rejected], 1), return_inverse=True)
        scores = np.empty((len(used), matrix.shape[1]))
        for start in range(0, len(used), CHUNK):
            rows = torch.from_numpy(used[start : start + CHUNK])
            scores[start : start + CHUNK] = self.texts[rows].double().numpy() @ matrix
        signs = np.tile([1.0, -1.0], len(self))
        ends = np.arange(len(self) + 1) * 2
        return scores, csr_array((signs, places.ravel(), ends), shape=(len(self), len(used)))


@dataclass(frozen=True)
class Axes:
    """Principal axes of the pairs' feature differences, about zero.

    A pair and its mirror image say the same, so the mean is zero by symmetry.

    Attributes:
        vectors: float64 [d, r].
        variances: along the axes, float64 [r], the largest first.
        mean: variance of a feature on average.
    """

    vectors: Floats
    variances: Floats
    mean: float

    @classmethod
    def of(cls, examples: Examples, rank: int) -> Self:
        """The leading `rank` axes that have any variance."""
        width = examples.texts.shape[1]
        total = torch.zeros(width, width, dtype=torch.float64)
        for start in range(0, len(examples), CHUNK):
            chosen, rejected = (
                examples.texts[torch.from_numpy(side[start : start + CHUNK])].double()
                for side in (examples.chosen, examples.rejected)
            )
            differences = chosen - rejected
            total.addmm_(differences.T, differences)
        variances, vectors = np.linalg.eigh(total.numpy() / len(examples))
        # One at least, where no text differs from another.
        count = max(1, min(rank, int((variances > 1e-9 * variances[-1]).sum())))
        kept = slice(None, -1 - count, -1)
        variances, vectors = variances[kept], vectors[:, kept]
        # Eigenvectors have no sign of their own; fix it so that runs agree.
        signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(len(variances))])
        return cls(vectors * signs, variances, float(torch.trace(total)) / len(examples) / width)

    def scales(self, tau: float) -> Floats:
        """What whitens the axes, less where the variance is small: float64 [r]."""
        return 1 / np.sqrt(np.maximum(self.variances + tau * self.mean, np.finfo(np.float32).tiny))
