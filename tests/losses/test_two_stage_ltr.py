"""Two-stage counterfactual learning to rank, against all slates and rankings of few items."""

import itertools

import numpy as np
import pytest

from tests import oracle
from tests.losses.helpers import RAW, every_action, value_and_gradient
from tests.policy_oracle import enumerate_slates
from tf_twostage import losses
from tf_twostage.distinct import inclusion_log_prob
from tf_twostage.errors import InputError
from tf_twostage.losses.ranking import (
  expected_rank_weight,
  rank_weights,
  sample_rivals,
)
from tf_twostage.policies import two_stage_probabilities

import tensorflow as tf  # isort: skip

ITEMS, SLATE = 6, 3
RNG = np.random.default_rng(5)
LOGITS, RANKER = RNG.normal(size=ITEMS), 2 * RNG.normal(size=ITEMS)
EVERY = np.tile(LOGITS, (ITEMS, 1)), np.arange(ITEMS)


def inclusion(logits, slate_size):
  rows = np.tile(logits, (len(logits), 1))
  return np.exp(inclusion_log_prob(tf.constant(rows), np.arange(len(logits)), slate_size))


@pytest.mark.parametrize("slate_size", [1, 2, 5, 6, 9])
@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
def test_inclusion_probabilities_sum_to_the_slate_size(slate_size, spread):
  found = inclusion(spread * LOGITS, slate_size)
  np.testing.assert_allclose(found.sum(), min(slate_size, ITEMS), rtol=1e-5)
  np.testing.assert_allclose(found, oracle.inclusion(spread * LOGITS, slate_size), rtol=1e-5)


def test_inclusion_is_near_that_of_exactly_k_candidates():
  exact = np.zeros(ITEMS)
  for sequence, probability in oracle.plackett_luce(LOGITS, SLATE).items():
    exact[list(sequence)] += probability
  np.testing.assert_allclose(inclusion(LOGITS, SLATE), exact, atol=0.03)


def test_an_excluded_item_is_no_candidate():
  logits = np.array([0.0, -np.inf, 1.0, 2.0])
  np.testing.assert_array_equal(inclusion(logits, 2)[1], 0.0)
  np.testing.assert_allclose(inclusion(logits, 3), [1.0, 0.0, 1.0, 1.0], atol=1e-6)


@pytest.mark.parametrize("logits", [[1e4, 0, 0, 0], [-1e4, 0, 0, 0], [1e4, 1e4, 0, -1e4]])
def test_inclusion_holds_for_extreme_logits(logits):
  rows = tf.constant(np.tile(np.float32(logits), (4, 1)))
  with tf.GradientTape() as tape:
    tape.watch(rows)
    found = inclusion_log_prob(rows, tf.range(4), 2)
  np.testing.assert_allclose(np.exp(found).sum(), 2, rtol=1e-3)
  assert np.isfinite(tape.gradient(found, rows)).all()


def test_inclusion_has_the_gradient_of_the_solved_equation():
  f = lambda logits: np.log(oracle.inclusion(logits, SLATE))  # noqa: E731
  rows = tf.constant(EVERY[0])
  with tf.GradientTape() as tape:
    tape.watch(rows)
    found = inclusion_log_prob(rows, EVERY[1], SLATE)
  np.testing.assert_allclose(tape.gradient(found, rows), oracle.jacobian(f, LOGITS), atol=1e-5)


def test_rivals_follow_plackett_luce_without_the_logged_item():
  draws = 20_000
  rows = tf.constant(np.tile(LOGITS.astype(np.float32), (draws, 1)))
  rivals = sample_rivals(rows, tf.fill([draws], 2), SLATE, [1, 2]).numpy()
  others = np.delete(np.arange(ITEMS), 2)
  expected = oracle.plackett_luce(LOGITS[others], SLATE - 1)
  for sequence, probability in expected.items():
    share = np.mean((rivals == others[list(sequence)]).all(axis=1))
    assert abs(share - probability) < 4.5 * np.sqrt(probability / draws)


CURVES = [
  rank_weights("dcg", ITEMS),
  rank_weights("top_1", ITEMS),
  rank_weights("examination", ITEMS, [1.0, 0.3, 0.9]),
]


@pytest.mark.parametrize("theta", CURVES)
@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_rank_weights_are_expected_over_all_rankings(theta, spread):
  g = spread * RANKER
  relative = tf.constant((g[1:] - g[0])[None])
  with tf.GradientTape() as tape:
    tape.watch(relative)
    found = expected_rank_weight(relative, theta)
  np.testing.assert_allclose(found, [oracle.rank_weight(g, theta)], rtol=2e-3)
  slope = oracle.finite_differences(
    lambda rivals: oracle.rank_weight(np.append(g[0], rivals), theta), g[1:]
  )
  np.testing.assert_allclose(tape.gradient(found, relative)[0], slope, atol=1e-3)


def test_a_rival_that_is_none_changes_nothing():
  theta = rank_weights("dcg", 4)
  relative = tf.constant([[0.5, -1.0], [0.5, -np.inf]])
  found = expected_rank_weight(relative, theta).numpy()
  assert found[1] > found[0]
  alone = expected_rank_weight(tf.constant([[0.5]]), theta)
  np.testing.assert_allclose(found[1], alone[0], rtol=1e-6)


