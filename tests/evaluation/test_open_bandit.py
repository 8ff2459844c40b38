"""The estimators on real logs: agreement with Open Bandit Pipeline, and with the other log."""

import json

import numpy as np
import pytest

from tests.evaluation.make_obp_fixture import FIXTURE, balanced_values, mixture, values
from tests.evaluation.open_bandit_arrays import GRID, PAIRS, THRESHOLD, pooled, problem, read_log
from tf_twostage.evaluation import off_policy
from tf_twostage.evaluation.estimators import DR, ESTIMATORS, IPS, DRos, Slope
from tf_twostage.evaluation.rows import PolicyRows, balanced_propensities

pytestmark = pytest.mark.parametrize(("log", "target"), PAIRS)


@pytest.fixture
def open_bandit(test_data, log):
  if not (test_data / "open-bandit" / log / "all" / "all.csv").exists():
    pytest.skip("TF_TWOSTAGE_TEST_DATA holds no open-bandit/")
  return test_data


def evaluated(root, log, target, estimators=None, **options):
  x = problem(root, log, target)
  rows = PolicyRows.from_arrays(
    x.actions, x.rewards, x.propensities, x.probabilities, x.predicted_rewards
  )
  return {e.estimator: e for e in off_policy.evaluate(rows, estimators, **options)}


def assert_agrees(root, log, target, theirs):
  estimators = {
    **ESTIMATORS,
    "clipped_ips": IPS(cap=THRESHOLD),
    "switch_dr": DR(threshold=THRESHOLD),
    "dros": DRos(shrinkage=THRESHOLD),
    "slope_ips": Slope(tuple(IPS(cap) for cap in GRID)),
    "slope_switch_dr": Slope(tuple(DR(threshold) for threshold in GRID)),
    "slope_dros": Slope(tuple(DRos(shrinkage) for shrinkage in GRID)),
  }
  ours = evaluated(root, log, target, estimators, num_resamples=0)
  assert ours.keys() == theirs.keys()
  for name, value in theirs.items():
    np.testing.assert_allclose(ours[name].value, value, rtol=1e-9, err_msg=name)


def test_agrees_with_what_obp_computed(open_bandit, log, target):
  recorded = json.loads(FIXTURE.read_text(encoding="utf-8"))["values"]
  assert_agrees(open_bandit, log, target, recorded[f"{log} to {target}"])


def test_agrees_with_what_obp_computes_now(open_bandit, log, target):
  pytest.importorskip("obp", reason="needs obp==0.5.7, in an environment of its own")
  assert_agrees(open_bandit, log, target, values(problem(open_bandit, log, target)))


def balanced(root, target):
  """Both logs as one: OBP's arrays, the balanced propensities, and our values with them."""
  x, loggers, propensities = pooled(root, target)
  np.testing.assert_allclose(
    balanced_propensities(loggers, propensities), mixture(loggers, propensities)
  )
  x = x._replace(propensities=balanced_propensities(loggers, propensities))
  rows = PolicyRows.from_arrays(
    x.actions, x.rewards, x.propensities, x.probabilities, x.predicted_rewards
  )
  estimators = {"ips": IPS(), "clipped_ips": IPS(cap=THRESHOLD), "dr": DR()}
  found = off_policy.evaluate(rows, estimators, num_resamples=0)
  return x, {estimate.estimator: estimate.value for estimate in found}


def test_balanced_values_agree_with_obp(open_bandit, log, target):
  recorded = json.loads(FIXTURE.read_text(encoding="utf-8"))["values"]
  x, ours = balanced(open_bandit, target)
  assert ours == pytest.approx(recorded[f"both to {target}"], rel=1e-9)
  try:
    import obp  # noqa: F401
  except ImportError:
    return
  assert ours == pytest.approx(balanced_values(x, x.propensities), rel=1e-9)


def test_intervals_hold_the_value_that_the_policy_had_on_its_own_log(open_bandit, log, target):
  truth = off_policy.on_policy(read_log(open_bandit, target)["click"]).value
  estimates = evaluated(open_bandit, log, target)
  for name in ("ips", "clipped_ips", "snips", "dr", "switch_dr"):
    for low, high in (estimates[name].interval, estimates[name].bootstrap_interval):
      assert low < truth < high, name


def test_direct_method_alone_does_not_and_says_so(open_bandit, log, target):
  # A smoothed mean of 40 clicks has errors of its own, which an interval over contexts omits.
  truth = off_policy.on_policy(read_log(open_bandit, target)["click"]).value
  dm = evaluated(open_bandit, log, target)["dm"]
  assert not dm.interval[0] < truth < dm.interval[1]
  assert "leave out the model's own error" in dm.warnings[0]
