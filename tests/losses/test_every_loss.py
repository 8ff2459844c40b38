"""What holds for every loss in the registry."""

import numpy as np
import pytest
import tensorflow as tf

from tests import oracle
from tests.losses.helpers import batch, value_and_gradient
from tf_twostage import losses
from tf_twostage.losses.slates import sample_slates, slate_counts

SLATES = {"num_slates": 3, "slate_size": 4}


def make(name, /, **options):
  """The loss of that name with few, small slates and a seed."""
  if name == "two_stage_ips":
    options = {"seed": 1, "alpha": 0.5, **SLATES, **options}
  return losses.LOSSES[name](**options)


every_loss = pytest.mark.parametrize("name", sorted(losses.LOSSES))


def held_fixed(name, x, terms):
  """The loss of a batch as a NumPy function of its logits, all that stops the gradient held."""
  rows = np.arange(len(x["actions"]))

  tf.random.set_seed(0)
  slates = sample_slates(tf.constant(x["logits"]), temperature=np.e, seed=1, **SLATES)
  c, _ = slate_counts(slates, tf.constant(x["actions"]), x["ranker_logits"], alpha=0.5)

  def log_p(logits):
    return oracle.log_softmax(logits)[rows, x["actions"]]

  def binary(logits):
    z = logits[rows, x["actions"]]
    return np.log1p(np.exp(z)) - x["rewards"] * z

  def two_stage(logits):
    return -x["rewards"] * terms.weights * (c.numpy() * oracle.log_softmax(logits)).sum(axis=1)

  return {
    "cross_entropy": lambda logits: -x["rewards"] * log_p(logits),
    "binary_cross_entropy": binary,
    "ips": lambda logits: -x["rewards"] * terms.weights * log_p(logits),
    "two_stage_ips": two_stage,
  }[name]


@every_loss
def test_gradient_agrees_with_finite_differences(name):
  x = batch(rows=3, items=4)
  loss = make(name, dtype="float64")
  tf.random.set_seed(0)
  terms = loss.terms(**x)
  tf.random.set_seed(0)
  _, gradient = value_and_gradient(loss, x)
  f = held_fixed(name, x, terms)
  expected = oracle.finite_differences(lambda logits: np.sum(f(logits)), x["logits"])
  np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)


@every_loss
def test_descent_raises_the_logged_item_with_reward(name):
  x = batch()
  _, gradient = value_and_gradient(make(name, dtype="float64"), x)
  rewarded = x["rewards"] > 0
  assert (gradient[np.arange(6), x["actions"]][rewarded] < 0).all()


@every_loss
def test_one_row_gives_one_value(name):
  value, gradient = value_and_gradient(make(name), batch(rows=1))
  assert value.shape == (1,)
  assert gradient.shape == (1, 5)


@pytest.mark.parametrize("name", ["cross_entropy", "ips", "two_stage_ips"])
def test_a_catalogue_of_one_item_leaves_nothing_to_learn(name):
  x = batch(rows=2, items=1, dtype=np.float32)
  np.testing.assert_allclose(make(name)(**x), [0.0, 0.0], atol=1e-6)


@every_loss
def test_equal_logits_treat_items_alike(name):
  x = batch(rows=5, items=5)
  equal = {
    **x,
    "logits": np.zeros((5, 5)),
    "actions": np.arange(5),
    "propensities": np.full(5, 0.2),
    "rewards": np.ones(5),
    "ranker_logits": np.zeros((5, 5)),
  }
  # Without draws: slates would differ from row to row.
  options = {"slate_size": 1} if name == "two_stage_ips" else {}
  value, gradient = value_and_gradient(make(name, dtype="float64", **options), equal)
  expected = np.log(2.0) if name == "binary_cross_entropy" else np.log(5.0)
  np.testing.assert_allclose(value, np.full(5, expected), rtol=1e-12)
  np.testing.assert_allclose(np.diag(gradient), np.full(5, gradient[0, 0]), rtol=1e-12)


@every_loss
@pytest.mark.parametrize("scale", [1e4, -1e4])
@pytest.mark.parametrize("propensity", [1e-12, 1.0])
def test_extreme_inputs_give_finite_loss_and_gradient(name, scale, propensity):
  x = batch(rows=3, items=4, dtype=np.float32)
  logged = np.eye(4, dtype=np.float32)[x["actions"]]
  for logits in (scale * logged, np.full_like(logged, scale)):
    for ranker_logits in (scale * logged, -scale * logged):
      extreme = {
        **x,
        "logits": logits,
        "ranker_logits": ranker_logits,
        "propensities": np.full(3, propensity, np.float32),
      }
      terms = make(name).terms(**extreme)
      _, gradient = value_and_gradient(make(name), extreme)
      for tensor in (gradient, *(t for t in terms if t is not None)):
        assert np.isfinite(tensor).all()