def exposure(theta, logits=LOGITS, ranker=RANKER, size=SLATE):
  """The expected rank weight of every item, over all slates and rankings of both stages."""
  total = np.zeros(len(logits))
  for slate, probability in oracle.plackett_luce(logits, size).items():
    for place, item in enumerate(slate):
      rivals = [other for at, other in enumerate(slate) if at != place]
      total[item] += probability * oracle.rank_weight(ranker[[item, *rivals]], theta)
  return total


def test_top_1_is_the_probability_that_two_stages_show_an_item():
  shown = exposure(rank_weights("top_1", SLATE))
  np.testing.assert_allclose(shown.sum(), 1.0)
  p, with_repeats = oracle.softmax(LOGITS), np.zeros(ITEMS)
  for slate in itertools.product(range(ITEMS), repeat=SLATE):
    for place, item in enumerate(slate):
      rivals = [other for at, other in enumerate(slate) if at != place]
      first = oracle.rank_weight(RANKER[[item, *rivals]], rank_weights("top_1", SLATE))
      with_repeats[item] += np.prod(p[list(slate)]) * first
  # With replacement, the weight of the first rank is the policy of 2-IPS, exactly.
  np.testing.assert_allclose(
    with_repeats, enumerate_slates(LOGITS, RANKER, SLATE).probabilities, rtol=1e-9
  )
  policy = two_stage_probabilities(LOGITS[None], RANKER[None], SLATE)[0]
  np.testing.assert_allclose(with_repeats, policy, rtol=1e-3)


def test_with_slates_of_one_it_is_the_weighted_likelihood_of_inclusion():
  x = every_action(LOGITS, RANKER, np.full(ITEMS, 0.2), np.ones(ITEMS))
  loss = losses.TwoStageLTR(RAW, rank_weights="top_1", slate_size=1, dtype="float64")
  pi = oracle.inclusion(LOGITS, 1)
  np.testing.assert_allclose(loss(**x), -np.log(pi) / 0.2, rtol=1e-3)


@pytest.mark.parametrize("kind", ["dcg", "top_1"])
def test_weights_are_the_rank_weights_of_both_stages_over_the_exposure(kind):
  x = every_action(LOGITS, RANKER, np.full(ITEMS, 0.2), np.ones(ITEMS))
  loss = losses.TwoStageLTR(RAW, rank_weights=kind, slate_size=SLATE, seed=1, dtype="float64")
  many = {name: np.repeat(values, 2000, axis=0) for name, values in x.items()}
  ratio = loss.terms(**many).ratio.numpy().reshape(ITEMS, 2000).mean(axis=1)
  # Inclusion is that of K expected candidates, which errs as the test above says.
  np.testing.assert_allclose(ratio * 0.2, exposure(rank_weights(kind, SLATE)), atol=0.03)


def test_the_ranker_learns_the_gradient_of_the_rank_weight():
  """Averaged over rivals, and with inclusion fixed, it is that of Σ_i ω(a_i) r_i / ρ_i."""
  draws, theta = 6000, rank_weights("dcg", SLATE)
  rewards = RNG.uniform(size=ITEMS)
  x = every_action(LOGITS, RANKER, np.full(ITEMS, 0.2), rewards)
  many = {name: np.repeat(values, draws, axis=0) for name, values in x.items()}
  loss = losses.TwoStageLTR(RAW, slate_size=SLATE, seed=1, dtype="float64")
  gradient = value_and_gradient(loss, many, "ranker_logits")[1].sum(axis=0) / draws

  chance = np.zeros(ITEMS)
  slates = oracle.plackett_luce(LOGITS, SLATE)
  for slate, probability in slates.items():
    chance[list(slate)] += probability

  def value(g):
    given = exposure(theta, ranker=g) / chance  # the rank weight of a candidate
    return -np.sum(oracle.inclusion(LOGITS, SLATE) * given * rewards / 0.2)

  np.testing.assert_allclose(gradient, oracle.finite_differences(value, RANKER), atol=0.03)


def test_an_item_without_other_candidates_ranks_first():
  logits = np.full(ITEMS, -np.inf)
  logits[2] = 0.0
  loss = losses.TwoStageLTR(RAW, slate_size=SLATE, seed=1, dtype="float64")
  ratio = loss.terms(logits[None], [2], [0.5], [1.0], RANKER[None]).ratio
  np.testing.assert_allclose(ratio, [1 / 0.5], rtol=1e-3)


def test_unknown_rank_weights_list_the_known():
  with pytest.raises(InputError, match="must be one of dcg, examination, top_1, got 'ndcg'"):
    losses.get("two_stage_ltr", rank_weights="ndcg")


def test_examination_is_needed_for_its_weights():
  x = every_action(LOGITS, RANKER, np.full(ITEMS, 0.2), np.ones(ITEMS))
  with pytest.raises(InputError, match="needs the examination of the slots"):
    losses.get("two_stage_ltr", rank_weights="examination")(**x)
