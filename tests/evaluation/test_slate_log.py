"""Policies on a log of slates: reduced slot by slot, and valued as whole slates."""

import dataclasses
import itertools

import numpy as np
import pytest

from tf_twostage import evaluate
from tf_twostage.data.plackett_luce import slot_probabilities
from tf_twostage.data.sets import make_slates
from tf_twostage.errors import InputError
from tf_twostage.evaluation import values
from tf_twostage.evaluation.evaluation_log import EvaluationLog
from tf_twostage.evaluation.slate_log import has_repeats
from tf_twostage.evaluation.values import TargetPolicy
from tf_twostage.reports.policy_report import Evaluation

ITEMS, SLOTS = 6, 3
# Slots of the logs are drawn independently, so that all estimators of slates hold.
WORLD = make_slates(12, ITEMS, SLOTS, seed=1, distinct=False)


def make_log(num_slates=1500, **columns):
  log = WORLD.log(num_slates, seed=2, **columns)
  examination = WORLD.examination.astype(np.float32)[log.rows.position]
  return dataclasses.replace(log, examination=examination)


@pytest.fixture(scope="module")
def log():
  return make_log()


def codes(log):
  """Numbers of the world's users and items, by the log's codes."""
  tables = (
    (log.users["user_id"], WORLD.users.user_id),
    (log.items["item_id"], WORLD.items.item_id),
  )
  return [np.searchsorted(known, found) for found, known in tables]


def softmax(log):
  """[U, N] in the codes of the log: between the two logging policies."""
  users, items = codes(log)
  weights = np.exp(sum(WORLD.policies.values()) / 2)[np.ix_(users, items)]
  return weights / weights.sum(axis=1, keepdims=True)


def lists(log):
  """[U, L] in the codes of the log: the most relevant items."""
  users, items = codes(log)
  return np.argsort(items)[WORLD.best()[users]]


def in_slots(log):
  """[n, N], the probabilities of the rows: 0.9 for the item of the list, the rest uniform."""
  rows = log.rows
  return 0.9 * np.eye(ITEMS)[lists(log)[rows.user_index, rows.position]] + 0.1 / ITEMS


def test_a_policy_that_differs_by_slot_is_reduced_as_by_hand(log):
  some = log.select(log.slate < 4)
  table, rates = in_slots(some), np.random.default_rng(0).uniform(size=(len(some), ITEMS))
  rates = rates[:1].repeat(len(some), axis=0)  # a reward model answers alike in all slots
  policy = TargetPolicy("it", "it", lambda rows: table[rows], by_row=True)
  found, _ = policy.reduce(EvaluationLog.of(some), lambda rows: rates[rows])
  factors = []
  for k in range(SLOTS):
    rows = np.flatnonzero(some.rows.position == k)
    factors.append(some.rows.reward[rows].sum() / rates[rows, some.rows.action[rows]].sum())
  for s, rows in enumerate(some.slates().rows):
    items = some.rows.action[rows]
    own = [table[row, item] for row, item in zip(rows, items, strict=True)]
    assert found.target_probabilities[s] == pytest.approx(own)
    assert found.target_cascade[s] == pytest.approx(np.cumprod(own))
    exposed = [sum(WORLD.examination * table[rows, item]) for item in items]
    assert found.target_exposures[s] == pytest.approx(exposed)
    direct = factors * (table[rows] * rates[rows]).sum(axis=1)
    returns = [sum(direct[k:]) for k in range(SLOTS)]
    assert found.direct_returns[s] == pytest.approx(returns)
    predicted = factors * rates[rows, items] - direct + returns
    assert found.predicted_returns[s] == pytest.approx(predicted)


def test_a_policy_without_repeats_is_reduced_as_by_enumeration():
  world = make_slates(3, 4, 3, seed=5)
  log = world.log(8, seed=6)
  examination = np.array([1.0, 0.5, 0.25], np.float32)
  log = dataclasses.replace(log, examination=examination[log.rows.position])
  chances = np.random.default_rng(7).dirichlet(np.ones(4), log.num_users)
  rates = np.random.default_rng(8).uniform(size=4)
  policy = TargetPolicy("it", "it", lambda rows: chances[log.rows.user_index[rows]], distinct=True)
  found, _ = policy.reduce(EvaluationLog.of(log), lambda rows: np.tile(rates, (len(rows), 1)))
  slates = log.slates()
  factors = slates.of(log.rows.reward).sum(axis=0) / rates[log.rows.action[slates.rows]].sum(axis=0)
  for s, rows in enumerate(slates.rows):
    p, items = chances[slates.user_index[s]], log.rows.action[rows]
    assert found.target_cascade[s] == pytest.approx(np.cumprod(conditional(p, items)))
    marginal = np.zeros((4, 3))
    for slate in itertools.permutations(range(4), 3):
      marginal[slate, range(3)] += np.prod(conditional(p, slate))
    assert found.target_probabilities[s] == pytest.approx(marginal[items, range(3)], abs=1e-6)
    assert found.target_exposures[s] == pytest.approx(marginal[items] @ examination, abs=1e-6)
    open_items = [[a for a in range(4) if a not in items[:k]] for k in range(3)]
    direct = [p[others] @ rates[others] / p[others].sum() for others in open_items]
    assert found.direct_returns[s] == pytest.approx(factors * direct)
    assert found.predicted_returns[s] == pytest.approx(factors * rates[items])


