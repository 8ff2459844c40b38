"""Slates of a small catalogue with everything known, for this library and for OBP.

Knows NumPy only, so that it runs beside OBP in an environment without TensorFlow.
"""

import itertools

import numpy as np

CONTEXTS, ITEMS, SLOTS = 3, 4, 3
SLATES = np.array(list(itertools.permutations(range(ITEMS), SLOTS)))  # [M, L]
EXAMINATION = np.array([1.0, 0.6, 0.3])


class World:
  """Two Plackett-Luce policies, by enumeration.

  Attributes:
    logging, target: [C, M, L], the probability of each slate up to each slot.
    slot_logging, slot_target: [C, L, N], of each item in each slot.
    conditional: [C, M, L, N], of each item in a slot given the slots before, under the target.
    relevance: [C, N].
  """

  def __init__(self, seed):
    rng = np.random.default_rng(seed)
    self.logging, _ = _cascade(rng.normal(size=(CONTEXTS, ITEMS)))
    self.target, self.conditional = _cascade(rng.normal(size=(CONTEXTS, ITEMS)))
    self.slot_logging, self.slot_target = _marginals(self.logging), _marginals(self.target)
    self.relevance = rng.uniform(0.1, 0.9, (CONTEXTS, ITEMS))

  def draw(self, num_slates, seed):
    """Contexts [S], slates [S, L] and rewards [S, L], one click more likely after another."""
    rng = np.random.default_rng(seed)
    contexts = rng.integers(CONTEXTS, size=num_slates)
    which = np.array([rng.choice(len(SLATES), p=self.logging[c, :, -1]) for c in contexts])
    chance = self.relevance[contexts[:, None], SLATES[which]] * EXAMINATION
    return contexts, which, (rng.random(chance.shape) < chance).astype(float)

  def columns(self, contexts, which, returns):
    """What estimators read of slates, under this library's names; `returns` [C, L, N] is Q."""
    slates, slots = SLATES[which], np.arange(SLOTS)
    at = (contexts[:, None], slots, slates)
    everywhere = self.slot_target[contexts[:, None, None], slots, slates[:, :, None]]
    return {
      "propensities": self.slot_logging[at],
      "target_probabilities": self.slot_target[at],
      "cascade_propensities": self.logging[contexts, which],
      "target_cascade": self.target[contexts, which],
      "examination": np.tile(EXAMINATION, (len(slates), 1)),
      "target_exposures": (EXAMINATION * everywhere).sum(axis=2),
      "predicted_returns": returns[at],
      "direct_returns": (self.conditional[contexts, which] * returns[contexts]).sum(axis=2),
    }


def _cascade(logits):
  weights = np.exp(logits)
  shown = (SLATES[:, :, None] == np.arange(ITEMS)).cumsum(axis=1)  # [M, L, N], by each slot
  left = np.concatenate([np.zeros_like(shown[:, :1]), shown[:, :-1]], axis=1) == 0
  open_weights = weights[:, None, None] * left
  conditional = open_weights / open_weights.sum(axis=3, keepdims=True)
  chosen = np.take_along_axis(conditional, SLATES[None, :, :, None], axis=3)[..., 0]
  return chosen.cumprod(axis=2), conditional


def _marginals(cascade):
  indicators = SLATES[:, :, None] == np.arange(ITEMS)
  return np.einsum("cm,mkn->ckn", cascade[:, :, -1], indicators)
