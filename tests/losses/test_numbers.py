"""Every loss on any numbers: random shapes, dtypes, extremes and modes against the formulas."""

import functools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tests import oracle
from tests.losses.helpers import VARIANTS, batch, make, value_and_gradient
from tests.losses.test_every_loss import exactness, formula
from tests.policy_oracle import enumerate_slates
from tf_twostage.policies import SoftmaxPolicy, TwoStagePolicy

DTYPES = {
  tf.float16: 1e-3,
  tf.bfloat16: 8e-3,
  tf.float32: 2e-4,
  tf.float64: 2e-4,
}  # and their accuracy
# Drawn slates have tests of their own.
EXACT = sorted(v for v, (name, _) in VARIANTS.items() if name != "two_stage_ips" or "exact" in v)
COMPILED = ("ips, two_stage", "doubly_robust")  # takes seconds each


def coupled(loss):
  """Whether a row's loss depends on the others."""
  importance = getattr(loss, "importance", None)
  if importance is None or importance.method == "none":
    return False
  return importance.self_normalize or type(loss).__name__ in ("SNIPS", "POEM")


@functools.cache
def runner(variant, mode):
  """Loss and gradient [B], [B, N] of the variant as a function of columns."""
  dtype = tf.float64 if mode == "graph" else tf.float32
  loss = make(variant, dtype=dtype.name)

  def run(*columns):
    with tf.GradientTape() as tape:
      tape.watch(columns[0])
      value = loss(*columns)
    return value, tape.gradient(value, columns[0])

  def traced(*columns):  # once, for all shapes and dtypes
    columns = [x if x.dtype.is_integer else tf.cast(x, dtype) for x in columns]
    return function(*columns)

  matrix, vector = tf.TensorSpec([None, None], dtype), tf.TensorSpec([None], dtype)
  function = tf.function(
    run,
    input_signature=[matrix, tf.TensorSpec([None], tf.int64), vector, vector, matrix],
    jit_compile=mode == "xla",
    autograph=False,
  )
  return run if mode == "eager" else traced


@st.composite
def batches(draw, fixed=False):
  """Columns of a loss, rounded to a dtype; excluded items have no rewards."""
  rows, items = (4, 5) if fixed else (draw(st.integers(2, 5)), draw(st.integers(1, 5)))
  rng = np.random.default_rng(draw(st.integers(0, 10_000)))
  x = {
    "logits": draw(st.sampled_from([0.0, 1.0, 30.0])) * rng.normal(size=(rows, items)),
    "actions": rng.integers(items, size=rows),
    "propensities": rng.uniform(0.05, 1.0, size=rows),
    "rewards": rng.integers(3, size=rows) * rng.uniform(0.5, 2.0, size=rows),
    "ranker_logits": draw(st.sampled_from([0.0, 2.0])) * rng.uniform(-2, 2, size=(rows, items)),
  }
  if items > 1:
    excluded = rng.uniform(size=(rows, items)) < draw(st.sampled_from([0.0, 0.4]))
    excluded &= np.arange(items) != rng.integers(items, size=(rows, 1))  # each row keeps one
    x["logits"][excluded] = -np.inf
    x["rewards"][excluded[np.arange(rows), x["actions"]]] = 0.0
  dtype = draw(st.sampled_from([*DTYPES]))
  return {
    name: tf.constant(v) if v.dtype.kind == "i" else tf.cast(v, dtype) for name, v in x.items()
  }


