"""Every loss on any numbers: random shapes, dtypes, extremes and modes against the formulas."""

import functools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tests import oracle
from tests.losses.formulas import exactness, formula
from tests.losses.helpers import VARIANTS, batch, make
from tests.policy_oracle import enumerate_slates
from tf_twostage.policies import SoftmaxPolicy, TwoStagePolicy

DTYPES = {
  tf.float16: 1e-3,
  tf.bfloat16: 8e-3,
  tf.float32: 2e-4,
  tf.float64: 2e-4,
}  # and their accuracy
COMPILED_SHAPE = (4, 5)
DRAWN = ("two_stage_ips", "two_stage_ips, systematic")
SHARES = "two_stage_ips, shares"  # which couples the draws of all rows: test_every_loss has it
NUMBERS = sorted(VARIANTS.keys() - {SHARES})


# Losses of the other dtypes in XLA, since compilations cost most; and of bfloat16, which all cast.
FEW = ("binary_cross_entropy", "cross_entropy", "ips, two_stage", "two_stage_ips, exact")


def in_mode(variant, mode, dtype):
  """Whether the variant runs there: without its options in graphs and XLA."""
  _, _, option = variant.partition(", ")
  if mode == "eager":
    return True
  if dtype == tf.float32:
    return option in ("", "two_stage", "systematic", "exact")
  if dtype == tf.float64 and mode == "graph":
    return not option or variant in FEW
  return dtype != tf.float16 and variant in FEW


MODES = [(mode, dtype) for mode in ("eager", "graph", "xla") for dtype in DTYPES]


@functools.cache
def made(variant, dtype):
  """The loss. It draws one item a row, since draws differ by mode."""
  drawn = {"slate_size": 2, "num_slates": 1} if variant in DRAWN else {}
  return make(variant, dtype="float64" if dtype == tf.float64 else "float32", **drawn)


@functools.cache
def runner(mode, dtype, variants):
  """Losses and gradients, [B] and [B, N] of each variant, as a function of columns."""

  def run(logits, *columns):
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(logits)
      values = [made(variant, dtype)(logits, *columns) for variant in variants]
    return [(value, tape.gradient(value, logits)) for value in values]

  if mode == "eager":
    return run
  matrix, vector = tf.TensorSpec([None, None], dtype), tf.TensorSpec([None], dtype)
  return tf.function(
    run,
    input_signature=[matrix, tf.TensorSpec([None], tf.int64), vector, vector, matrix],
    jit_compile=mode == "xla",
    autograph=False,
  )


def results(variant, x):
  """Mode, dtype, value [B] and gradient [B, N] wherever the variant runs on such columns."""
  for mode, dtype in MODES:
    if not in_mode(variant, mode, dtype):
      continue
    if mode == "xla" and x["logits"].shape != COMPILED_SHAPE:
      continue
    eager = mode == "eager"
    variants = (variant,) if eager else tuple(v for v in NUMBERS if in_mode(v, mode, dtype))
    columns = [tf.constant(v) if v.dtype.kind == "i" else tf.cast(v, dtype) for v in x.values()]
    value, gradient = runner(mode, dtype, variants)(*columns)[variants.index(variant)]
    assert gradient.dtype == dtype
    yield mode, dtype, *(tf.cast(t, tf.float64).numpy() for t in (value, gradient))


def formulas(variant, x):
  """The loss as a function of logits, for every item that its rows may draw."""
  loss = made(variant, tf.float64)
  if variant in DRAWN:
    slates = np.zeros((len(x["actions"]), 1, 1), int)
    return [formula(loss, x, slates + item) for item in range(x["logits"].shape[1])]
  return [formula(loss, x)]


