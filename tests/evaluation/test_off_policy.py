import math
import re

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings

from tf_twostage.errors import InputError
from tf_twostage.evaluation.estimators import DM, DR, ESTIMATORS, IPS, SNDR, SNIPS, DRos, Slope
from tf_twostage.evaluation.intervals import summarise_ratios
from tf_twostage.evaluation.off_policy import difference, evaluate, on_policy, to_frame
from tf_twostage.evaluation.overlap import pareto_k
from tf_twostage.evaluation.rows import PolicyRows, balanced_propensities


def example(**changes):
  """Three rows of two actions: weights (0.8/0.4, 0.5/0.5, 0.9/0.1) = (2, 1, 9)."""
  arrays = {
    "actions": [0, 1, 1],
    "rewards": [1.0, 0.0, 2.0],
    "propensities": [0.4, 0.5, 0.1],
    "probabilities": [[0.8, 0.2], [0.5, 0.5], [0.1, 0.9]],
    "predicted_rewards": [[0.5, 1.0], [0.0, 0.2], [1.0, 1.5]],
  }
  return PolicyRows.from_arrays(**{**arrays, **changes})


def value(rows, estimator):
  (estimate,) = evaluate(rows, {"it": estimator}, num_resamples=0)
  return estimate.value


def random_rows(seed, n=40, num_actions=4, **changes):
  rng = np.random.default_rng(seed)
  behavior = rng.dirichlet(np.ones(num_actions), n)
  actions = np.array([rng.choice(num_actions, p=p) for p in behavior])
  arrays = {
    "actions": actions,
    "rewards": rng.normal(size=n),
    "propensities": behavior[np.arange(n), actions],
    "probabilities": rng.dirichlet(np.ones(num_actions), n),
    "predicted_rewards": rng.normal(size=(n, num_actions)),
  }
  return PolicyRows.from_arrays(**{**arrays, **changes})


# Values, with the working.


def test_rows_are_reduced_to_what_estimators_read():
  rows = example()
  np.testing.assert_allclose(rows.weights, [2, 1, 9])
  np.testing.assert_array_equal(rows.predicted_rewards, [0.5, 0.2, 1.5])
  direct = [0.8 * 0.5 + 0.2 * 1.0, 0.5 * 0.0 + 0.5 * 0.2, 0.1 * 1.0 + 0.9 * 1.5]
  np.testing.assert_allclose(rows.direct_values, direct)
  np.testing.assert_allclose(rows.action_mass, [0.8 + 0.5 + 0.1, 0.2 + 0.5 + 0.9])
  np.testing.assert_array_equal(rows.action_counts, [1, 2])


@pytest.mark.parametrize(
  ("estimator", "expected"),
  [
    (DM(), (0.6 + 0.1 + 1.45) / 3),
    (IPS(), (2 * 1 + 1 * 0 + 9 * 2) / 3),
    (IPS(cap=3), (2 * 1 + 1 * 0 + 3 * 2) / 3),
    (SNIPS(), (2 * 1 + 1 * 0 + 9 * 2) / (2 + 1 + 9)),
    (DR(), (0.6 + 0.1 + 1.45 + 2 * (1 - 0.5) + 1 * (0 - 0.2) + 9 * (2 - 1.5)) / 3),
    (DR(threshold=2), (0.6 + 0.1 + 1.45 + 2 * (1 - 0.5) + 1 * (0 - 0.2)) / 3),
    (DR(threshold=1), (0.6 + 0.1 + 1.45 + 1 * (0 - 0.2)) / 3),
    (
      SNDR(),
      (0.6 + 0.1 + 1.45) / 3 + (2 * (1 - 0.5) + 1 * (0 - 0.2) + 9 * (2 - 1.5)) / (2 + 1 + 9),
    ),
    # Weights 2 ω / (ω² + 2): 4/6, 2/3 and 18/83.
    (DRos(2), (0.6 + 0.1 + 1.45 + 2 / 3 * 0.5 - 2 / 3 * 0.2 + 18 / 83 * 0.5) / 3),
    (DRos(0), (0.6 + 0.1 + 1.45) / 3),
  ],
  ids=repr,
)
def test_value_is_the_formula(estimator, expected):
  assert value(example(), estimator) == pytest.approx(expected, rel=1e-12)


