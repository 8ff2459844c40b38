"""The dependent click model: who clicks may leave; who does not goes on to the next slot.

P(examines slot k + 1 | examined slot k) is 1 without a click in slot k, and λ_k after one.

References:
  Guo, Liu, Wang, Efficient Multiple-Click Models in Web Search, WSDM 2009.
  Vardasbi, de Rijke, Markov, Cascade Model-based Propensity Estimation for Counterfactual Learning
    to Rank, SIGIR 2020.
"""

from __future__ import annotations

import numpy as np

from tf_twostage.data.slates import Slates
from tf_twostage.evaluation.click_sums import Clicks

_STEPS, _CONVERGED = 200, 1e-5
_PRIOR = 3.0  # rows with the item's mean relevance that are added to those of a pair


def continuation_sums(
  slates: Slates, clicks: Clicks, item: np.ndarray, pair: np.ndarray
) -> np.ndarray:
  """What λ and examination follow from, [B, 4, L] by block and slot.

  λ_k is the ratio of the first sum to the second: how many clicks in slot k have another one below,
  and how many would have if everybody went on, which depends on the relevance of the items below.
  EM finds relevance: rows down to the last click were examined; the user saw the others with the
  posterior probability of having gone on. (1 - last clicks / clicks, as Guo et al. estimate λ,
  takes everybody to leave after the last click.)

  Args:
    slates: of n rows.
    clicks: the same rows.
    item: [n] int, catalogue index.
    pair: [n] int >= 0, number of the row's item in its context.

  Returns:
    Clicks with another one below, clicks times the probability that one follows if the user goes
    on, all clicks, and rows.
  """
  clicked, mask = slates.of(clicks.clicked), slates.mask
  place = np.arange(mask.shape[1])
  last = np.where(clicked > 0, place, -1).max(axis=1)
  below = mask & (place > last[:, np.newaxis]) & (last >= 0)[:, np.newaxis]
  another = clicked * (place < last[:, np.newaxis])
  of_pair = np.zeros(int(pair.max()) + 1, np.int64)
  of_pair[pair] = item
  clicks_of_item, clicks_of_pair = (np.bincount(codes, clicks.clicked) for codes in (item, pair))
  examined, went_on = mask.astype(float), np.ones(len(place))
  for _ in range(_STEPS):
    seen = np.empty(len(item))
    seen[slates.rows[mask]] = examined[mask]
    of_item = (clicks_of_item + 1) / (np.bincount(item, seen) + 2)
    usual = _PRIOR * of_item[of_pair]
    relevance = (clicks_of_pair + usual) / (np.bincount(pair, seen) + _PRIOR)
    skipped = np.log1p(-np.minimum(slates.of(relevance[pair]), 1 - 1e-9))
    further = np.exp(np.cumsum(skipped[:, ::-1], axis=1)[:, ::-1] - skipped)  # P(no click below)
    could = clicked * (1 - further)
    before, went_on = went_on, continuation(np.stack([another.sum(axis=0), could.sum(axis=0)]))
    if np.abs(went_on - before).max() < _CONVERGED:
      break
    rows = np.arange(len(last))
    unseen, seen_on = 1 - went_on[last], went_on[last] * further[rows, last]
    posterior = seen_on / np.maximum(unseen + seen_on, 1e-12)
    examined = np.where(below, posterior[:, np.newaxis], mask)
  columns = np.zeros((2, len(item)))
  columns[:, slates.rows[mask]] = another[mask], could[mask]
  return clicks.sums(*columns, clicks.clicked, np.ones(len(item)))


def continuation(sums: np.ndarray) -> np.ndarray:
  """λ of each slot, [..., L] of [..., 2 or 4, L]; 1 where no click could have another one below."""
  another, could = sums[..., 0, :], sums[..., 1, :]
  ratio = np.divide(another, could, out=np.ones_like(another), where=could > 0)
  return np.clip(ratio, 0, 1)


def from_continuation(sums: np.ndarray) -> np.ndarray:
  """The share of users who examine each slot, [..., L] of [..., 4, L]: those who have not left."""
  left = sums[..., 2, :] / sums[..., 3, :] * (1 - continuation(sums))
  return 1 - np.cumsum(left, axis=-1) + left


def path_probabilities(slates: Slates, clicked: np.ndarray, went_on: np.ndarray) -> np.ndarray:
  """Π λ_j over the clicked slots j above each row, [n].

  A click divided by it has the item's relevance as its mean: P(clicks above, slot examined) has
  these factors, and without them the probabilities of the clicks above sum to 1. So it takes the
  place of an examination probability, row by row.
  """
  factors = np.log(np.where(slates.of(clicked) > 0, np.maximum(went_on, 1e-6), 1.0))
  found = np.empty(len(clicked))
  found[slates.rows[slates.mask]] = np.exp(np.cumsum(factors, axis=1) - factors)[slates.mask]
  return found