def conditional(p, items):
  return [p[a] / (1 - p[list(items[:k])].sum()) for k, a in enumerate(items)]


def test_values_of_policies_without_repeats_are_those_of_their_slates():
  world = make_slates(12, ITEMS, SLOTS, seed=1)
  log = world.log(1500, seed=3)
  users, items = codes(log)
  shares = softmax(log)
  policy = TargetPolicy("it", "it", lambda rows: shares[log.rows.user_index[rows]], distinct=True)
  frame = values.evaluate(EvaluationLog.of(log), [policy], ["iips", "rips", "snrips"])[1:]
  rates = world.click_rate()[np.ix_(users, items)] * slot_probabilities(np.log(shares), SLOTS)
  truth = np.bincount(log.slates().user_index) / 1500 @ rates.sum(axis=(1, 2))
  assert ((frame["value"] - truth) / frame["standard_error"]).abs().max() < 3
  np.testing.assert_allclose(frame["mean_weight"], 1, atol=0.05)


def test_repeats_are_found_within_slates_alone():
  assert has_repeats(make_log(50))
  assert not has_repeats(make_slates(5, 10, 3).log(50))


def test_policies_without_repeats_that_differ_by_slot_are_refused(log):
  table = in_slots(log)
  policy = TargetPolicy("it", "it", lambda rows: table[rows], by_row=True, distinct=True)
  with pytest.raises(InputError, match="without repeats must be the same in all slots"):
    policy.reduce(EvaluationLog.of(log))


@pytest.fixture(scope="module")
def found(log):
  own, evaluation = softmax(log), EvaluationLog.of(log)
  policies = [
    TargetPolicy("softmax", "it", lambda rows: own[log.rows.user_index[rows]]),
    TargetPolicy("list", "it", lambda rows: in_slots(log)[rows], by_row=True),
  ]
  model = np.linspace(0.1, 0.5, ITEMS)
  estimates = values.evaluate(
    evaluation, policies, reward_model=lambda rows: np.tile(model, (len(rows), 1))
  )
  return Evaluation(evaluation, estimates)


def test_values_are_the_expected_rewards_of_a_slate(found, log):
  users, items = codes(log)
  rates = WORLD.click_rate()[np.ix_(users, items)]
  best = np.take_along_axis(rates, lists(log)[:, :, np.newaxis], axis=1)
  listed = best[:, np.arange(SLOTS), np.arange(SLOTS)].sum(axis=1)
  share = np.bincount(log.slates().user_index) / len(log.slates())
  truth = {
    "softmax": (softmax(log)[:, :, np.newaxis] * rates).sum(axis=(1, 2)),
    "list": 0.9 * listed + 0.1 * rates.mean(axis=1).sum(axis=1),
  }
  frame = found.to_frame().set_index(["policy", "estimator"])
  names = ["iips", "sniips", "pbm", "snpbm", "rips", "snrips", "cascade_dr"]
  for policy, of_users in truth.items():
    assert list(frame.loc[policy].index) == names
    # Errors are those of slates of these users; by the user they include who comes.
    errors = (frame.loc[policy, "value"] - share @ of_users) / frame.loc[policy, "standard_error"]
    assert errors.abs().max() < 3
  logged = frame.loc["logging policy"].iloc[0]
  assert logged["value"] == pytest.approx(log.rows.reward.sum() / 1500)
  assert (logged["num_rows"], logged["num_units"]) == (1500, 12)


def test_report_and_plot_say_what_the_value_is(found):
  what = "mean sum of the rewards of a slate"
  assert f"Value: the {what}. 1500 slates with 4500 slots of 12 users" in str(found)
  assert {axis.get_xlabel() for axis in found.plot().axes} == {what}


def test_estimators_by_default_are_those_of_what_was_logged():
  plain = WORLD.log(100, seed=2, cascade_propensity=None)
  uniform = {"uniform": np.full(ITEMS, 1 / ITEMS)}
  frame = evaluate(plain, uniform, progress=False).to_frame()
  assert list(frame["estimator"]) == ["on_policy", "iips", "sniips"]
  asked = evaluate(make_log(100), uniform, ["sips", "snsips", "pi", "snpi"], progress=False)
  assert asked.to_frame()["value"].notna().all()


@pytest.mark.parametrize(
  ("estimators", "columns", "message"),
  [
    (["ips"], {}, "no estimator 'ips': choose from iips.*, of slates; without `slate_id`"),
    (["rips"], {"cascade_propensity": None}, "uniform: cascade_propensities: the slates have none"),
    (
      ["iips"],
      {"slate": None, "cascade_propensity": None},
      "no estimator 'iips'.*estimators of slates need a log of slates",
    ),
  ],
)
def test_estimators_that_do_not_fit_the_log_are_refused(estimators, columns, message):
  uniform = {"uniform": np.full(ITEMS, 1 / ITEMS)}
  with pytest.raises(InputError, match=message):
    evaluate(WORLD.log(50, **columns), uniform, estimators, progress=False)


def test_estimated_propensities_of_slates_are_doubted(log):
  estimated = make_log(100).with_propensities(np.full(300, 1 / ITEMS, np.float32))
  found = evaluate(estimated, {"uniform": np.full(ITEMS, 1 / ITEMS)}, ["iips"], progress=False)
  assert "The estimated propensities are those of an item in a slot of any position" in str(found)