def test_standard_error_of_a_mean():
  y = np.array([2.0, 0.0, 18.0])  # ω r
  (estimate,) = evaluate(example(), {"ips": IPS()})
  variance = ((y - y.mean()) ** 2).sum() / 2
  assert estimate.standard_error == pytest.approx(math.sqrt(variance / 3), rel=1e-12)


def test_standard_error_of_a_ratio_is_by_the_delta_method():
  v = 20 / 12
  residuals = np.array([2 * (1 - v), 1 * (0 - v), 9 * (2 - v)])  # ω (r - v)
  (estimate,) = evaluate(example(), {"snips": SNIPS()})
  expected = math.sqrt(3 / 2 * (residuals**2).sum()) / 12
  assert estimate.standard_error == pytest.approx(expected, rel=1e-12)


def test_standard_error_of_a_mean_plus_a_ratio_is_by_the_delta_method():
  direct, ratio = np.array([0.6, 0.1, 1.45]), (2 * 0.5 - 0.2 + 9 * 0.5) / 12
  corrections = np.array([2 * (0.5 - ratio), 1 * (-0.2 - ratio), 9 * (0.5 - ratio)])
  influence = (direct - direct.mean()) / 3 + corrections / 12
  (estimate,) = evaluate(example(), {"sndr": SNDR()})
  expected = math.sqrt(3 / 2 * (influence**2).sum())
  assert estimate.standard_error == pytest.approx(expected, rel=1e-12)


def test_diagnostics_of_weights():
  (estimate,) = evaluate(example(), {"ips": IPS()})
  assert estimate.effective_sample_size == pytest.approx(12**2 / (4 + 1 + 81))
  assert estimate.effective_rewards == pytest.approx(20**2 / (2**2 + 18**2))
  assert estimate.max_weight == pytest.approx(9)
  assert estimate.mean_weight == pytest.approx(12 / 3)
  assert (estimate.num_rows, estimate.num_units) == (3, 3)


def test_diagnostics_are_of_the_weights_in_use():
  (estimate,) = evaluate(example(), {"clipped": IPS(cap=3)})
  assert estimate.effective_sample_size == pytest.approx(6**2 / (4 + 1 + 9))
  assert estimate.max_weight == 3
  (estimate,) = evaluate(example(), {"switch": DR(threshold=5)})
  assert estimate.mean_weight == pytest.approx((2 + 1 + 0) / 3)


def test_diagnostics_are_of_what_intervals_draw_as_one():
  """Groups a and b: sums of weights 2 + 1 and 9, of what they earned 2 and 18."""
  (estimate,) = evaluate(example(groups=["a", "a", "b"]), {"ips": IPS()})
  assert estimate.effective_sample_size == pytest.approx(12**2 / (3**2 + 9**2))
  assert estimate.effective_rewards == pytest.approx(20**2 / (2**2 + 18**2))
  assert (estimate.max_weight, estimate.num_units) == (pytest.approx(9), 2)


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.5, 0.8, 1.2])
def test_pareto_k_is_the_shape_of_the_tail(shape):
  found = [
    pareto_k(scipy.stats.genpareto.rvs(shape, size=2000, random_state=seed)) for seed in range(20)
  ]
  assert np.mean(found) == pytest.approx(shape, abs=0.1)  # drawn towards 0.5 by its prior
  assert pareto_k(1e300 * scipy.stats.genpareto.rvs(0.2, size=2000, random_state=0)) == (
    pytest.approx(found[0]) if shape == 0.2 else pytest.approx(0.2, abs=0.3)
  )


@pytest.mark.parametrize("weights", [np.ones(100), np.arange(3.0), np.zeros(50)])
def test_weights_without_a_tail_have_no_pareto_k(weights):
  assert math.isnan(pareto_k(weights))


# SLOPE.


