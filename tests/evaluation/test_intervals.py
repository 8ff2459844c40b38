"""Do intervals cover as often as they say? Simulated logs of a known truth, all at once."""

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.stats

from tf_twostage.evaluation import intervals
from tf_twostage.evaluation.estimators import DR, IPS, SNIPS
from tf_twostage.evaluation.intervals import lower_bound, summarise_ratios
from tf_twostage.evaluation.off_policy import evaluate, on_policy
from tf_twostage.evaluation.rows import PolicyRows

NUM_LOGS, NUM_ROWS = 1000, 1000


def simulated_logs(seed=0):
  """NUM_LOGS logs of NUM_ROWS rows in one, and the target policy's value: 4 contexts, 5 actions,
  clicks, and a reward model that knows half of what there is to know."""
  rng = np.random.default_rng(seed)
  behavior, target = np.exp(rng.normal(size=(2, 4, 5)) * [[[0.7]], [[1.0]]])
  behavior /= behavior.sum(axis=1, keepdims=True)
  target /= target.sum(axis=1, keepdims=True)
  chance = rng.uniform(0.05, 0.6, size=(4, 5))
  model = (chance + chance.mean()) / 2
  n = NUM_LOGS * NUM_ROWS
  context = rng.integers(4, size=n)
  action = (behavior.cumsum(axis=1)[context] > rng.random((n, 1))).argmax(axis=1)
  rows = PolicyRows(
    rng.random(n) < chance[context, action],
    behavior[context, action],
    target[context, action],
    model[context, action],
    (target * model).sum(axis=1)[context],
  )
  return rows, (target * chance).sum(axis=1).mean()


@pytest.fixture(scope="module")
def simulation():
  """Of each estimator: summaries of the logs; and the truth."""
  rows, truth = simulated_logs()
  summaries = {}
  for name, estimator in {"ips": IPS(), "snips": SNIPS(), "dr": DR()}.items():
    terms = estimator(rows)
    # The logs are ratios over the same row numbers, and share their resamples.
    summaries[name] = summarise_ratios(
      terms.numerator.reshape(NUM_LOGS, NUM_ROWS),
      terms.denominator.reshape(NUM_LOGS, NUM_ROWS),
      None if terms.offset is None else terms.offset.reshape(NUM_LOGS, NUM_ROWS),
      num_resamples=500,
    )
  return summaries, truth


@pytest.mark.parametrize("kind", ["interval", "bootstrap_interval"])
@pytest.mark.parametrize("name", ["ips", "snips", "dr"])
def test_intervals_cover_the_truth(simulation, name, kind):
  summaries, truth = simulation
  low, high = np.array([getattr(s, kind) for s in summaries[name]]).T
  assert 0.93 <= ((low <= truth) & (truth <= high)).mean() <= 0.97


@pytest.mark.parametrize("name", ["ips", "snips", "dr"])
def test_standard_errors_are_the_spread_of_the_estimates(simulation, name):
  summaries, truth = simulation
  values = np.array([s.value for s in summaries[name]])
  errors = np.array([s.standard_error for s in summaries[name]])
  # A standard deviation of 1,000 estimates is itself good to 1 / sqrt(2,000) = 2.2%.
  assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(ddof=1), rel=0.07)
  assert values.mean() == pytest.approx(truth, abs=4 * values.std() / np.sqrt(NUM_LOGS))


def test_a_reward_model_takes_variance_away(simulation):
  summaries, _ = simulation
  ips, dr = (np.var([s.value for s in summaries[name]]) for name in ("ips", "dr"))
  assert dr < 0.8 * ips


# Groups.


def test_error_by_groups_is_that_of_the_sums_of_groups():
  # Mean 8/5 of (1, 2 | 0 | 2, 3): residual sums of the groups -0.2, -1.6 and 1.8.
  estimate = on_policy([1.0, 2.0, 0.0, 2.0, 3.0], groups=["a", "a", "b", "c", "c"])
  expected = np.sqrt(3 / 2 * (0.2**2 + 1.6**2 + 1.8**2)) / 5
  assert estimate.standard_error == pytest.approx(expected, rel=1e-12)
  assert (estimate.num_rows, estimate.num_units) == (5, 3)
  reach = scipy.stats.t.ppf(0.975, df=2) * expected
  assert estimate.interval == pytest.approx((1.6 - reach, 1.6 + reach))


def test_groups_of_one_row_change_nothing():
  rng = np.random.default_rng(0)
  rewards = rng.normal(size=50)
  grouped, alone = on_policy(rewards, groups=np.arange(50)), on_policy(rewards)
  np.testing.assert_equal(dataclasses.asdict(grouped), dataclasses.asdict(alone))


