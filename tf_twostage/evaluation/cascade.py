"""The dependent click model: who clicks may leave; who does not goes on to the next slot.

P(examines slot k + 1 | examined slot k) is 1 without a click in slot k, and λ_k after one.

References:
  Guo, Liu, Wang, Efficient Multiple-Click Models in Web Search, WSDM 2009.
  Vardasbi, de Rijke, Markov, Cascade Model-based Propensity Estimation for Counterfactual Learning
    to Rank, SIGIR 2020.
"""

from __future__ import annotations

import numpy as np

from tf_twostage.data.files.columns import LEAST_EXAMINATION
from tf_twostage.data.slates import Slates
from tf_twostage.evaluation import click_sums
from tf_twostage.evaluation.click_sums import Clicks


def continuation_sums(slates: Slates, clicks: Clicks, pair: np.ndarray) -> np.ndarray:
  """What λ and examination follow from, by block, [B, L + 2, L].

  A row without a click above it was examined for certain, and a row just below a click in slot k
  with the probability λ_k. So the same pair, shown in several of these states, tells λ as it tells
  the examination of slots, whatever its relevance. (1 - last clicks / clicks, as Guo et al.
  estimate λ, takes everybody to leave after the last click.)

  Args:
    slates: of n rows.
    clicks: the same rows.
    pair: [n] int >= 0, number of the row's item in its context.

  Returns:
    `Clicks.pair_sums` of states [B, L, L], where state 0 is no click above and state k + 1 is a
    click in slot k, just above; then all clicks by slot, and all rows.
  """
  clicked, place = slates.of(clicks.clicked) > 0, np.arange(slates.rows.shape[1])
  state = np.where(np.cumsum(clicked, axis=1) - clicked == 0, 0, -1)
  state[:, 1:] = np.where(clicked[:, :-1], place[1:], state[:, 1:])
  known = slates.mask & (state >= 0)
  rows = slates.rows[known]
  of_states = Clicks(state[known], clicks.clicked[rows], clicks.block[rows], len(place))
  pairs = of_states.pair_sums(pair[rows])
  totals = clicks.sums(clicks.clicked, np.ones(len(clicks.slot)))
  return np.concatenate([pairs, totals], axis=1)


def continuation(sums: np.ndarray) -> np.ndarray:
  """λ of each slot, [..., L] of [..., L + 2, L]; 1 where nothing tells it, as in the last slot."""
  curve = click_sums.from_pairs(sums[..., :-2, :])[..., 1:]
  last = np.ones((*curve.shape[:-1], 1))
  return np.clip(np.nan_to_num(np.concatenate([curve, last], axis=-1), nan=1.0), 0, 1)


def from_continuation(sums: np.ndarray) -> np.ndarray:
  """The share of users who examine each slot, [..., L] of [..., L + 2, L]: who has not left."""
  left = sums[..., -2, :] / sums[..., -1, :] * (1 - continuation(sums))
  return 1 - np.cumsum(left, axis=-1) + left


def at_boundary(sums: np.ndarray) -> np.ndarray:
  """Slots [L] below a clicked slot whose λ is 0 or 1, where a bootstrap says nothing of errors."""
  went_on = continuation(sums)
  ends = ((went_on == 0) | (went_on == 1)) & (sums[-2] > 0)
  return np.cumsum(ends) - ends > 0


def path_probabilities(slates: Slates, clicked: np.ndarray, went_on: np.ndarray) -> np.ndarray:
  """Π λ_j over the clicked slots j above each row, [n].

  A click divided by it has the item's relevance as its mean: P(clicks above, slot examined) has
  these factors, and without them the probabilities of the clicks above sum to 1. So it takes the
  place of an examination probability, row by row.
  """
  factors = np.log(np.where(slates.of(clicked) > 0, np.maximum(went_on, LEAST_EXAMINATION), 1.0))
  found = np.empty(len(clicked))
  found[slates.rows[slates.mask]] = np.exp(np.cumsum(factors, axis=1) - factors)[slates.mask]
  return np.maximum(found, LEAST_EXAMINATION)