def test_slope_takes_the_narrowest_interval_that_the_wider_ones_allow():
  rng = np.random.default_rng(0)
  weights = rng.pareto(2.5, 2000)
  rows = PolicyRows(np.ones(2000), np.full(2000, 1e-4), 1e-4 * weights)
  caps = (0.01, 1.0, 3.0, 10.0, np.inf)
  found = {
    cap: evaluate(rows, {"it": IPS(cap)}, confidence=0.8, num_resamples=0)[0] for cap in caps
  }
  chosen = None
  for i, cap in enumerate(reversed(caps)):
    half = {c: found[c].interval[1] - found[c].value for c in caps}
    wider = list(reversed(caps))[:i]
    if any(
      abs(found[c].value - found[cap].value) > half[cap] + (math.sqrt(6) - 1) * half[c]
      for c in wider
    ):
      break
    chosen = cap
  assert chosen not in (0.01, np.inf)
  assert value(rows, Slope(tuple(map(IPS, caps)))) == found[chosen].value


def test_slope_needs_a_model_if_a_candidate_does():
  assert Slope((IPS(), DR())).needs_model
  assert not Slope((IPS(), IPS(cap=3))).needs_model
  with pytest.raises(InputError, match="Slope needs candidates"):
    Slope(())


# Several logging policies.


def test_balanced_propensities_are_those_of_the_mixture():
  found = balanced_propensities(
    ["a", "b", "b", "a"], {"a": [0.5, 0.0, 0.2, 0.4], "b": [0.0, 0.6, 0.1, 0.2], "c": [1, 1, 1, 1]}
  )
  np.testing.assert_allclose(found, [0.25, 0.3, 0.15, 0.3])


def test_balanced_ips_is_unbiased_by_enumeration():
  """One row of each of two policies over three actions; the second never shows the third."""
  policies = {"a": np.array([0.2, 0.3, 0.5]), "b": np.array([0.6, 0.4, 0.0])}
  target, chance = np.array([0.1, 0.2, 0.7]), np.array([0.9, 0.5, 0.3])
  expected = 0.0
  for first in range(3):
    for second in range(2):
      actions = np.array([first, second])
      share = policies["a"][first] * policies["b"][second]
      propensities = balanced_propensities(
        ["a", "b"], {name: own[actions] for name, own in policies.items()}
      )
      rows = PolicyRows(chance[actions], propensities, target[actions])
      expected += share * value(rows, IPS())
  assert expected == pytest.approx(target @ chance, rel=1e-12)


@pytest.mark.parametrize(
  ("policies", "propensities", "message"),
  [
    (["a", "b"], {"a": [0.5, 0.5]}, "none of policy b, which logged rows"),
    (["a", "b"], {"a": [0.5, 0.5], "b": [0.5, 0.0]}, "propensities of b must .* 1 of 2 rows"),
    (["a", "a"], {"a": [0.5, 1.5]}, "propensities of a must .* 1 of 2 rows"),
    (["a", "a"], {"a": [0.5]}, "propensities of a has 1 rows, policies 2"),
  ],
)
def test_propensities_of_several_policies_that_do_not_fit_are_refused(
  policies, propensities, message
):
  with pytest.raises(InputError, match=message):
    balanced_propensities(policies, propensities)


# Differences.


def test_a_gain_is_paired():
  """ω r - r of (1, 0, 2) with weights (2, 1, 9): 1, 0 and 16."""
  (estimate,) = evaluate(example(), {"ips": IPS()}, num_resamples=0)
  gains = np.array([1.0, 0.0, 16.0])
  assert estimate.gain == pytest.approx(gains.mean())
  assert estimate.gain_error == pytest.approx(gains.std(ddof=1) / math.sqrt(3))
  reach = scipy.stats.t.ppf(0.975, df=2) * estimate.gain_error
  assert estimate.gain_interval == pytest.approx((gains.mean() - reach, gains.mean() + reach))


