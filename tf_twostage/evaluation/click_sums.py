"""What clicks tell of slots: sums by slot, and the curves of examination that follow from them.

Sums are of blocks of slates, [B, ...], so that a bootstrap resamples blocks. A curve is a function
of sums, [..., L] of [..., ?, L] for any leading shape, and relative to slot 0.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

_STEPS, _CONVERGED = 2000, 1e-8  # of `from_pairs`


@dataclasses.dataclass(frozen=True, eq=False)
class Clicks:
  """The rows of a log as click models read them, [n] each.

  Attributes:
    slot: int in [0, L).
    clicked: 0 or 1, float64.
    block: int in [0, B); slates of one block may depend on each other.
    num_slots: L.
  """

  slot: np.ndarray
  clicked: np.ndarray
  block: np.ndarray
  num_slots: int

  def sums(self, *columns: np.ndarray) -> np.ndarray:
    """Sums of C columns [n] by block and slot, [B, C, L]."""
    size, cell = self.num_slots, self.block * self.num_slots + self.slot
    number = (int(self.block.max()) + 1) * size
    found = [np.bincount(cell, column, number).reshape(-1, size) for column in columns]
    return np.stack(found, axis=1)

  def pair_sums(self, pair: np.ndarray) -> np.ndarray:
    """Clicks by slot, and by the other slots in which the same pair was shown, [B, L, L].

    With n_k rows and c_k clicks of a pair in slot k, and n rows in all, entry (k, j) is the sum
    over pairs of c_k n_j / n. Its mean, θ_k Σ γ n_k n_j / n, is θ_k times a symmetric matrix,
    whatever the relevance γ of each pair: the interventional sets of Agarwal et al., with
    Mantel-Haenszel weights.

    Args:
      pair: [n] int >= 0, number of the row's item in its context.

    References:
      Agarwal, Zaitsev, Wang, Li, Najork, Joachims, Estimating Position Bias without Intrusive
        Interventions, WSDM 2019, section 4. Mantel and Haenszel, JNCI 22 (1959).
    """
    size, number = self.num_slots, int(pair.max()) + 1
    shown = np.bincount(pair * size + self.slot, minlength=number * size).reshape(-1, size)
    rows = np.flatnonzero(self.clicked)
    share = shown[pair[rows]] / shown.sum(axis=1)[pair[rows], np.newaxis]
    cell = self.block[rows] * size + self.slot[rows]
    height = (int(self.block.max()) + 1) * size
    chosen = sparse.csr_array(
      (self.clicked[rows], (cell, np.arange(len(rows)))), (height, len(rows))
    )
    return (chosen @ share).reshape(-1, size, size)


def from_ratios(sums: np.ndarray) -> np.ndarray:
  """Curves [..., L] of clicks over what they would be if every slot were examined, [..., 2, L]."""
  with np.errstate(divide="ignore", invalid="ignore"):
    rate = sums[..., 0, :] / sums[..., 1, :]
    return rate / rate[..., :1]


def from_pairs(sums: np.ndarray) -> np.ndarray:
  """Curves [..., L] of `Clicks.pair_sums` [..., L, L], by the Bradley-Terry model.

  Entries (k, j) and (j, k) have means in the proportion θ_k : θ_j. The likelihood of their shares,
  given their sum, has one maximum, which the steps of Hunter (Annals of Statistics 32, 2004) reach.
  """
  off = sums * (1 - np.eye(sums.shape[-1]))
  won, met = off.sum(axis=-1), off + np.swapaxes(off, -1, -2)
  curve = np.ones_like(won)
  with np.errstate(divide="ignore", invalid="ignore"):
    for _ in range(_STEPS):
      both = curve[..., :, np.newaxis] + curve[..., np.newaxis, :]
      step = won / np.where(met > 0, met / both, 0.0).sum(axis=-1)
      step /= step[..., :1]
      moved = np.nanmax(np.abs(step - curve), initial=0.0)
      curve = step
      if moved < _CONVERGED:
        break
  return curve


def from_products(sums: np.ndarray) -> np.ndarray:
  """Examination and trust, [..., 2, L], of clicks c and relevance γ, [..., 5, L].

  The sums are those of 1, γ, c, γ γ and γ c. Least squares fit c = α_k γ + ν_k in each slot; then
  relevance is measured as clicks in slot 0: there α is 1 and ν is 0.
  """
  with np.errstate(divide="ignore", invalid="ignore"):
    rows, relevance, clicked, square, product = np.moveaxis(sums, -2, 0)
    slope = rows * product - relevance * clicked
    slope /= rows * square - relevance**2
    level = (clicked - slope * relevance) / rows
    examination = slope / slope[..., :1]
  return np.stack([examination, level - level[..., :1] * examination], axis=-2)


def connected(sums: np.ndarray) -> bool:
  """Whether pairs were clicked in enough slots to compare all: `from_pairs` has one solution."""
  off = sums * (1 - np.eye(len(sums)))
  return csgraph.connected_components(off > 0, connection="strong")[0] == 1


def resampled(sums: np.ndarray, number: int, seed: int) -> np.ndarray:
  """Sums over all blocks in bootstrap resamples of the blocks, [R, ...] of [B, ...]."""
  blocks = len(sums)
  counts = np.random.default_rng(seed).multinomial(blocks, [1 / blocks] * blocks, size=number)
  # Not a BLAS product, whose threads wait for each other on a busy machine.
  flat = np.einsum("rb,bx->rx", counts.astype(np.float64), sums.reshape(blocks, -1))
  return flat.reshape(number, *sums.shape[1:])
