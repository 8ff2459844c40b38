"""`evaluate` on a user's log: which policies it takes, what it returns, what it refuses."""

import numpy as np
import pandas as pd
import pytest

from tests.test_recommender import ITEMS, make_log
from tf_twostage import Mixture, estimate_propensities, evaluate
from tf_twostage.config import FitConfig, RewardConfig
from tf_twostage.errors import InputError
from tf_twostage.evaluation.values import TargetPolicy

UNIFORM = np.full(ITEMS, 1 / ITEMS)
ESTIMATORS = ["snips", "ips"]


@pytest.fixture(scope="module")
def log():
  return make_log()


def values(found):
  return found.to_frame().set_index(["policy", "estimator"])["value"]


def test_arrays_functions_and_files_are_one_policy(log, tmp_path):
  """The uniform policy logged, so its value is the mean reward."""
  table = np.tile(UNIFORM, (len(log), 1))
  ids = log.schema.item_id.vocabulary
  pd.DataFrame({"item_id": ids, "probability": UNIFORM}).to_csv(tmp_path / "p.csv", index=False)
  policies = {
    "list": UNIFORM,
    "table": table,
    "function": lambda rows: table[rows],
    "file": tmp_path / "p.csv",
    "target": TargetPolicy("another name", "mine", lambda rows: table[rows]),
  }
  found = evaluate(log, policies, ESTIMATORS, progress=False)
  mean = log.rows.reward.mean()
  assert values(found)["logging policy", "on_policy"] == pytest.approx(mean)
  for name in policies:
    for estimator in ESTIMATORS:
      assert values(found)[name, estimator] == pytest.approx(mean, rel=1e-5)
  assert found.explained is None  # no estimator needed a reward model


def test_a_mixture_earns_the_mean_of_its_policies_by_their_shares(log):
  # IPS is linear in the policy.
  popular = np.arange(ITEMS) / np.arange(ITEMS).sum()
  mixed = Mixture([(0.3, UNIFORM), (0.7, popular)])
  found = values(evaluate(log, {"a": UNIFORM, "b": popular, "c": mixed}, ["ips"], progress=False))
  expected = 0.3 * found["a", "ips"] + 0.7 * found["b", "ips"]
  assert found["c", "ips"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shares", [[0.3, 0.6], [-0.5, 1.5], []])
def test_shares_of_a_mixture_add_up_to_1(log, shares):
  with pytest.raises(InputError, match="shares must be above 0 and add up to 1"):
    evaluate(log, {"c": Mixture([(share, UNIFORM) for share in shares])}, ["ips"], progress=False)


def test_warnings_name_users_by_their_ids(log):
  named = log.schema.user_id.vocabulary[log.rows.user_index[0]]
  table = np.tile(UNIFORM, (len(log), 1)) * 1e-3
  table[0] = 0
  table[0, log.rows.action[0]] = 1
  rest = (log.rows.action[1:] + 1) % ITEMS
  table[np.arange(1, len(log)), rest] += 1 - 1e-3
  found = evaluate(log, {"of one row": table}, ["ips"], progress=False)
  assert f"user {named!r} alone holds" in str(found)
  assert " groups" not in str(found)


def test_a_reward_model_is_fitted_where_an_estimator_needs_it(log, tmp_path):
  fit = {"reward_training": FitConfig(epochs=1, batch_size=64), "workdir": tmp_path}
  found = evaluate(log, {"uniform": UNIFORM}, ["dr"], progress=False, **fit)
  assert found.explained < 1
  assert values(found)["uniform", "dr"] == pytest.approx(log.rows.reward.mean(), abs=0.05)
  assert "The reward model explains" in str(found)
  assert "<table" in found._repr_html_()
  assert f"Estimates and plot: {tmp_path / 'report'}" in found.save(tmp_path / "report")
  assert (tmp_path / "report" / "estimates.csv").is_file()


def test_the_bayesian_reward_model_is_asked_for(log):
  usual, reward = (RewardConfig("bayesian", pessimism, 20) for pessimism in (0.0, 0.5))
  found = evaluate(log, {"uniform": UNIFORM}, ["dm", "dr"], reward=reward, progress=False)
  usual = evaluate(log, {"uniform": UNIFORM}, ["dm"], reward=usual, progress=False)
  assert values(found)["uniform", "dr"] == pytest.approx(log.rows.reward.mean(), abs=0.05)
  assert values(found)["uniform", "dm"] < values(usual)["uniform", "dm"]


@pytest.mark.parametrize("setting", [{"reward_pessimism": 1.0}, {"reward_sweeps": 100}])
def test_settings_of_the_bayesian_model_are_refused_without_it(setting):
  with pytest.raises(InputError, match="changes nothing without reward_predictor=bayesian"):
    RewardConfig(**setting)


def test_estimated_propensities_make_a_log_that_can_be_evaluated_on():
  lacking = make_log(propensity=None)
  with pytest.raises(InputError, match=r"no propensities.*log = estimate_propensities"):
    evaluate(lacking, {"uniform": UNIFORM}, ESTIMATORS)
  estimated = estimate_propensities(lacking, training=FitConfig(epochs=1, batch_size=64))
  assert estimated.estimated_propensities
  found = evaluate(estimated, {"uniform": UNIFORM}, ESTIMATORS, progress=False)
  assert "propensities are ESTIMATED" in str(found)


@pytest.mark.parametrize(
  ("policy", "message"),
  [
    (np.ones(3) / 3, r"'p': probabilities have shape \(3,\); pass \[12\], one for each item, or"),
    (2 * UNIFORM, "'p'.*sum to 1"),
    (lambda rows: np.ones((len(rows), 3)) / 3, r"p: the function returned \(\d+, 3\) for"),
    ("nowhere.csv", "nowhere.csv"),
  ],
)
def test_policies_that_do_not_fit_are_refused(log, policy, message):
  with pytest.raises(InputError, match=message):
    evaluate(log, {"p": policy}, ESTIMATORS, progress=False)


def test_an_unknown_estimator_is_refused(log):
  with pytest.raises(InputError, match="no estimator 'best'"):
    evaluate(log, {"p": UNIFORM}, ["best"])