@pytest.mark.parametrize("estimator", [SNIPS(), DR(), SNDR(), DM()], ids=repr)
def test_a_difference_of_two_policies_has_the_error_of_the_jackknife(estimator):
  """Leaving out one row at a time estimates the same variance, without the delta method."""
  first, second = (
    random_rows(0, n=400),
    random_rows(0, n=400, probabilities=np.full((400, 4), 0.25)),
  )
  a, b = (evaluate(rows, {"it": estimator}, num_resamples=0)[0] for rows in (first, second))
  found, error, (low, high) = difference(a, b, 0.95)
  terms = [estimator(rows) for rows in (first, second)]

  def without(term, row):
    kept = np.arange(400) != row
    offset = 0.0 if term.offset is None else term.offset[kept].mean()
    return offset + term.numerator[kept].sum() / term.denominator[kept].sum()

  left = np.array([without(terms[0], i) - without(terms[1], i) for i in range(400)])
  assert found == pytest.approx(a.value - b.value)
  assert error == pytest.approx(math.sqrt(399 / 400 * ((left - left.mean()) ** 2).sum()), rel=0.05)
  assert low < found < high


def test_a_policy_does_not_differ_from_itself():
  (estimate,) = evaluate(random_rows(0), {"dr": DR()}, num_resamples=0)
  assert difference(estimate, estimate, 0.95) == (0.0, 0.0, (0.0, 0.0))
  assert on_policy([1.0, 0.0, 2.0]).gain == 0


# Identities.


@pytest.mark.parametrize("seed", range(3))
def test_on_policy_everything_is_the_mean_reward(seed):
  rng = np.random.default_rng(seed)
  n, num_actions = 30, 4
  policy, actions = rng.dirichlet(np.ones(num_actions), n), rng.integers(num_actions, size=n)
  rewards = rng.normal(size=n)
  rows = PolicyRows.from_arrays(
    actions,
    rewards,
    policy[np.arange(n), actions],
    policy,
    np.zeros((n, num_actions)),
  )
  mean = on_policy(rewards, num_resamples=0)
  assert mean.value == pytest.approx(rewards.mean(), rel=1e-12)
  assert mean.standard_error == pytest.approx(rewards.std(ddof=1) / math.sqrt(n), rel=1e-12)
  for estimator in (IPS(), SNIPS(), DR()):
    (estimate,) = evaluate(rows, {"it": estimator}, num_resamples=0)
    assert estimate.value == pytest.approx(mean.value, rel=1e-12)
    assert estimate.standard_error == pytest.approx(mean.standard_error, rel=1e-12)
    assert estimate.effective_sample_size == pytest.approx(n)


seeds = st.integers(0, 2**32 - 1)
common = settings(max_examples=40, deadline=None, derandomize=True)


@common
@given(seeds, st.floats(-100, 100))
def test_snips_moves_with_the_rewards(seed, shift):
  rows = random_rows(seed)
  moved = random_rows(seed, rewards=rows.rewards + shift)
  before, after = (evaluate(r, {"snips": SNIPS()}, num_resamples=200)[0] for r in (rows, moved))
  assert after.value == pytest.approx(before.value + shift, abs=1e-9)
  assert after.standard_error == pytest.approx(before.standard_error, abs=1e-9)
  np.testing.assert_allclose(
    after.bootstrap_interval, np.add(before.bootstrap_interval, shift), atol=1e-9
  )


@common
@given(seeds)
def test_snips_stays_within_the_rewards(seed):
  rows = random_rows(seed)
  assert rows.rewards.min() - 1e-12 <= value(rows, SNIPS()) <= rows.rewards.max() + 1e-12


@common
@given(seeds)
def test_doubly_robust_joins_its_neighbours(seed):
  rows = random_rows(seed)
  assert value(rows, DR(threshold=0)) == value(rows, DM())
  assert value(rows, DR(threshold=math.inf)) == value(rows, DR())
  blank = random_rows(seed, predicted_rewards=np.zeros((40, 4)))
  assert value(blank, DR()) == pytest.approx(value(blank, IPS()), rel=1e-12)
  assert value(rows, IPS(cap=math.inf)) == value(rows, IPS())


@common
@given(seeds)
def test_doubly_robust_is_the_direct_method_where_the_model_is_right(seed):
  rows = random_rows(seed)
  right = PolicyRows(
    rows.predicted_rewards,
    rows.propensities,
    rows.target_probabilities,
    rows.predicted_rewards,
    rows.direct_values,
  )
  assert value(right, DR()) == pytest.approx(value(right, DM()), abs=1e-12)