def test_repeated_rows_add_nothing_to_a_group():
  rewards = np.random.default_rng(0).exponential(size=60)
  once, thrice = on_policy(rewards), on_policy(np.repeat(rewards, 3), groups=np.arange(180) // 3)
  assert thrice.value == pytest.approx(once.value, rel=1e-12)
  assert thrice.standard_error == pytest.approx(once.standard_error, rel=1e-12)
  np.testing.assert_allclose(thrice.bootstrap_interval, once.bootstrap_interval, rtol=1e-9)


def test_only_intervals_by_group_cover_where_users_have_tastes():
  rng = np.random.default_rng(0)
  num_users, num_visits = 100, 10
  tastes = rng.normal(size=(500, num_users, 1))
  rewards = (tastes + rng.normal(size=(500, num_users, num_visits))).reshape(500, -1)
  ones, users = np.ones_like(rewards), np.repeat(np.arange(num_users), num_visits)

  def covered(kind, groups):
    summaries = summarise_ratios(rewards, ones, groups=groups, num_resamples=2000)
    low, high = np.array([getattr(s, kind) for s in summaries]).T
    return ((low <= 0) & (high >= 0)).mean()

  for kind in ("interval", "bootstrap_interval"):
    assert covered(kind, users) > 0.92
    assert covered(kind, None) < 0.7


# The bootstrap.


def skewed_rows(n):
  rng = np.random.default_rng(0)
  propensities = rng.uniform(0.01, 0.3, n)
  target = np.minimum(propensities * rng.pareto(3, n), 1)
  return PolicyRows(rng.random(n) < 0.3, propensities, target)


def test_bootstrap_interval_is_that_of_scipy():
  rows = skewed_rows(200)
  y = rows.weights * rows.rewards
  expected = scipy.stats.bootstrap((y,), np.mean, n_resamples=20_000, rng=0).confidence_interval
  (estimate,) = evaluate(rows, {"ips": IPS()}, num_resamples=20_000)
  # Within what 20,000 resamples leave open.
  np.testing.assert_allclose(
    estimate.bootstrap_interval, expected, atol=0.1 * estimate.standard_error
  )


def test_bootstrap_bounds_are_the_corrected_quantiles():
  # 20 of 100 replicates below the value and 20 equal to it: 0.3 counts as below. Symmetric
  # residuals do not accelerate, so the levels are Φ(2 z0 ± z).
  replicates = np.concatenate([np.linspace(-3, -1, 20), np.zeros(20), np.linspace(1, 3, 60)])
  norm = scipy.stats.norm
  levels = norm.cdf(2 * norm.ppf(0.3) + norm.ppf([0.05, 0.95]))
  bounds = intervals._bca(0.0, replicates, np.array([-1.0, 1.0]), 0.9)
  np.testing.assert_allclose(bounds, np.quantile(replicates, levels), rtol=1e-12)


def test_bootstrap_leans_to_where_the_tail_is():
  (estimate,) = evaluate(skewed_rows(200), {"ips": IPS()})
  low, high = estimate.bootstrap_interval
  assert high - estimate.value > 1.1 * (estimate.value - low)


def test_blocks_of_rows_stand_for_rows(monkeypatch):
  rows, estimators = skewed_rows(20_000), {"ips": IPS(), "snips": SNIPS()}
  in_blocks = evaluate(rows, estimators, num_resamples=4000)
  monkeypatch.setattr(intervals, "MAX_UNITS", len(rows))
  by_row = evaluate(rows, estimators, num_resamples=4000)
  for a, b in zip(in_blocks, by_row, strict=True):
    np.testing.assert_allclose(
      a.bootstrap_interval, b.bootstrap_interval, atol=0.15 * a.standard_error
    )


def test_blocks_are_dealt_at_random(monkeypatch):
  # Contiguous blocks of a sorted log would differ as the rewards do, not as sums of random rows.
  monkeypatch.setattr(intervals, "MAX_UNITS", 200)
  estimate = on_policy(np.arange(2000.0), num_resamples=2000)
  low, high = estimate.bootstrap_interval
  assert high - low == pytest.approx(2 * 1.96 * estimate.standard_error, rel=0.25)


def test_resamples_come_in_chunks_of_any_size(monkeypatch):
  rows = skewed_rows(100)
  whole = evaluate(rows)
  monkeypatch.setattr(intervals, "_DRAWS_PER_CHUNK", 1700)
  for a, b in zip(whole, evaluate(rows), strict=True):
    np.testing.assert_allclose(a.bootstrap_interval, b.bootstrap_interval, rtol=1e-12)


def test_resamples_without_any_weight_are_left_out():
  weights = np.zeros(20)
  weights[0] = 1.0  # a third of the resamples miss it
  rewards = np.full(20, 3.0)
  (estimate,) = evaluate(PolicyRows(rewards, np.ones(20), weights), {"snips": SNIPS()})
  assert estimate.bootstrap_interval == pytest.approx((3, 3))


def test_equal_rows_leave_no_width():
  estimate = on_policy(np.full(50, 0.25))
  assert estimate.standard_error == 0
  assert estimate.interval == estimate.bootstrap_interval == (0.25, 0.25)


# The lower bound.


def capital(values, mean):
  """Of ten units at most: shares of 0.99, 10^-1/2 and 1/10 with prior weights 1 : 4 : 1."""
  by_share = [np.prod(1 - share + share * values / mean) for share in (0.99, 10**-0.5, 0.1)]
  return np.average(by_share, weights=[1, 4, 1])


def test_the_lower_bound_is_where_the_capital_reaches_its_goal():
  values = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 0.0, 1.0, 2.0])
  bound = lower_bound(values, 0.9)
  assert 0 < bound < values.mean()
  assert capital(values, bound) == pytest.approx(1 / (1 - 0.9), rel=1e-4)