@st.composite
def batches(draw):
  """Columns of a loss, rounded to every dtype; excluded items have no rewards."""
  shape = draw(st.sampled_from([COMPILED_SHAPE, None]))
  rows, items = shape or (draw(st.integers(2, 5)), draw(st.integers(1, 5)))
  rng = np.random.default_rng(draw(st.integers(0, 10_000)))
  x = {
    "logits": draw(st.sampled_from([1.0, 30.0, 0.0])) * rng.normal(size=(rows, items)),
    "actions": rng.integers(items, size=rows),
    "propensities": rng.uniform(0.05, 1.0, size=rows),
    "rewards": rng.integers(3, size=rows) * rng.uniform(0.5, 2.0, size=rows),
    "ranker_logits": draw(st.sampled_from([2.0, 0.0])) * rng.uniform(-2, 2, size=(rows, items)),
  }
  if items > 1:
    excluded = rng.uniform(size=(rows, items)) < draw(st.sampled_from([0.4, 0.0]))
    excluded &= np.arange(items) != rng.integers(items, size=(rows, 1))  # each row keeps one
    x["logits"][excluded] = -np.inf
    x["rewards"][excluded[np.arange(rows), x["actions"]]] = 0.0
  return {name: v if v.dtype.kind == "i" else rounded(v) for name, v in x.items()}


def rounded(column):
  return tf.cast(tf.cast(column, tf.bfloat16), tf.float64).numpy()


def close(actual, expected, tolerance):
  """[...] whether `actual` is the formula's, up to the scale of all of `expected`."""
  scale = max(1.0, np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
  return np.isclose(actual, expected, tolerance, tolerance * scale)


# Rivals and slates are drawn anew in each mode; test_every_loss has the formula of one draw.
@pytest.mark.parametrize("variant", [v for v in NUMBERS if "ltr" not in v and "vanilla" not in v])
@hypothesis.settings(max_examples=3, deadline=None, derandomize=True)
@hypothesis.given(x=batches())
def test_value_and_gradient_are_those_of_the_formula(variant, x):
  with np.errstate(divide="ignore", invalid="ignore"):
    expected = [
      (f(x["logits"]), oracle.finite_differences(lambda z, f=f: np.sum(f(z)), x["logits"]))
      for f in formulas(variant, x)
    ]
  for mode, dtype, value, gradient in results(variant, x):
    tolerance = max(exactness(variant)["rtol"], DTYPES[tf.float32])
    right = np.zeros(len(value), bool)
    for wanted, slope in expected:
      same = close(value, wanted, tolerance)
      if np.isfinite(wanted).all():  # distilled labels of excluded items are above 0
        same &= close(gradient, slope, max(tolerance, DTYPES[dtype])).all(axis=1)
      right |= same
    assert right.all(), (mode, dtype, value, gradient, expected)


# Doubly robust values all items, and a distilled label is above 0.
@pytest.mark.parametrize(
  "variant", [v for v in NUMBERS if not v.startswith("doubly") and "distilled" not in v]
)
def test_an_item_of_probability_zero_without_reward_adds_nothing(variant):
  x = batch(*COMPILED_SHAPE)
  x["logits"][1, x["actions"][1]] = -np.inf
  assert x["rewards"][1] == 0
  for mode, dtype, value, gradient in results(variant, x):
    assert np.isfinite(value).all(), (mode, dtype)
    assert np.isfinite(gradient).all(), (mode, dtype)
    assert not gradient[1].any(), (mode, dtype)
    # The penalty of POEM is that of the batch.
    assert value[1] == 0 or variant.startswith("poem"), (mode, dtype)


def coupled(loss):
  """Whether a row's loss depends on the others."""
  importance = getattr(loss, "importance", None)
  if importance is None or importance.method == "none":
    return False
  return importance.self_normalize or type(loss).__name__ in ("SNIPS", "POEM")


@pytest.mark.parametrize("variant", NUMBERS)
def test_invalid_logits_make_their_rows_nan(variant):
  loss = make(variant)
  x = {**batch(*COMPILED_SHAPE), "actions": np.zeros(4, np.int64), "rewards": np.ones(4)}
  other = 0 if "binary" in variant else 3  # which reads the logged item's alone
  x["logits"][0, 0] = np.nan
  x["logits"][1, other] = np.inf
  x["ranker_logits"][2, other] = np.inf
  bad = np.array([True, True, loss.needs_ranker, False]) | coupled(loss)
  for mode, dtype, value, gradient in results(variant, x):
    np.testing.assert_array_equal(np.isnan(value), bad, f"{mode} {dtype}")
    np.testing.assert_array_equal(np.isnan(gradient).any(axis=1), bad, f"{mode} {dtype}")


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