# Unbiased, by enumeration of every log that one or two draws can give.


def tiny_problem(seed):
  """Every (context, action, reward) of 2 contexts, 3 actions and rewards 0/1: its probability
  under β, its row, and the value of π."""
  rng = np.random.default_rng(seed)
  context, action, reward = (c.ravel() for c in np.meshgrid([0, 1], [0, 1, 2], [0, 1]))
  share, behavior, target = np.array([0.3, 0.7]), *rng.dirichlet(np.ones(3), (2, 2))
  chance, model = rng.uniform(size=(2, 3)), rng.normal(size=(2, 3))
  of_reward = np.where(reward, chance[context, action], 1 - chance[context, action])
  probability = share[context] * behavior[context, action] * of_reward
  rows = PolicyRows.from_arrays(
    action,
    reward,
    behavior[context, action],
    target[context],
    model[context],
  )
  return probability, rows, share @ (target * chance).sum(axis=1)


def summands(terms):
  """Of an estimate that is a mean."""
  return terms.numerator + (0.0 if terms.offset is None else terms.offset)


@pytest.mark.parametrize("estimator", [IPS(), DR()], ids=repr)
@pytest.mark.parametrize("seed", range(4))
def test_expectation_is_the_value_of_the_target_policy(seed, estimator):
  probability, rows, truth = tiny_problem(seed)
  terms = estimator(rows)
  assert probability.sum() == pytest.approx(1)
  assert probability @ summands(terms) == pytest.approx(truth, rel=1e-12)
  np.testing.assert_array_equal(terms.denominator, 1)
  assert probability @ terms.weights == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("estimator", [DM(), IPS(cap=0.5), DR(threshold=0.5)], ids=repr)
def test_others_are_biased(estimator):
  probability, rows, truth = tiny_problem(0)
  assert abs(probability @ summands(estimator(rows)) - truth) > 1e-3


@pytest.mark.parametrize("estimator", [IPS(), DR()], ids=repr)
def test_expected_square_of_the_standard_error_is_the_variance(estimator):
  probability, rows, _ = tiny_problem(1)
  y = summands(estimator(rows))
  expected = mean = square = 0.0
  for i, p in enumerate(probability):
    for j, q in enumerate(probability):
      (pair,) = summarise_ratios(np.array([[y[i], y[j]]]), np.ones((1, 2)), num_resamples=0)
      expected += p * q * pair.standard_error**2
      mean += p * q * pair.value
      square += p * q * pair.value**2
  assert expected == pytest.approx(square - mean**2, rel=1e-9)


# Results, options, tables.


def test_leaves_out_what_needs_a_model_where_there_is_none():
  rows = example(predicted_rewards=None)
  assert [e.estimator for e in evaluate(rows)] == [*("ips", "clipped_ips", "slope_ips", "snips")]
  assert [e.estimator for e in evaluate(example())] == list(ESTIMATORS)


class Mine:
  needs_model = False

  def __call__(self, rows):
    return IPS(cap=3)(rows)


@pytest.mark.parametrize(
  ("estimators", "names"),
  [
    ({"mine": Mine(), "dr": DR()}, ["mine", "dr"]),
    (["snips", Mine(), IPS(cap=3)], ["snips", "Mine", "IPS(cap=3)"]),
  ],
)
def test_estimators_are_chosen_by_name_or_object(estimators, names):
  found = {e.estimator: e.value for e in evaluate(example(), estimators, num_resamples=0)}
  assert list(found) == names
  assert value(example(), IPS(cap=3)) in found.values()


def test_seed_fixes_the_bootstrap_and_nothing_else():
  rows = random_rows(0)
  one, same, other = (evaluate(rows, {"ips": IPS()}, seed=s)[0] for s in (1, 1, 2))
  assert one == same
  assert one.bootstrap_interval != other.bootstrap_interval
  assert one.interval == other.interval


