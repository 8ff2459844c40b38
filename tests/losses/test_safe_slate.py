"""The loss of target slates: formula, gradient, extremes, refusals."""

import numpy as np
import pytest
import tensorflow as tf

from tests import oracle
from tests.losses.helpers import batch, value_and_gradient
from tf_twostage import losses
from tf_twostage.errors import InputError

SLATES = np.array([[1, 3, 0], [4, 2, 3]])
LOSS = {"top": 1, "filler_weight": 0.7, "slate_size": 3, "dtype": "float64"}


def inputs(dtype=np.float64):
  return {**batch(rows=2, dtype=dtype), "actions": SLATES}


def formula(logits):
  """Item 1 of the first user among all, then 3 and 0 among all but 1; and so on."""
  values = []
  for z, (best, *fillers) in zip(np.exp(logits), SLATES, strict=True):
    others = np.delete(z, best).sum()
    of_fillers = np.mean([np.log(z[item] / others) for item in fillers])
    values.append(-np.log(z[best] / z.sum()) - 0.7 * of_fillers)
  return np.array(values)


def test_value_and_gradient_are_those_of_the_formula():
  x = inputs()
  value, gradient = value_and_gradient(losses.SafeSlate(**LOSS), x)
  np.testing.assert_allclose(value, formula(x["logits"]))
  expected = oracle.finite_differences(lambda z: formula(z).sum(), x["logits"])
  np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_the_optimum_ranks_the_target_before_the_fillers_before_the_rest():
  logits = tf.Variable(np.zeros((1, 6)))
  loss = losses.SafeSlate(top=2, slate_size=4, dtype="float64")
  for _ in range(20):
    with tf.GradientTape() as tape:
      value = loss(logits, np.array([[5, 0, 2, 4]]), [0.5], [0.0])
    logits.assign_sub(2.0 * tape.gradient(value, logits))
  found = logits.numpy()[0]
  assert found[[5, 0]].min() > found[[2, 4]].max()
  assert found[[2, 4]].min() > found[[1, 3]].max()


def test_rewards_and_propensities_are_not_read():
  x = inputs()
  loss = losses.SafeSlate(**LOSS)
  other = {**x, "rewards": x["rewards"] + 5, "propensities": x["propensities"] / 2}
  np.testing.assert_array_equal(loss(**x), loss(**other))


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_logits_give_finite_loss_and_gradient(scale):
  x = inputs(np.float32)
  for logits in (scale * np.eye(5, dtype=np.float32)[SLATES[:, 0]], np.full((2, 5), scale)):
    extreme = {**x, "logits": logits.astype(np.float32)}
    for found in value_and_gradient(losses.SafeSlate(top=1, slate_size=3), extreme):
      assert np.isfinite(found).all()


def test_a_third_of_the_slate_is_the_target():
  assert [losses.SafeSlate(slate_size=k).num_top for k in (2, 10, 30)] == [1, 3, 10]


@pytest.mark.parametrize(
  "options",
  [
    {"top": 3, "slate_size": 3},
    {"top": -1},
    {"slate_size": 1},
    {"filler_weight": -1.0},
    {"margin": -1.0},
  ],
)
def test_options_out_of_range_are_refused(options):
  with pytest.raises(InputError, match="SafeSlate"):
    losses.SafeSlate(**options)


def test_single_items_are_refused():
  with pytest.raises(ValueError, match=r"actions must be \[B, K\] integer"):
    losses.SafeSlate(slate_size=3)(**{**inputs(), "actions": np.array([0, 1])})