def check_against_formula(variant, mode, columns):
  x = {name: v.numpy() for name, v in columns.items()}
  x = {name: v if v.dtype.kind == "i" else v.astype(np.float64) for name, v in x.items()}
  tf.random.set_seed(0)
  value, gradient = runner(variant, mode)(*columns.values())
  with np.errstate(divide="ignore", invalid="ignore"):
    f = formula(variant, x)
    expected = f(x["logits"])
    slope = oracle.finite_differences(lambda logits: np.sum(f(logits)), x["logits"])
  tolerance = max(exactness(variant)["rtol"], DTYPES[tf.float32])
  scale = max(1.0, np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
  np.testing.assert_allclose(value, expected, tolerance, tolerance * scale)
  if np.isfinite(expected).all():  # distilled labels of excluded items are above 0
    tolerance = max(tolerance, DTYPES[gradient.dtype])
    scale = max(1.0, np.abs(slope).max())
    np.testing.assert_allclose(tf.cast(gradient, tf.float32), slope, tolerance, tolerance * scale)


@hypothesis.settings(max_examples=50, deadline=None, derandomize=True)
@hypothesis.given(variant=st.sampled_from(EXACT), graph=st.booleans(), columns=batches())
def test_value_and_gradient_are_those_of_the_formula(variant, graph, columns):
  check_against_formula(variant, "graph" if graph else "eager", columns)


@hypothesis.settings(max_examples=10, deadline=None, derandomize=True)
@hypothesis.given(variant=st.sampled_from(COMPILED), columns=batches(fixed=True))
def test_compiled_value_and_gradient_are_those_of_the_formula(variant, columns):
  check_against_formula(variant, "xla", columns)


# Doubly robust values all items, and a distilled label is above 0.
@pytest.mark.parametrize(
  "variant", sorted(v for v in VARIANTS if not v.startswith("doubly") and "distilled" not in v)
)
def test_an_item_of_probability_zero_without_reward_adds_nothing(variant):
  x = batch(rows=4, items=5, dtype=np.float32)
  x["logits"][1, x["actions"][1]] = -np.inf
  value, gradient = value_and_gradient(make(variant), x)
  assert np.isfinite(value).all()
  assert np.isfinite(gradient).all()
  assert not gradient[1].any()
  assert x["rewards"][1] == 0
  assert value[1] == 0 or variant.startswith("poem")  # whose penalty is that of the batch


@pytest.mark.parametrize(
  ("variant", "mode"),
  [(v, "graph") for v in sorted(VARIANTS)] + [(v, m) for v in COMPILED for m in ("eager", "xla")],
)
def test_invalid_logits_make_their_rows_nan(variant, mode):
  loss = make(variant)
  rng = np.random.default_rng(0)
  x = {
    "logits": rng.normal(size=(4, 5)),
    "actions": np.zeros(4, np.int64),
    "propensities": np.full(4, 0.3),
    "rewards": np.ones(4),
    "ranker_logits": rng.normal(size=(4, 5)),
  }
  binary = VARIANTS[variant][0] == "binary_cross_entropy"
  x["logits"][0, 0] = np.nan
  x["logits"][1, 0 if binary else 3] = np.inf
  x["ranker_logits"][2, 0 if binary else 3] = np.nan if binary else np.inf
  value, gradient = runner(variant, mode)(
    *(tf.constant(v if v.dtype.kind == "i" else v.astype(np.float32)) for v in x.values())
  )
  bad = np.array([True, True, loss.needs_ranker, False]) | (coupled(loss))
  np.testing.assert_array_equal(np.isnan(value), bad)
  if not binary:  # its slope at an infinite logit is that of a sigmoid
    np.testing.assert_array_equal(np.isnan(gradient).any(axis=1), bad)


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
  rows=st.integers(1, 3),
  items=st.integers(1, 4),
  slate_size=st.integers(1, 3),
  sharpness=st.sampled_from([0.0, 1.0, 30.0]),
  spread=st.sampled_from([0.0, 3.0, 200.0]),
  dtype=st.sampled_from([*DTYPES]),
  seed=st.integers(0, 10_000),
)
def test_policies_are_those_of_all_slates(rows, items, slate_size, sharpness, spread, dtype, seed):
  rng = np.random.default_rng(seed)
  logits, ranker = (
    tf.cast(scale * rng.normal(size=(rows, items)), dtype) for scale in (sharpness, spread)
  )
  actions = rng.integers(items, size=rows)
  policy = TwoStagePolicy(logits, ranker, slate_size)
  probabilities, log_prob = policy.probabilities(), policy.log_prob(actions)
  softmax = SoftmaxPolicy(logits)
  for row in range(rows):
    z, g = (tf.cast(x[row], tf.float64).numpy() for x in (logits, ranker))
    p, expected = oracle.softmax(z), enumerate_slates(z, g, slate_size).probabilities
    np.testing.assert_allclose(softmax.probabilities()[row], p, 1e-5, 1e-6)
    np.testing.assert_allclose(softmax.log_prob(actions)[row], np.log(p[actions[row]]), 1e-5, 1e-5)
    # Where the ranker's share is at least 1e-6.
    seen = expected >= 1e-6 * slate_size * p
    np.testing.assert_allclose(probabilities[row].numpy()[seen], expected[seen], 6e-4, 1e-30)
    if seen[actions[row]]:
      np.testing.assert_allclose(log_prob[row], np.log(expected[actions[row]]), 1e-5, 3e-4)