def test_wider_confidence_gives_wider_intervals():
  rows = random_rows(0)
  for name in ("interval", "bootstrap_interval"):
    narrow, wide = (
      getattr(evaluate(rows, {"ips": IPS()}, confidence=c)[0], name) for c in (0.8, 0.99)
    )
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_table_has_a_row_an_estimator():
  rows = example()
  frame = to_frame([on_policy(rows.rewards), *evaluate(rows)])
  assert list(frame.index) == ["on_policy", *ESTIMATORS]
  assert frame.loc["ips", "value"] == pytest.approx(20 / 3)
  assert frame.loc["ips", "interval_low"] < 20 / 3 < frame.loc["ips", "interval_high"]
  assert "row 2 alone holds 75% of all weight" in frame.loc["ips", "warnings"][0]
  assert np.isnan(frame.loc["dm", "effective_sample_size"])


def test_tiny_propensities_stay_finite():
  rows = random_rows(0, propensities=np.full(40, 1e-300))
  for estimate in evaluate(rows, {"ips": IPS(), "snips": SNIPS(), "dr": DR()}):
    assert np.isfinite([estimate.value, estimate.effective_sample_size]).all()


def test_one_row_has_a_value_and_no_interval():
  rows = PolicyRows([1.0], [0.5], [0.25])
  (estimate,) = evaluate(rows, {"ips": IPS()})
  assert estimate.value == 0.5
  assert np.isnan([estimate.standard_error, *estimate.interval, *estimate.bootstrap_interval]).all()


def test_self_normalised_without_any_weight_is_not_a_number():
  rows = PolicyRows([1.0, 0.0], [0.5, 0.5], [0.0, 0.0])
  ips, snips = evaluate(rows, {"ips": IPS(), "snips": SNIPS()})
  assert ips.value == 0
  assert math.isnan(snips.value)
  assert ips.effective_sample_size == snips.effective_sample_size == 0
  assert all("no row has a weight" in e.warnings[0] for e in (ips, snips))


# Warnings.


def many_rows(weights, rewards=1.0, groups=None):
  weights = np.asarray(weights, float)
  propensities = np.full(len(weights), 1e-6)
  rewards = np.broadcast_to(rewards, len(weights))
  return PolicyRows(rewards, propensities, weights * propensities, groups=groups)


DOMINANT = np.repeat(np.arange(40), [1000, *[10] * 39])


def ips_warnings(rows):
  (estimate,) = evaluate(rows, {"ips": IPS()}, num_resamples=0)
  return estimate.warnings


def test_ample_overlap_gives_no_warning():
  assert ips_warnings(many_rows(np.tile([0.5, 1.5], 200))) == ()


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    (many_rows(np.ones(29)), "^29 independent rows are too few for .*log more"),
    (many_rows(np.tile([100.0] + [0.0] * 199, 101)), r"sample size is 101\.0 of 20200 rows"),
    (many_rows([400.0] + [1.0] * 1000), r"row 0 alone holds 29% of all weight \(ω = 400\)"),
    (many_rows(np.ones(200), [1.0] * 9 + [0.0] * 191), r"those of 9\.0 effective rows of 200"),
    (many_rows(np.ones(1000) + scipy.stats.pareto.rvs(1.5, size=1000, random_state=0)), "Pareto k"),
    (many_rows(np.ones(1390), groups=DOMINANT), "group 0 alone holds 72% of all weight"),
    (many_rows(np.ones(1390), groups=DOMINANT), r"sample size is 1\.9 of 40 groups"),
    (many_rows(np.tile([0.4, 0.6], 200)), r"mean weight is 0\.5 ± .*check the propensities"),
    (many_rows(np.ones(200), groups=np.arange(200) % 20), "20 independent groups are too few"),
  ],
)
def test_too_little_overlap_gives_a_warning(rows, message):
  assert any(re.search(message, w) for w in ips_warnings(rows))


def test_deviation_within_noise_or_tolerance_gives_no_warning():
  rng = np.random.default_rng(0)
  assert ips_warnings(many_rows(rng.uniform(0.5, 1.5, size=400))) == ()
  assert ips_warnings(many_rows(np.full(400, 1.009))) == ()


