"""Policies: the two-stage quadrature against enumeration, gradients, draws and extremes."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.oracle import softmax
from tests.policy_oracle import enumerate_slates, ranker_probability
from tf_twostage.errors import InputError
from tf_twostage.policies import (
  FactoredPolicy,
  SoftmaxPolicy,
  TwoStagePolicy,
  two_stage_log_prob,
  two_stage_probabilities,
  two_stage_propensities,
)

ITEMS, SLATE = 6, 3
# Documented relative errors of qbar where it is at least 1e-6: at one action, and of all at once.
ONE_ACTION, ALL_ACTIONS = 3e-4, 6e-4


def tiny(seed, spread=2.0):
  rng = np.random.default_rng(seed)
  logits, ranker = rng.normal(size=(2, 1, ITEMS)).astype(np.float32)
  return logits, spread * ranker


def jacobian(function, logits):
  logits = tf.constant(logits)
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(logits)
    values = function(logits)
  return values, tape.batch_jacobian(values, logits, experimental_use_pfor=False)


@pytest.mark.parametrize("seed", range(4))
def test_probabilities_and_gradient_equal_enumeration(seed):
  logits, ranker = tiny(seed)
  expected = enumerate_slates(logits[0], ranker[0], SLATE)
  values, gradient = jacobian(lambda z: TwoStagePolicy(z, ranker, SLATE).probabilities(), logits)
  np.testing.assert_allclose(values[0], expected.probabilities, atol=1e-4)
  np.testing.assert_allclose(gradient[0], expected.jacobian, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_log_prob_of_an_action_and_its_gradient_equal_enumeration(seed):
  logits, ranker = (np.repeat(x, ITEMS, axis=0) for x in tiny(seed))
  expected = enumerate_slates(logits[0], ranker[0], SLATE)
  logits = tf.constant(logits)
  with tf.GradientTape() as tape:
    tape.watch(logits)
    log_prob = TwoStagePolicy(logits, ranker, SLATE).log_prob(tf.range(ITEMS))
  np.testing.assert_allclose(tf.exp(log_prob), expected.probabilities, atol=1e-4)
  gradient = tape.gradient(log_prob, logits)
  np.testing.assert_allclose(
    gradient, expected.jacobian / expected.probabilities[:, None], atol=1e-3
  )


@pytest.mark.parametrize("slate_size", [2, 3])
def test_the_fine_quadrature_of_the_oracle_equals_enumeration(slate_size):
  logits, ranker = (x[0].astype(np.float64) for x in tiny(0, spread=4.0))
  p = softmax(logits)
  share = ranker_probability(p, ranker, np.arange(ITEMS), slate_size)
  expected = enumerate_slates(logits, ranker, slate_size).probabilities
  np.testing.assert_allclose(slate_size * p * share, expected, rtol=1e-10)


@pytest.mark.parametrize("slate_size", [2, 30, 200])
@pytest.mark.parametrize("spread", [0.1, 5.0, 50.0])
def test_ranker_share_is_as_exact_as_documented(spread, slate_size):
  rng = np.random.default_rng(int(spread))
  items = 400
  logits = 3 * rng.normal(size=items)
  ranker = rng.uniform(-spread, spread, size=items)
  actions = np.arange(items)
  expected = ranker_probability(softmax(logits), ranker, actions, slate_size)
  policy = TwoStagePolicy(
    np.repeat(logits[None], items, 0).astype(np.float32),
    np.repeat(ranker[None], items, 0).astype(np.float32),
    slate_size,
  )
  seen = expected >= 1e-6
  assert seen.any()
  np.testing.assert_allclose(
    policy.ranker_probability(actions).numpy()[seen], expected[seen], ONE_ACTION
  )


@pytest.mark.parametrize("slate_size", [2, 30, 200])
@pytest.mark.parametrize("spread", [0.1, 5.0, 50.0])
def test_probabilities_are_as_exact_as_documented(spread, slate_size):
  rng = np.random.default_rng(int(spread))
  logits = 3 * rng.normal(size=400)
  ranker = rng.uniform(-spread, spread, size=400)
  share = ranker_probability(softmax(logits), ranker, np.arange(400), slate_size)
  probabilities = two_stage_probabilities(
    logits[None].astype(np.float32), ranker[None].astype(np.float32), slate_size
  ).numpy()[0]
  expected, seen = slate_size * softmax(logits) * share, share >= 1e-6
  np.testing.assert_allclose(probabilities[seen], expected[seen], ALL_ACTIONS)


def test_items_far_below_the_best_are_told_apart():
  """Slates of two equally likely items: 5 of 9 hold the first, 3 of the others the second."""
  expected = [[5 / 9, 3 / 9, 1 / 9]]
  policy = TwoStagePolicy(np.zeros((1, 3), np.float32), np.array([[0.0, -110.0, -130.0]]), 2)
  np.testing.assert_allclose(policy.probabilities(), expected, ALL_ACTIONS)
  log_prob = [
    TwoStagePolicy(policy.logits, policy.ranker_logits, 2).log_prob([a]) for a in (0, 1, 2)
  ]
  np.testing.assert_allclose(np.exp(log_prob).T, expected, ONE_ACTION)


# Windows of 50: two, many, and one for each item.
@pytest.mark.parametrize("spread", [40.0, 500.0, 1e30])
def test_any_spread_of_ranker_logits_equals_enumeration(spread):
  logits, ranker = tiny(3, spread)
  expected = enumerate_slates(*(x[0].astype(np.float64) for x in (logits, ranker)), SLATE)
  values, gradient = jacobian(lambda z: two_stage_probabilities(z, ranker, SLATE), logits)
  np.testing.assert_allclose(values[0], expected.probabilities, atol=1e-4)
  np.testing.assert_allclose(gradient[0], expected.jacobian, atol=1e-4)


def flat(items, slate_size, actions):
  """Equal logits [N], ranker logits uniform on ±50, and qbar of the actions; float32."""
  ranker = np.random.default_rng(0).uniform(-50, 50, size=items).astype(np.float32)
  p = np.full(items, 1 / items)
  exact = ranker.astype(np.float64)
  actions = np.argsort(-ranker)[actions]
  share = ranker_probability(p, exact, actions, slate_size, step=0.25)
  return np.zeros(items, np.float32), ranker, actions, share


def test_a_large_catalogue_is_as_exact_as_documented():
  logits, ranker, actions, expected = flat(30_000, 30, [100, 2000, 8000])
  assert expected.min() > 1e-6
  repeated = [np.repeat(x[None], 3, axis=0) for x in (logits, ranker)]
  _, log_share = two_stage_log_prob(*repeated, actions, 30)
  np.testing.assert_allclose(np.exp(log_share), expected, ONE_ACTION)


@pytest.mark.parametrize("items", [1000, 4000])
def test_large_slates_are_as_exact_as_documented(items):
  logits, ranker, actions, expected = flat(items, 1000, [0, 2, 5])
  assert expected.min() > 1e-6
  repeated = [np.repeat(x[None], 3, axis=0) for x in (logits, ranker)]
  _, log_share = two_stage_log_prob(*repeated, actions, 1000)
  np.testing.assert_allclose(np.exp(log_share), expected, ONE_ACTION)
  probabilities = two_stage_probabilities(logits[None], ranker[None], 1000).numpy()
  np.testing.assert_allclose(probabilities[0, actions], 1000 / items * expected, ALL_ACTIONS)
  # Off-policy evaluation takes no rows that sum to less or more.
  np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-4)


@pytest.mark.parametrize("slate_size", [2, 5, 30, 100])
def test_share_against_one_rival_is_as_exact_as_documented(slate_size):
  """p of the action from 1e-6 to 1 - 1e-6; the rival anywhere within a bin, better or worse."""
  gaps, masses = np.meshgrid(
    np.linspace(-14.0, 14.0, 301), [1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 1e-6]
  )
  rows = gaps.size
  logits = np.log(np.stack([masses.ravel(), 1 - masses.ravel()], 1)).astype(np.float32)
  ranker = np.stack([np.zeros(rows), gaps.ravel()], 1).astype(np.float32)
  _, log_share = two_stage_log_prob(logits, ranker, np.zeros(rows, int), slate_size)
  # the number of draws of the rival is binomial
  p, odds, others = softmax(logits.astype(np.float64)), np.exp(ranker[:, 1]), slate_size - 1
  expected = sum(
    math.comb(others, n) * p[:, 1] ** n * p[:, 0] ** (others - n) / (slate_size - n + n * odds)
    for n in range(slate_size)
  )
  seen = expected >= 1e-6
  np.testing.assert_allclose(np.exp(log_share)[seen], expected[seen], ONE_ACTION)


@pytest.mark.parametrize("slate_size", [1, 2, 30, 100])
@pytest.mark.parametrize("spread", [0.0, 1.0, 20.0])
def test_propensities_from_masses_alone_are_as_exact(slate_size, spread):
  rng = np.random.default_rng(3)
  p = softmax(4 * rng.normal(size=(1, 3_000)))
  p = np.concatenate([p, softmax(np.log(p) + 40 * (np.arange(3_000) == 7))])  # one item dominates
  ranker = (spread * rng.normal(size=(1, 3_000))).astype(np.float32)
  actions = np.append(rng.choice(3_000, 15, p=p[0]), 7)
  for row in p:
    expected = row[actions]
    if slate_size > 1:
      share = ranker_probability(row, ranker[0].astype(np.float64), actions, slate_size)
      expected = slate_size * expected * share
    rows = (np.repeat(x.reshape(1, -1).astype(np.float32), 16, axis=0) for x in (row, ranker))
    found = two_stage_propensities(*map(tf.constant, rows), tf.constant(actions), slate_size)
    seen = expected >= 1e-6 * slate_size * row[actions]
    np.testing.assert_allclose(found[seen], expected[seen], ONE_ACTION)


def test_real_ranker_logits_are_as_exact_as_documented(test_data):
  ranker = np.load(test_data / "ml-1m-reference" / "ranker.npz")
  scores = ranker["user_vectors"][:3] @ ranker["item_vectors"].T
  rng = np.random.default_rng(0)
  logits = (scores + 2 * rng.normal(size=scores.shape)).astype(np.float32)
  actions = rng.integers(scores.shape[1], size=(3, 40))
  probabilities = two_stage_probabilities(logits, scores, 30).numpy()
  for row in range(3):
    p = softmax(logits[row].astype(np.float64))
    expected = ranker_probability(p, scores[row].astype(np.float64), actions[row], 30)
    repeated = [np.repeat(x[row : row + 1], 40, axis=0) for x in (logits, scores)]
    _, log_share = two_stage_log_prob(*repeated, actions[row], 30)
    np.testing.assert_allclose(np.exp(log_share), expected, ONE_ACTION)
    np.testing.assert_allclose(
      probabilities[row, actions[row]], 30 * p[actions[row]] * expected, ALL_ACTIONS
    )


@pytest.mark.parametrize(
  "output",
  [
    lambda z, g, a, w: tf.reduce_sum(w[:, 0] * two_stage_log_prob(z, g, a, 30)[0]),
    lambda z, g, a, w: tf.reduce_sum(w[:, 0] * two_stage_log_prob(z, g, a, 30)[1]),
    lambda z, g, a, w: tf.reduce_sum(w[:, 0] * TwoStagePolicy(z, g, 30).ranker_probability(a)),
    lambda z, g, a, w: tf.reduce_sum(w * TwoStagePolicy(z, g, 30).probabilities()),
    lambda z, g, a, w: tf.reduce_sum(w[:, 0] * TwoStagePolicy(z, g, 30).entropy()),
    lambda z, g, a, w: tf.reduce_sum(w[:, 0] * SoftmaxPolicy(z, 0.7).log_prob(a)),
  ],
  ids=["log_p", "log_share", "ranker_probability", "probabilities", "entropy", "softmax"],
)
def test_gradients_equal_finite_differences(output):
  rng = np.random.default_rng(7)
  logits, ranker, weights, direction = rng.normal(size=(4, 5, 40))
  actions = rng.integers(40, size=5)

  def value(z):
    return output(z, 3 * ranker, actions, weights)

  logits = tf.constant(logits)
  with tf.GradientTape() as tape:
    tape.watch(logits)
    total = value(logits)
  step = 1e-5
  slope = (value(logits + step * direction) - value(logits - step * direction)) / (2 * step)
  np.testing.assert_allclose(
    np.sum(tape.gradient(total, logits) * direction), slope, rtol=1e-6, atol=1e-9
  )


def test_sampled_slates_approach_the_share_at_the_monte_carlo_rate():
  rng = np.random.default_rng(2)
  logits, ranker = rng.normal(size=(2, 50))
  slate_size, action = 30, 3
  policy = TwoStagePolicy(*(x[None].astype(np.float32) for x in (logits, ranker)), slate_size)
  exact = float(policy.ranker_probability([action])[0])
  for draws in (1_000, 100_000):
    others = rng.choice(50, size=(draws, slate_size - 1), p=softmax(logits))
    shares = 1 / (1 + np.exp(ranker[others] - ranker[action]).sum(axis=1))
    assert abs(shares.mean() - exact) < 4 * shares.std() / np.sqrt(draws) + 1e-3 * exact


def test_ranker_logits_receive_no_gradient():
  logits, ranker = map(tf.constant, tiny(0))
  with tf.GradientTape() as tape:
    tape.watch(ranker)
    value = TwoStagePolicy(logits, ranker, SLATE).log_prob([2])
  assert tape.gradient(value, ranker) is None


@pytest.mark.parametrize("slate_size", [1, 2, 30])
def test_probabilities_sum_to_one(slate_size):
  rng = np.random.default_rng(1)
  logits, ranker = 4 * rng.normal(size=(2, 5, 300)).astype(np.float32)
  total = TwoStagePolicy(logits, ranker, slate_size).probabilities().numpy().sum(axis=1)
  np.testing.assert_allclose(total, 1.0, atol=1e-4)


def test_a_slate_of_one_is_the_generator():
  logits, ranker = tiny(0)
  two_stage, softmax_policy = TwoStagePolicy(logits, ranker, 1), SoftmaxPolicy(logits)
  np.testing.assert_allclose(two_stage.probabilities(), softmax_policy.probabilities())
  np.testing.assert_allclose(two_stage.log_prob([3]), softmax_policy.log_prob([3]))


def test_an_indifferent_ranker_shares_the_slate_evenly():
  logits, _ = tiny(0)
  policy = TwoStagePolicy(logits, np.full_like(logits, 7.0), 5)
  np.testing.assert_allclose(policy.ranker_probability([1]), 1 / 5, rtol=1e-3)
  np.testing.assert_allclose(
    policy.probabilities(), SoftmaxPolicy(logits).probabilities(), rtol=1e-3
  )


def test_excluded_items_have_no_probability():
  logits, ranker = tiny(0)
  logits[0, 2] = -np.inf
  probabilities = TwoStagePolicy(logits, ranker, SLATE).probabilities().numpy()[0]
  assert probabilities[2] == 0
  kept = np.delete(np.arange(ITEMS), 2)
  expected = enumerate_slates(logits[0, kept], ranker[0, kept], SLATE).probabilities
  np.testing.assert_allclose(probabilities[kept], expected, atol=1e-4)


def test_excluded_items_have_no_gradient():
  logits, ranker = tiny(0)
  logits[0, 2] = -np.inf
  logits = tf.constant(logits)
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(logits)
    policy = TwoStagePolicy(logits, ranker, SLATE)
    outputs = [policy.log_prob([1]), policy.probabilities()[:, 1], policy.entropy()]
    outputs += [SoftmaxPolicy(logits).log_prob([1]), SoftmaxPolicy(logits).entropy()]
  for output in outputs:
    gradient = tape.gradient(output, logits).numpy()[0]
    assert np.all(np.isfinite(gradient))
    assert gradient[2] == 0
    assert np.all(gradient[[0, 1, 3, 4, 5]] != 0)


def test_equal_scores_of_a_large_catalogue_do_not_drift():
  """Every item falls into one bin: 30,938 equal addends in float32."""
  zeros = np.zeros((1, 30_938), np.float32)
  policy = TwoStagePolicy(zeros, zeros + 0.3, 30)
  np.testing.assert_allclose(policy.ranker_probability([17]), 1 / 30, rtol=1e-3)
  np.testing.assert_allclose(tf.reduce_sum(policy.probabilities()), 1.0, rtol=1e-3)


@pytest.mark.parametrize("scale", [50.0, 1e4])
@pytest.mark.parametrize("which", ["logits", "ranker", "both"])
@pytest.mark.parametrize("slate_size", [2, 30])
def test_extreme_scores_stay_finite(slate_size, which, scale):
  logits, ranker = tiny(3)
  logits = logits if which == "ranker" else scale * logits
  ranker = ranker if which == "logits" else scale * ranker
  logits = tf.constant(np.repeat(logits, ITEMS, axis=0))
  with tf.GradientTape() as tape:
    tape.watch(logits)
    log_p, log_share = two_stage_log_prob(
      logits, np.repeat(ranker, ITEMS, axis=0), np.arange(ITEMS), slate_size
    )
    probabilities = two_stage_probabilities(logits, np.repeat(ranker, ITEMS, axis=0), slate_size)
    loss = tf.reduce_sum(log_p + log_share) + tf.reduce_sum(tf.square(probabilities))
  np.testing.assert_allclose(tf.reduce_sum(probabilities, 1), 1.0, atol=1e-3)
  assert np.all(np.isfinite(loss))
  assert np.all(np.isfinite(tape.gradient(loss, logits)))


@pytest.mark.parametrize("policy", ["softmax", "two_stage"])
def test_draws_follow_the_probabilities(policy):
  draws = 20_000

  def made(rows):
    logits, ranker = (np.repeat(x, rows, axis=0) for x in tiny(5))
    return SoftmaxPolicy(logits) if policy == "softmax" else TwoStagePolicy(logits, ranker, SLATE)

  counts = np.bincount(made(draws).sample([1, 2]), minlength=ITEMS)
  expected = draws * made(1).probabilities().numpy()[0]
  chi_square = np.sum((counts - expected) ** 2 / expected)
  assert chi_square < 25.7  # the 0.9999 quantile at 5 degrees of freedom


@pytest.mark.parametrize("slate_size", [None, SLATE])
def test_draws_repeat_with_their_seed_and_avoid_excluded_items(slate_size):
  logits, ranker = (np.repeat(x, 500, axis=0) for x in tiny(5))
  logits[:, 1] = -np.inf
  policy = TwoStagePolicy(logits, ranker, SLATE) if slate_size else SoftmaxPolicy(logits)
  first = policy.sample([3, 4]).numpy()
  np.testing.assert_array_equal(policy.sample([3, 4]), first)
  assert np.any(policy.sample([3, 5]) != first)
  assert first.shape == (500,)
  assert 1 not in first


def test_temperature_divides_the_logits():
  logits, _ = tiny(1)
  policy = SoftmaxPolicy(logits, temperature=2.5)
  np.testing.assert_allclose(policy.probabilities()[0], softmax(logits[0] / 2.5), rtol=1e-5)
  np.testing.assert_allclose(
    policy.log_prob([4])[0], np.log(softmax(logits[0] / 2.5)[4]), rtol=1e-5
  )
  ids, scores = policy.top_k(2)
  np.testing.assert_array_equal(ids[0], np.argsort(-logits[0])[:2])
  np.testing.assert_allclose(scores[0], np.sort(logits[0] / 2.5)[:-3:-1], rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_policy_of_factors_is_that_of_their_product(scale):
  rng = np.random.default_rng(0)
  users = tf.constant(scale * rng.normal(size=(5, 3)), tf.float32)
  items = tf.constant(rng.normal(size=(7, 3)), tf.float32)
  actions = tf.constant([0, 6, 3, 3, 1])
  upstream = tf.constant(rng.normal(size=5), tf.float32)
  found = []
  for factored in (True, False):
    with tf.GradientTape() as tape:
      tape.watch((users, items))
      product = tf.matmul(users, items, transpose_b=True)
      policy = FactoredPolicy(users, items) if factored else SoftmaxPolicy(product)
      log_prob = policy.log_prob(actions)
    gradients = tape.gradient(log_prob, (users, items), upstream)
    found.append((log_prob, policy.entropy(), *gradients))
  for own, others in zip(*found, strict=True):
    np.testing.assert_allclose(own, others, rtol=1e-4, atol=2e-6 * scale)


def test_entropy_is_that_of_the_probabilities():
  logits, ranker = tiny(0)
  for policy in (SoftmaxPolicy(logits), TwoStagePolicy(logits, ranker, SLATE)):
    p = policy.probabilities().numpy()[0].astype(np.float64)
    np.testing.assert_allclose(policy.entropy(), [-np.sum(p * np.log(p))], rtol=1e-5)


def test_top_k_orders_the_generators_slate_by_the_ranker():
  logits = np.array([[4.0, 3.0, 2.0, 1.0]], np.float32)
  ranker = np.array([[0.0, 2.0, 1.0, 9.0]], np.float32)
  ids, scores = TwoStagePolicy(logits, ranker, 3).top_k(2)
  np.testing.assert_array_equal(ids, [[1, 2]])
  np.testing.assert_array_equal(scores, [[2.0, 1.0]])


def test_top_k_puts_excluded_candidates_last():
  logits = np.array([[4.0, -np.inf, 2.0, -np.inf]], np.float32)
  ranker = np.array([[0.0, 9.0, 1.0, 8.0]], np.float32)
  ids, scores = TwoStagePolicy(logits, ranker, 3).top_k(3)
  np.testing.assert_array_equal(ids[0, :2], [2, 0])
  np.testing.assert_array_equal(scores, [[1.0, 0.0, -np.inf]])


def value_and_gradient(logits, ranker, actions):
  """Both paths, as one function of tensors."""
  with tf.GradientTape() as tape:
    tape.watch(logits)
    log_p, log_share = two_stage_log_prob(logits, ranker, actions, SLATE)
    probabilities = two_stage_probabilities(logits, ranker, SLATE)
    value = tf.reduce_sum(log_p + 2 * log_share) + tf.reduce_sum(ranker * probabilities)
  return value, tape.gradient(value, logits)


@pytest.mark.parametrize("compiled", [None, True], ids=["graph", "xla"])
def test_graph_of_unknown_sizes_equals_eager(compiled):
  logits, ranker = (np.repeat(x, 2, axis=0) for x in tiny(2))
  matrix = tf.TensorSpec([None, None])
  graph = tf.function(
    value_and_gradient,
    input_signature=[matrix, matrix, tf.TensorSpec([None], tf.int64)],
    jit_compile=compiled,
  )
  arguments = (tf.constant(logits), tf.constant(ranker), tf.constant([3, 0], tf.int64))
  for got, expected in zip(graph(*arguments), value_and_gradient(*arguments), strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_half_precision_is_cast_up():
  logits, ranker = (tf.cast(x, tf.bfloat16) for x in tiny(0))
  policy = TwoStagePolicy(logits, ranker, SLATE)
  whole = TwoStagePolicy(tf.cast(logits, tf.float32), tf.cast(ranker, tf.float32), SLATE)
  assert policy.log_prob([0]).dtype == tf.float32
  np.testing.assert_array_equal(policy.log_prob([0]), whole.log_prob([0]))


def test_wrong_shapes_are_named():
  with pytest.raises(InputError, match="must have one shape"):
    TwoStagePolicy(np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32), 2)
  with pytest.raises(InputError, match=r"logits must be \[B, N\] floating, got \(3,\) float32"):
    SoftmaxPolicy(np.zeros(3, np.float32))


@pytest.mark.parametrize("how", ["eager", "graph", "xla"])
def test_invalid_logits_make_their_row_nan_and_no_other(how):
  bad = [(0, np.nan), (0, np.inf), (1, np.nan), (1, np.inf), (1, -np.inf)]  # which logits, value
  rows = 2 * len(bad) + 1
  logits, ranker = given = [np.repeat(x, rows, axis=0) for x in tiny(2)]
  for row, (which, value) in enumerate(2 * bad):
    given[which][row, row // len(bad)] = value  # at the action, or at another item

  def outputs(logits, ranker):
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(logits)
      policy = TwoStagePolicy(logits, ranker, SLATE)
      values = (policy.log_prob(tf.zeros([rows], tf.int32)), policy.probabilities())
    return *values, *(tape.gradient(v, logits) for v in values), policy.sample([1, 2])

  if how != "eager":
    outputs = tf.function(outputs, jit_compile=how == "xla")
  *values, drawn = outputs(tf.constant(logits), tf.constant(ranker))
  for value in values:
    by_row = value.numpy().reshape(rows, -1)
    assert np.isnan(by_row[:-1]).all()
    assert np.isfinite(by_row[-1]).all()
  assert set(drawn.numpy()) <= set(range(ITEMS))


def test_wrong_settings_are_named():
  zeros = np.zeros((2, 3), np.float32)
  with pytest.raises(InputError, match="slate_size must be at least 1, got 0"):
    TwoStagePolicy(zeros, zeros, 0)
  with pytest.raises(InputError, match="temperature must be positive, got 0"):
    SoftmaxPolicy(zeros, temperature=0.0)
  with pytest.raises(InputError, match="k is 3, above the slate_size 2"):
    TwoStagePolicy(zeros, zeros, 2).top_k(3)
  for policy in (SoftmaxPolicy(zeros), TwoStagePolicy(zeros, zeros, 5)):
    with pytest.raises(InputError, match="k is 4, but the catalogue has 3 items: lower k"):
      policy.top_k(4)
