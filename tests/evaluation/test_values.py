"""Values on an evaluation log: what is reduced chunk by chunk is what whole arrays give."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from tests import user_logs
from tf_twostage.data.log import BanditLog
from tf_twostage.data.rows import LogRows
from tf_twostage.errors import InputError
from tf_twostage.evaluation import evaluation_log, off_policy, values
from tf_twostage.evaluation.estimators import DR, IPS
from tf_twostage.evaluation.evaluation_log import EvaluationLog, reduce_to_rows
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
  monkeypatch.setattr(evaluation_log, "PAIRS_PER_CHUNK", pairs)
  evaluation, target, predictions = world
  ((rows, truth),) = reduce_to_rows(
    evaluation, lambda rows: ([target[rows]], predictions[rows]), by_row=by_row
  )
  log = evaluation.rows
  whole = PolicyRows.from_arrays(
    log.action, log.reward, log.propensity, target, predictions, groups=log.user_index
  )
  for field in {f.name for f in dataclasses.fields(PolicyRows)} - {"group_names"}:
    np.testing.assert_allclose(getattr(rows, field), getattr(whole, field), rtol=1e-12)
  every = evaluation.expected_rewards(np.arange(ROWS))
  assert truth == pytest.approx((target * every).sum(axis=1).mean())


def test_several_policies_are_reduced_as_each_alone(world):
  evaluation, target, _ = world
  other = target[::-1]
  pair = reduce_to_rows(evaluation, lambda rows: ([target[rows], other[rows]], None), by_row=True)
  for (rows, truth), probabilities in zip(pair, (target, other), strict=True):
    ((alone, value),) = reduce_to_rows(
      evaluation, lambda rows, p=probabilities: ([p[rows]], None), by_row=True
    )
    np.testing.assert_array_equal(rows.target_probabilities, alone.target_probabilities)
    assert truth == value


def test_a_policy_is_asked_once_for_each_distinct_context(world):
  evaluation, target, _ = world
  first, index = evaluation.distinct_contexts
  log = evaluation.rows
  pairs = list(zip(log.user_index, log.context["hour"], strict=True))
  assert len(first) == len(set(pairs))
  assert [pairs[row] for row in first[index]] == pairs
  asked = []

  def answer(rows):
    asked.extend(rows)
    return [target[rows]], None

  ((rows, _),) = reduce_to_rows(evaluation, answer, action_mass=False)
  assert sorted(asked) == sorted(first)
  assert rows.action_mass is None


@pytest.mark.parametrize("factor", [0.5, 2.0, np.nan])
def test_what_is_no_distribution_is_refused_with_the_name_of_the_policy(world, factor):
  policy = TargetPolicy("mine", "kind", lambda rows: factor * world[1][rows])
  with pytest.raises(InputError, match=r"^mine: "):
    values.evaluate(world[0], [policy], ["ips"])


def test_the_logging_policy_as_a_target_has_its_mean_reward(world):
  evaluation, _, predictions = world
  policy = TargetPolicy("β", "kind", evaluation.logging_probabilities)
  frame = values.evaluate(evaluation, [policy], reward_model=lambda rows: predictions[rows])
  frame = frame.set_index("estimator")
  for name in ("ips", "snips"):
    assert frame.loc[name, "value"] == pytest.approx(evaluation.rows.reward.mean(), rel=1e-6)
    of_users = np.bincount(evaluation.rows.user_index)
    size = ROWS**2 / (of_users @ of_users)
    assert frame.loc[name, "effective_sample_size"] == pytest.approx(size)
  assert frame.loc["on_policy", "value"] == pytest.approx(evaluation.rows.reward.mean())
  assert frame["truth"].nunique() == 1


def test_without_known_rewards_there_is_no_truth_and_no_agreement(world):
  evaluation = dataclasses.replace(world[0], expected_rewards=None, logging_probabilities=None)
  policies = [TargetPolicy(name, "kind", lambda rows: world[1][rows]) for name in "ab"]
  frame = values.evaluate(evaluation, policies, reward_model=lambda rows: world[2][rows])
  assert frame["truth"].isna().all()
  assert values.agreement(frame).empty
  assert list(frame["estimator"]) == ["on_policy", *2 * values.REPORTED]


def test_differences_are_paired_and_of_all_pairs(world):
  evaluation, target, _ = world
  policies = [
    TargetPolicy(name, "kind", lambda rows, t=table: t[rows], by_row=True)
    for name, table in {"a": target, "b": target[::-1], "a again": target}.items()
  ]
  frame = values.evaluate(evaluation, policies, ["ips", "snips"])
  found = values.differences(frame).set_index(["policy", "versus", "estimator"])
  assert len(found) == 3 * 2
  by = frame.set_index(["policy", "estimator"])["value"]
  for name in ("ips", "snips"):
    expected = by["a", name] - by["b", name]
    assert found.loc[("a", "b", name), "difference"] == pytest.approx(expected)
    same = found.loc[("a", "a again", name)]
    assert (same["difference"], same["standard_error"]) == (0, 0)
  # By user: sums of ω_a r - ω_b r, as the error of their mean.
  log = evaluation.rows
  rows = np.arange(ROWS)
  gaps = (target - target[::-1])[rows, log.action] * log.reward / log.propensity
  by_user = np.bincount(log.user_index, gaps - gaps.mean(), minlength=USERS)
  error = np.sqrt(USERS / (USERS - 1) * (by_user**2).sum()) / ROWS
  assert found.loc[("a", "b", "ips"), "standard_error"] == pytest.approx(error, rel=1e-5)


def test_thin_support_counts_against_a_policy():
  frame = pd.DataFrame(
    {
      "policy": ["high but thin", "lower and wide", "unlogged", "unsupported", "of another kind"],
      "kind": ["kind"] * 4 + ["other"],
      "estimator": "dr",
      "value": [0.50, 0.45, 0.6, 0.9, 0.9],
      "truth": np.nan,
      "mean_weight": [1.0, 1.0, 1.0, 0.0, 1.0],
      "effective_sample_size": [25.0, 400.0, 400.0, 0.0, 400.0],
      "unlogged_mass": [0.0, 0.0, 0.3, 1.0, 0.0],
    }
  )
  ranked = values.ranked_by_support(frame, ["kind"], largest_reward=2.0)
  assert ranked["policy"].iloc[0] == "lower and wide"
  assert ranked["policy"].iloc[-1] == "unsupported"
  by = ranked.set_index("policy")
  assert by.loc["high but thin", "burden"] == pytest.approx(2 / 5)
  assert by.loc["unlogged", "burden"] == pytest.approx(2 * (1 / 20 + 0.3))
  assert by.loc["lower and wide", "score"] == pytest.approx(0.45 - 2 / 20)
  bold = values.ranked_by_support(frame, ["kind"], largest_reward=2.0, penalty=0.1)
  assert bold["policy"][0] == "unlogged"
  with pytest.raises(InputError, match="no policy of kind 'nothing'"):
    values.ranked_by_support(frame, ["nothing"], largest_reward=1.0)


def test_estimators_are_names_or_objects(world):
  policy = TargetPolicy("π", "kind", lambda rows: world[1][rows])
  frame = values.evaluate(world[0], [policy], ["snips", IPS(cap=2.0)])
  assert list(frame["estimator"]) == ["on_policy", "snips", "IPS(cap=2.0)"]


def test_a_users_log_is_an_evaluation_log(tmp_path):
  user_logs.make(50).write(tmp_path)
  data = BanditLog.from_files(
    tmp_path / "log.csv",
    items=tmp_path / "items.csv",
    users=tmp_path / "users.csv",
    schema=tmp_path / "schema.yaml",
  )
  evaluation = EvaluationLog.of(data)
  assert (len(evaluation), evaluation.num_items) == (50, user_logs.ITEMS)
  assert evaluation.grouped == data.schema.user_id.embedded


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


def test_estimates_without_a_value_count_as_policies_alone():
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
    ((rows, truth),) = reduce_to_rows(
      evaluation, lambda rows: ([target[users[rows]]], np.full((len(rows), ITEMS), 0.5))
    )
    (estimate,) = off_policy.evaluate(rows, {"dr": DR()}, num_resamples=0)
    held += estimate.interval[0] <= truth <= estimate.interval[1]
  assert held >= 36