def test_weights_of_a_heavy_tail_give_a_warning_though_the_largest_are_missing():
  """Lognormal weights of deviation 1.5: 1,000 rows without their upper 2% look harmless."""
  weights = np.sort(np.random.default_rng(0).lognormal(sigma=1.5, size=1000))[:980]
  weights /= weights.mean()
  assert pareto_k(weights) < 0.5
  (warning,) = ips_warnings(many_rows(weights))
  assert "heavy tail" in warning
  assert "decide by the lower bound" in warning


def test_a_cap_that_removes_more_than_errors_show_gives_a_warning():
  rows = many_rows(np.tile([0.5, 0.5, 2.0], 200))
  _, capped = evaluate(rows, {"ips": IPS(), "capped": IPS(cap=1.0)}, num_resamples=0)
  assert "the cap removes 33.3% of the weight" in capped.warnings[0]
  assert capped.unreliable


def test_equal_rewards_without_an_error_give_no_warning_of_a_cap():
  weights = np.random.default_rng(0).uniform(0.9, 1.1, 400)
  target = 0.1 * weights / weights.mean()
  rows = PolicyRows(np.ones(400), np.full(400, 0.1), target, groups=np.arange(400) % 100)
  (estimate,) = evaluate(rows, ["snips"], num_resamples=0)
  assert estimate.standard_error == pytest.approx(0, abs=1e-15)
  assert estimate.warnings == ()


def test_mass_on_actions_that_were_never_logged_gives_a_warning():
  rows = PolicyRows.from_arrays(
    np.zeros(200, int),
    np.ones(200),
    np.ones(200),
    np.broadcast_to([0.75, 0.25, 0.0], (200, 3)),
    np.zeros((200, 3)),
  )
  for estimate in evaluate(rows, num_resamples=0):
    assert estimate.unlogged_mass == pytest.approx(0.25)
    assert any("25.0% of its probability on 1 actions" in w for w in estimate.warnings)


def test_a_model_alone_gives_a_warning():
  (estimate,) = evaluate(random_rows(0), {"dm": DM()}, num_resamples=0)
  assert estimate.warnings == (
    "the value is the reward model's prediction, and the intervals leave out the model's own error;"
    " compare with dr",
  )
  assert not estimate.unreliable


