"""Values on an evaluation log: what is reduced chunk by chunk is what whole arrays give."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from tf_twostage.data.rows import LogRows
from tf_twostage.errors import InputError
from tf_twostage.evaluation import off_policy, values
from tf_twostage.evaluation.evaluation_log import EvaluationLog
from tf_twostage.evaluation.rows import PolicyRows
from tf_twostage.evaluation.values import TargetPolicy

USERS, ITEMS, ROWS = 30, 7, 400


def distributions(rng, rows):
  odds = np.exp(rng.normal(size=(rows, ITEMS)))
  return odds / odds.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def world():
  """A log of a known policy with known rewards, and another policy by user and hour."""
  rng = np.random.default_rng(0)
  users = np.sort(rng.integers(USERS, size=ROWS)).astype(np.int32)
  hours = rng.integers(2, size=ROWS).astype(float)
  logging, target = distributions(rng, USERS), distributions(rng, 2 * USERS)
  expected = (rng.random((USERS, ITEMS)) < 0.4).astype(np.float32)
  actions = np.array([rng.choice(ITEMS, p=logging[u]) for u in users], np.int32)
  log = LogRows(
    users,
    actions,
    logging[users, actions].astype(np.float32),
    expected[users, actions],
    context={"hour": hours},
  )
  evaluation = EvaluationLog(
    log,
    ITEMS,
    "log",
    expected_rewards=lambda rows: expected[users[rows]],
    logging_probabilities=lambda rows: logging[users[rows]],
  )
  by_row = target[2 * users + hours.astype(int)]
  predictions = rng.random((USERS, ITEMS))[users]
  return evaluation, by_row, predictions


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("pairs", [1, 5 * ITEMS, 2**22])
def test_rows_and_truth_are_those_of_whole_arrays(world, monkeypatch, by_row, pairs):
  monkeypatch.setattr(values, "_PAIRS_PER_CHUNK", pairs)
  evaluation, target, predictions = world
  policy = TargetPolicy("π", "kind", lambda rows: target[rows], by_row)
  rows, truth = values.reduce_to_rows(policy, evaluation, lambda rows: predictions[rows])
  log = evaluation.log
  whole = PolicyRows.from_arrays(
    log.action, log.reward, log.propensity, target, predictions, groups=log.user_index
  )
  for field in dataclasses.fields(PolicyRows):
    np.testing.assert_allclose(getattr(rows, field.name), getattr(whole, field.name), rtol=1e-12)
  every = evaluation.expected_rewards(np.arange(ROWS))
  assert truth == pytest.approx((target * every).sum(axis=1).mean())


def test_a_policy_is_asked_once_for_each_user_in_each_context(world):
  evaluation, target, _ = world
  first, index = evaluation.situations
  log = evaluation.log
  pairs = list(zip(log.user_index, log.context["hour"], strict=True))
  assert len(first) == len(set(pairs))
  assert [pairs[row] for row in first[index]] == pairs
  asked = []

  def probabilities(rows):
    asked.extend(rows)
    return target[rows]

  values.reduce_to_rows(TargetPolicy("π", "kind", probabilities), evaluation)
  assert sorted(asked) == sorted(first)


def test_the_logging_policy_as_a_target_has_its_mean_reward(world):
  evaluation, _, predictions = world
  policy = TargetPolicy("β", "kind", evaluation.logging_probabilities)
  valuation = values.evaluate(policy, evaluation, lambda rows: predictions[rows], seed=0)
  on_policy = values.logging_policy(evaluation, seed=0)
  by_name = {estimate.estimator: estimate for estimate in valuation.estimates}
  for name in ("ips", "snips"):
    assert by_name[name].value == pytest.approx(evaluation.log.reward.mean(), rel=1e-6)
    assert by_name[name].effective_sample_size == pytest.approx(ROWS)
  assert on_policy.estimates[0].value == pytest.approx(evaluation.log.reward.mean())
  assert on_policy.truth == valuation.truth


def test_without_known_rewards_there_is_no_truth_and_no_agreement(world):
  evaluation = dataclasses.replace(world[0], expected_rewards=None, logging_probabilities=None)
  frame = values.to_frame(
    [
      values.logging_policy(evaluation, seed=0),
      *(
        values.evaluate(
          TargetPolicy(name, "kind", lambda rows: world[1][rows]),
          evaluation,
          lambda rows: world[2][rows],
          seed=0,
        )
        for name in "ab"
      ),
    ]
  )
  assert frame["truth"].isna().all()
  assert values.agreement(frame).empty
  assert list(frame["estimator"]) == ["on_policy", *2 * list(values.ESTIMATORS)]


def estimates(value, truth, estimator="ips", kind="kind"):
  value = np.asarray(value, float)
  return pd.DataFrame(
    {
      "kind": kind,
      "estimator": estimator,
      "value": value,
      "truth": truth,
      "interval_low": value - 0.1,
      "interval_high": value + 0.1,
      "bootstrap_interval_low": value - 0.01,
      "bootstrap_interval_high": value + 0.01,
    }
  )


def test_agreement_ranks_covers_and_regrets():
  # truths 1 < 2 < 3 < 4; one neighboring pair is swapped: 5 of 6 pairs agree.
  frame = estimates([1.05, 2.0, 4.3, 3.9], [1.0, 2.0, 3.0, 4.0])
  row = values.agreement(frame).loc["kind", "ips"]
  assert row["policies"] == 4
  assert row["kendall"] == pytest.approx((5 - 1) / 6)
  assert row["spearman"] == pytest.approx(1 - 6 * (1 + 1) / (4 * (4**2 - 1)))
  assert row["error"] == pytest.approx((0.05 + 0 + 1.3 - 0.1) / 4)
  assert row["rmse"] == pytest.approx(np.sqrt((0.05**2 + 1.3**2 + 0.1**2) / 4))
  assert (row["in_normal"], row["in_bootstrap"]) == (3, 1)
  assert row["regret"] == pytest.approx(4 - 3)


def test_agreement_passes_over_what_has_no_value():
  frame = estimates([np.nan, 2.0, 3.0], [5.0, 2.0, 3.0])
  row = values.agreement(frame).loc["kind", "ips"]
  assert row["policies"] == 3
  assert row["kendall"] == 1
  assert row["in_bootstrap"] == 2
  assert row["regret"] == pytest.approx(5 - 3)


def test_agreement_is_by_kind_and_needs_three_policies():
  up, down = [1, 2, 3], [3, 2, 1]
  frame = pd.concat(
    [estimates(up, up), estimates(up, down, kind="other"), estimates([1, 2], [1, 2], "dr")]
  )
  table = values.agreement(frame)
  assert table.loc["kind", "ips"]["kendall"] == 1
  assert table.loc["other", "ips"]["kendall"] == -1
  assert len(table) == 2


@pytest.mark.parametrize("equal", ["value", "truth"])
def test_policies_that_are_all_alike_have_no_rank(equal):
  frame = estimates([1, 2, 3], [1, 2, 3]).assign(**{equal: 1.0})
  assert np.isnan(values.agreement(frame).loc["kind", "ips"]["spearman"])


@pytest.mark.parametrize(
  ("log", "words"),
  [
    (LogRows(*[np.zeros(0, t) for t in (np.int32, np.int32, np.float32, np.float32)]), "no rows"),
    (
      LogRows(np.zeros(1, np.int32), np.zeros(1, np.int32), None, np.ones(1, np.float32)),
      "no propensities",
    ),
  ],
)
def test_a_log_that_cannot_evaluate_is_refused(log, words):
  with pytest.raises(InputError, match=words):
    EvaluationLog(log, ITEMS, "log")


def test_truth_lies_in_the_intervals_of_most_logs():
  """Over logs of one world, DR's 95% intervals hold the truth nine times in ten at least."""
  rng = np.random.default_rng(1)
  logging, target = distributions(rng, USERS), distributions(rng, USERS)
  expected = rng.random((USERS, ITEMS))
  users = np.repeat(np.arange(USERS, dtype=np.int32), 20)
  held = 0
  for _ in range(40):
    cumulative = logging[users].cumsum(axis=1)
    actions = (rng.random((len(users), 1)) > cumulative).sum(axis=1).clip(max=ITEMS - 1)
    log = LogRows(
      users,
      actions.astype(np.int32),
      logging[users, actions].astype(np.float32),
      (rng.random(len(users)) < expected[users, actions]).astype(np.float32),
    )
    evaluation = EvaluationLog(
      log, ITEMS, "log", expected_rewards=lambda rows: expected[users[rows]]
    )
    policy = TargetPolicy("π", "kind", lambda rows: target[users[rows]])
    rows, truth = values.reduce_to_rows(
      policy, evaluation, lambda rows: np.full((len(rows), ITEMS), 0.5)
    )
    (estimate,) = off_policy.evaluate(rows, {"dr": off_policy.DR()}, num_resamples=0)
    held += estimate.interval[0] <= truth <= estimate.interval[1]
  assert held >= 36