def test_expected_capital_at_the_mean_is_at_most_one():
  """By enumeration of three units of different means: (0 or 3), (1 or 2) and (0 or 8)."""
  units = [[(0.0, 0.5), (3.0, 0.5)], [(1.0, 0.3), (2.0, 0.7)], [(0.0, 0.9), (8.0, 0.1)]]
  mean = np.mean([sum(value * p for value, p in unit) for unit in units])
  expected = sum(
    np.prod([p for _, p in drawn]) * capital(np.array([value for value, _ in drawn]), mean)
    for drawn in itertools.product(*units)
  )
  assert expected <= 1


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_lower_bound_holds_where_intervals_do_not(confidence):
  """Mean 1 of 30 values that are 0 but for one in a hundred: most logs do not have it."""
  values = 100.0 * (np.random.default_rng(0).random((2000, 30)) < 0.01)
  bounds = np.array([lower_bound(row, confidence) for row in values])
  assert (bounds <= 1).mean() >= confidence


def test_the_lower_bound_comes_near_with_more_rows():
  rng = np.random.default_rng(0)
  gaps = [1 - lower_bound(rng.exponential(size=10_000)) for _ in range(20)]
  # In standard errors; that of a normal distribution of known variance would be 1.645.
  assert 1.645 < np.mean(gaps) * np.sqrt(10_000) < 3.2


def test_the_lower_bound_of_blocks_is_that_of_values(monkeypatch):
  values = np.random.default_rng(0).lognormal(size=50_000)
  in_blocks = lower_bound(values)
  monkeypatch.setattr(intervals, "MAX_UNITS", len(values))
  error = values.std() / np.sqrt(len(values))
  assert in_blocks == pytest.approx(lower_bound(values), abs=0.5 * error)


def test_the_lower_bound_scales_and_begins_at_zero():
  values = np.random.default_rng(0).exponential(size=50)
  assert lower_bound(1e9 * values) == pytest.approx(1e9 * lower_bound(values), rel=1e-5)
  assert lower_bound(np.zeros(50)) == 0
  assert np.isnan(lower_bound(np.array([1.0, np.inf])))
  assert lower_bound(np.array([2.0])) < 2


def test_bounds_of_an_estimate_are_those_of_the_sums_of_groups():
  """Weights 2, 1 and 9, rewards 1, 0 and 2 in groups a, a and b: they earn 2 and 18, and gain
  (2 - 1) + 0 and 18 - 2, which is at least -2 a row."""
  rows = PolicyRows([1.0, 0.0, 2.0], [0.4, 0.5, 0.1], [0.8, 0.5, 0.9], groups=["a", "a", "b"])
  (estimate,) = evaluate(rows, {"ips": IPS()}, num_resamples=0)
  scale = 2 / 3  # groups in a row
  assert estimate.lower_bound == pytest.approx(scale * lower_bound(np.array([2.0, 18.0])))
  gains = np.array([1 + 2 * 2, 16 + 2])
  assert estimate.gain_lower_bound == pytest.approx(scale * lower_bound(gains) - 2)
  snips, negative = (
    evaluate(PolicyRows(r, rows.propensities, rows.target_probabilities), [e], num_resamples=0)[0]
    for r, e in ((rows.rewards, "snips"), ([1.0, -1.0, 2.0], "ips"))
  )
  assert np.isnan([snips.lower_bound, negative.lower_bound, negative.gain_lower_bound]).all()