# Bad input.

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"rewards": [1.0, NAN, INF]},
      r"rewards must be finite; 2 of 3 rows .* \(first: row 1, value 'nan'\)",
    ),
    ({"rewards": []}, "rewards is empty"),
    ({"rewards": [[1.0], [0.0], [2.0]]}, r"rewards must be a vector \[n\], got shape \(3, 1\)"),
    ({"rewards": ["a", "b", "c"]}, "rewards must hold numbers"),
    ({"rewards": [[1.0], [1.0, 2.0], 3.0]}, "rewards is not an array of numbers"),
    (
      {"propensities": [0.4, 0.0, 0.1]},
      r"propensities must .* 1 of 3 .* \(first: row 1, value '0\.0'\)",
    ),
    ({"propensities": [0.4, 0.5, -0.1]}, r"must lie in \(0, 1\].*row 2, value '-0\.1'\)"),
    (
      {"propensities": [1.5, 0.5, 0.1]},
      r"must lie in \(0, 1\].*row 0, value '1\.5'\); log the prob",
    ),
    ({"propensities": [NAN, 0.5, 0.1]}, r"propensities must .* \(first: row 0, value 'nan'\)"),
    ({"propensities": [0.5, 0.1]}, "propensities has 2 rows, rewards have 3; align"),
    ({"propensities": [1e-310, 0.5, 0.1]}, "so small that the weight overflows"),
    ({"actions": [0, 1, 2]}, r"actions must lie in \[0, 2\); 1 of 3 .*row 2, value '2'\)"),
    ({"actions": [0, -1, 1]}, r"actions must lie in \[0, 2\); 1 of 3 .*row 1, value '-1'\)"),
    ({"actions": [0.0, 1.0, 1.0]}, "actions must be .* int, got float64"),
    ({"actions": [0, 1]}, r"actions must be \[3\] int"),
    (
      {"probabilities": [[1.1, -0.1], [0.5, 0.5], [0.1, 0.9]]},
      r"must be >= 0.*row 0, value '-0\.1",
    ),
    (
      {"probabilities": [[0.8, 0.2], [0.5, NAN], [0.1, 0.9]]},
      r"must be >= 0.*row 1, value 'nan'\)",
    ),
    ({"probabilities": [[0.8, 0.2], [0.5, 0.5], [0.1, 0.8]]}, r"must sum to 1; .*row 2, value '0"),
    ({"probabilities": [[0.8, 0.2], [0.5, INF], [0.1, 0.9]]}, r"must sum to 1; .*row 1, value 'i"),
    ({"probabilities": [0.8, 0.5, 0.9]}, r"probabilities must be \[n, N\] with n = 3"),
    ({"probabilities": [[0.8, 0.2], [0.5, 0.5]]}, r"with n = 3 rows, got shape \(2, 2\)"),
    ({"predicted_rewards": [[0.5], [0.5], [0.5]]}, r"\(3, 1\) and probabilities \(3, 2\)"),
    ({"predicted_rewards": [[0.5, NAN]] * 3}, r"predicted_rewards must be finite; 2 of 3 rows"),
    ({"predicted_rewards": [[NAN, 0.5]] + [[0.5, 0.5]] * 2}, "fix the reward model"),
    ({"groups": [1, 2]}, r"groups must be \[3\], got shape \(2,\)"),
    ({"groups": ["a", None, "b"]}, r"groups must not be missing; 1 of 3 .*row 1, value 'None'\)"),
  ],
)
def test_bad_arrays_are_named_with_the_place_and_the_remedy(changes, message):
  with pytest.raises(InputError, match=message):
    example(**changes)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: PolicyRows([1.0], [0.5], [1.2]), r"target_probabilities must lie in \[0, 1\]; 1 of 1"),
    (lambda: PolicyRows([1.0], [0.5], [-0.2]), r"must lie in \[0, 1\].*row 0, value '-0\.2'\)"),
    (lambda: PolicyRows([1.0], [0.5], [0.5], [0.5]), "are of one model: pass both or neither"),
    (lambda: PolicyRows([1.0], [0.5], [0.5], [0.5], [NAN]), "direct_values must be finite; 1 of 1"),
    (lambda: evaluate(example(), []), "no estimator given: choose from dm, ips"),
    (lambda: evaluate(example(), ["wis"]), "no estimator 'wis': choose from dm, ips"),
    (
      lambda: evaluate(example(predicted_rewards=None), {"dr": DR()}),
      "dr: needs predicted_rewards",
    ),
    (lambda: DR()(example(predicted_rewards=None)), "predicted_rewards: the rows have none"),
    (lambda: evaluate(example(), confidence=95), "confidence must lie between 0 and 1, got 95"),
    (lambda: evaluate(example(), num_resamples=-1), "num_resamples must be at least 0"),
    (lambda: on_policy([]), "rewards is empty"),
    (lambda: on_policy([NAN]), "rewards must be finite; 1 of 1 rows"),
    (lambda: on_policy([1.0, 2.0], groups=["a"]), r"groups must be \[2\]"),
    (lambda: IPS(cap=0), "cap must be above 0"),
    (lambda: IPS(cap=NAN), "cap must be above 0"),
    (lambda: DR(threshold=-1), "threshold must be at least 0"),
    (lambda: DRos(shrinkage=NAN), "shrinkage must be at least 0"),
  ],
)
def test_bad_calls_are_refused(call, message):
  with pytest.raises(InputError, match=message):
    call()


def test_columns_of_any_number_type_are_computed_in_float64():
  rows = PolicyRows(np.array([True, False]), np.float32([0.5, 0.1]), np.float32([1.00005, 0.3]))
  assert {rows.rewards.dtype, rows.weights.dtype} == {np.dtype(np.float64)}


def test_float32_softmaxes_pass():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(20, 3000)).astype(np.float32)
  policy = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  rows = PolicyRows.from_arrays(np.arange(20), np.ones(20), np.ones(20), policy, logits)
  exact = (policy.astype(float) * logits.astype(float)).sum(axis=1)
  np.testing.assert_allclose(rows.direct_values, exact, rtol=1e-12)
