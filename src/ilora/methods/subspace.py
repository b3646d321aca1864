"""Subspaces that later tasks must leave alone: gradient projection memory, in its dual form.

GPM: Saha et al. 2021 (arXiv 2103.09762). DualGPM: Liang and Li 2023 (CVPR), which InfLoRA uses: once more than half of
all directions are protected, those that are free are stored instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST = 1e-6  # of all energy; directions with less are rounding


def off(rows: Tensor, basis: Tensor) -> Tensor:
    """The part of each of (m, n) rows that is orthogonal to the orthonormal columns of (n, k)."""
    return rows - (rows @ basis) @ basis.T


@dataclass(frozen=True)
class Protected:
    """A subspace of a layer's inputs. basis: orthonormal columns (inputs, k) of it or, if `free`, of all else."""

    basis: Tensor
    free: bool = False

    @staticmethod
    def nothing(inputs: int, device: torch.device) -> Protected:
        """No direction is protected yet."""
        return Protected(torch.zeros(inputs, 0, device=device))

    @property
    def share(self) -> float:
        """How much of all directions is protected."""
        inputs, count = self.basis.shape
        return (inputs - count if self.free else count) / inputs

    def left_of(self, moment: Tensor) -> tuple[Tensor, Tensor]:
        """What of Σ x xᵀ (inputs, inputs) lies outside, as (energies, directions), the largest first, no rounding.

        Energies (k,) in float64; directions are orthonormal columns (inputs, k), each with its largest entry positive.
        """
        basis, whole = self.basis.double(), moment.double()
        if self.free:
            inside = basis.T @ whole @ basis
            energies, turned = torch.linalg.eigh(inside)
            directions = basis @ turned
        else:
            once = off(whole, basis)
            energies, directions = torch.linalg.eigh(off(once.T.contiguous(), basis))
        energies, directions = energies.flip(0), directions.flip(1)
        directions = directions[:, energies > _LEAST * whole.trace()]
        if directions.shape[1]:
            largest = directions.abs().argmax(0, keepdim=True)
            directions = directions * directions.gather(0, largest).sign()
        return energies[: directions.shape[1]], directions

    def grown(self, moment: Tensor, *, threshold: float) -> Protected:
        """With the fewest further directions such that `threshold` of Σ |x|² lies in the subspace."""
        total = moment.double().trace()
        energies, directions = self.left_of(moment)
        inside = total - energies.sum() + torch.cat([energies.new_zeros(1), energies.cumsum(0)])
        count = min(int((inside < threshold * total).sum()), directions.shape[1])
        new = directions[:, :count].to(self.basis.dtype)
        if not count:
            return self
        if self.free:
            rest = self.basis - new @ (new.T @ self.basis)
            left, _, _ = torch.linalg.svd(rest, full_matrices=False)
            return Protected(left[:, : self.basis.shape[1] - count].contiguous(), free=True)
        basis = torch.cat([self.basis, new], dim=1)
        inputs, size = basis.shape
        if 2 * size <= inputs:
            return Protected(basis)
        whole, _ = torch.linalg.qr(basis, mode="complete")
        return Protected(whole[:, size:].contiguous(), free=True)