@every_loss
def test_graph_equals_eager(name):
  x = {k: tf.constant(v) for k, v in batch(dtype=np.float32).items()}
  loss = make(name)
  tf.random.set_seed(3)
  eager = loss(**x)
  tf.random.set_seed(3)
  graph = tf.function(loss)(**x)
  np.testing.assert_allclose(graph, eager, rtol=1e-6)


@every_loss
def test_traces_with_unknown_sizes(name):
  x = batch(dtype=np.float32)
  loss = make(name)
  step = tf.function(
    lambda logits, actions, propensities, rewards, ranker_logits: loss(
      logits, actions, propensities, rewards, ranker_logits
    ),
    input_signature=[tf.TensorSpec([None] * v.ndim, v.dtype, name=k) for k, v in x.items()],
  )
  tf.random.set_seed(3)
  value = step(*x.values())
  tf.random.set_seed(3)
  np.testing.assert_allclose(value, loss(**x), rtol=1e-6)


@every_loss
def test_config_round_trip(name):
  options = {}
  if "importance" in losses.options(name):
    options["importance"] = losses.ImportanceWeights(cap=3.0, floor=0.5, self_normalize=False)
  if name == "two_stage_ips":
    options |= {"num_slates": 4, "slate_size": 6, "sampling_temperature": 1.5, "seed": 7}
  loss = make(name, name="mine", **options)
  again = type(loss).from_config(loss.get_config())
  assert again.get_config() == loss.get_config()
  for option, value in options.items():
    assert getattr(again, option) == value


@every_loss
def test_half_precision_logits_are_computed_in_float32(name):
  x = batch(dtype=np.float32)
  x["logits"] = np.asarray(tf.cast(tf.cast(x["logits"], tf.bfloat16), tf.float32))
  half = {**x, "logits": tf.cast(x["logits"], tf.bfloat16)}
  loss = make(name)
  tf.random.set_seed(3)
  expected = loss.terms(**x).loss
  tf.random.set_seed(3)
  value = loss.terms(**half).loss
  assert value.dtype == tf.float32
  np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.fixture
def mixed_precision():
  before = tf.keras.mixed_precision.global_policy()
  tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
  yield
  tf.keras.mixed_precision.set_global_policy(before)


@every_loss
@pytest.mark.usefixtures("mixed_precision")
def test_a_mixed_precision_policy_does_not_round_the_loss(name):
  x = batch(dtype=np.float32)
  loss = make(name)
  tf.random.set_seed(3)
  called = loss(**x)
  tf.random.set_seed(3)
  np.testing.assert_array_equal(called, loss.terms(**x).loss)


BAD = {
  "logits of rank 1": ({"logits": np.zeros(6)}, r"logits must be \[B, N\] floating, got \(6,\)"),
  "integer logits": ({"logits": np.zeros((6, 5), int)}, r"logits must .* got \(6, 5\) int64"),
  "floating actions": ({"actions": np.zeros(6)}, r"actions must be \[B\] integer, got \(6,\) flo"),
  "rewards as a column": (
    {"rewards": np.zeros((6, 1))},
    r"rewards must be \[B\] floating, got \(6, 1\) float64 \(B = 6, N = 5\)",
  ),
  "another batch size": (
    {"propensities": np.ones(4)},
    r"propensities must be \[B\] floating, got \(4,\)",
  ),
}


@every_loss
@pytest.mark.parametrize("bad", sorted(BAD))
def test_says_what_does_not_fit(name, bad):
  change, message = BAD[bad]
  with pytest.raises(ValueError, match=message):
    make(name)(**{**batch(), **change})


def test_says_what_does_not_fit_while_tracing():
  change, message = BAD["rewards as a column"]
  x = {k: tf.constant(v) for k, v in {**batch(), **change}.items()}
  with pytest.raises(ValueError, match=message):
    tf.function(losses.IPS())(**x)


def test_says_that_ranker_logits_have_another_catalogue():
  x = {**batch(), "ranker_logits": np.zeros((6, 4))}
  with pytest.raises(ValueError, match=r"ranker_logits must be \[B, N\] floating, got \(6, 4\)"):
    make("two_stage_ips")(**x)
