"""The policy gradient of Plackett-Luce slates, against all slates of five items."""

import numpy as np
import pytest

from tests import oracle
from tests.losses.helpers import RAW
from tf_twostage import losses
from tf_twostage.errors import InputError
from tf_twostage.losses.vanilla_policy_gradient import log_probability, slates_with

import tensorflow as tf  # isort: skip

ITEMS, ROWS = 5, 4_000
RNG = np.random.default_rng(3)
LOGITS, RANKER = RNG.normal(size=ITEMS), 2 * RNG.normal(size=ITEMS)


def shown(logits, slate_size):
  """π(a), [N], over all slates in order."""
  probabilities = np.zeros(ITEMS)
  for sequence, probability in oracle.plackett_luce(logits, slate_size).items():
    probabilities[list(sequence)] += probability * oracle.softmax(RANKER[list(sequence)])
  return probabilities


@pytest.mark.parametrize("slate_size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("action", [0, 3])
def test_value_and_gradient_are_unbiased(slate_size, action):
  """Means over many rows of one context, within five standard errors of enumeration."""
  propensity = 0.2
  loss = losses.VanillaPolicyGradient(RAW, 2, slate_size, seed=1, dtype="float64")
  z = tf.constant(np.tile(LOGITS, (ROWS, 1)))
  with tf.GradientTape() as tape:
    tape.watch(z)
    terms = loss.terms(
      z,
      np.full(ROWS, action),
      np.full(ROWS, propensity),
      np.ones(ROWS),
      np.tile(RANKER, (ROWS, 1)),
    )
  size = min(slate_size, ITEMS)
  expected = shown(LOGITS, size)[action] / propensity
  slope = oracle.jacobian(lambda logits: shown(logits, size), LOGITS)[action] / propensity
  for found, wanted in ((terms.ratio.numpy(), expected), (-tape.gradient(terms.loss, z), slope)):
    error = np.std(found, axis=0) / np.sqrt(ROWS)
    assert (np.abs(np.mean(found, axis=0) - wanted) <= 5 * error + 1e-9).all()


def test_slates_are_those_of_plackett_luce_that_hold_the_item():
  rows = tf.constant(np.tile(LOGITS, (20_000, 1)))
  slates, held, log_held = slates_with(rows, tf.fill([20_000], 2), 1, 3, [1, 2])
  assert held.numpy().all()
  weights = np.exp(log_held)[:, 0]
  keys = slates.numpy()[:, 0] @ np.array([25, 5, 1])
  for sequence, probability in oracle.plackett_luce(LOGITS, 3).items():
    found = weights * (keys == np.array(sequence) @ np.array([25, 5, 1]))
    wanted = probability if 2 in sequence else 0.0
    assert abs(found.mean() - wanted) <= 5 * found.std() / np.sqrt(20_000) + 1e-12


@pytest.mark.parametrize("logits", [LOGITS, [0.0, 1e4, -1e4, 3.0, 2.0]])
def test_the_probability_of_a_slate_is_that_of_its_order(logits):
  slate = np.array([3, 0, 4])
  expected = oracle.log_sequence(np.asarray(logits), slate)
  found = log_probability(tf.constant([logits]), slate[None, None], tf.ones([1, 1, 3], tf.bool))
  np.testing.assert_allclose(found, [[expected]], rtol=1e-12)


def test_where_fewer_items_are_left_than_a_slate_holds_all_of_them_are_candidates():
  logits = np.where(np.arange(ITEMS) < 2, LOGITS, -np.inf)
  loss = losses.VanillaPolicyGradient(RAW, 3, 4, dtype="float64")
  terms = loss.terms(*(np.array([v]) for v in (logits, 1, 0.5, 1.0, RANKER)))
  np.testing.assert_allclose(terms.ranker_probability, [oracle.softmax(RANKER[:2])[1]], rtol=1e-9)
  np.testing.assert_allclose(terms.ratio, terms.ranker_probability / 0.5, rtol=1e-9)


@pytest.mark.parametrize("option", ["num_slates", "slate_size"])
def test_it_needs_a_slate_and_an_item(option):
  with pytest.raises(InputError, match="num_slates and slate_size must be at least 1"):
    losses.get("vanilla_policy_gradient", **{option: 0})
