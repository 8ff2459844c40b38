"""Off-policy values of held-out rows, against arrays of the whole catalogue."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tf_twostage import metrics
from tf_twostage.data.rows import LogRows
from tf_twostage.evaluation import evaluation_log, off_policy
from tf_twostage.evaluation.estimators import IPS
from tf_twostage.evaluation.evaluation_log import EvaluationLog
from tf_twostage.evaluation.held_out import HeldOutEvaluator
from tf_twostage.evaluation.rows import PolicyRows
from tf_twostage.models.two_stage import POLICIES
from tf_twostage.policies import SoftmaxPolicy

USERS, ITEMS, ROWS, SLATE = 7, 6, 200, 3
STAGES = ("one_stage", "two_stage")


class World:
  """Scores that depend on the user and on the hour; a log of 200 rows a split."""

  def __init__(self, seed=0):
    rng = np.random.default_rng(seed)
    self.logits, self.ranker, self.rewards = (
      tf.constant(rng.normal(size=(USERS, ITEMS)), tf.float32) for _ in range(3)
    )
    self.logs = {split: self._log(rng, split) for split in ("validation", "test")}

  def _log(self, rng, split):
    log = LogRows(
      user_index=rng.integers(USERS, size=ROWS),
      action=rng.integers(ITEMS, size=ROWS),
      propensity=rng.uniform(0.1, 0.9, size=ROWS),
      reward=rng.integers(3, size=ROWS).astype(float),
      context={"hour": rng.integers(2, size=ROWS).astype(float)},
    )
    return EvaluationLog(log, ITEMS, split)

  def scorer(self, table):
    def score(batch):
      hour = tf.cast(batch["context"]["hour"], tf.float32)[:, tf.newaxis]
      return tf.gather(table, batch["user_index"]) * (1 + hour)

    return score

  def evaluator(self, grouped=True):
    codes = {"user_id": tf.range(1, USERS + 1)}
    logs = {split: dataclasses.replace(log, grouped=grouped) for split, log in self.logs.items()}
    return HeldOutEvaluator(logs, codes, self.scorer(self.rewards))

  def scores(self, grouped=True, stage="two_stage"):
    evaluation = self.evaluator(grouped).evaluation(
      self.scorer(self.logits), self.scorer(self.ranker), SLATE, stage
    )
    return evaluation()

  def rows(self, split, stage, grouped=True):
    """The same by arrays [n, N]."""
    log = self.logs[split].rows
    hour = (1 + log.context["hour"])[:, np.newaxis]
    logits, ranker, rewards = (
      (tf.gather(table, log.user_index) * hour)
      for table in (self.logits, self.ranker, self.rewards)
    )
    policy = (
      SoftmaxPolicy(logits) if stage == "one_stage" else POLICIES[stage](logits, ranker, SLATE)
    )
    probabilities = policy.probabilities().numpy().astype(float)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return PolicyRows.from_arrays(
      log.action,
      log.reward,
      log.propensity,
      probabilities,
      rewards.numpy(),
      log.user_index if grouped else None,
    )


@pytest.fixture(scope="module")
def world():
  return World()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("grouped", [True, False])
def test_values_and_errors_are_those_of_the_whole_catalogue(world, stage, grouped):
  scores = world.scores(grouped)
  for split in ("validation", "test"):
    rows = world.rows(split, stage, grouped)
    for estimate in off_policy.evaluate(rows, num_resamples=0):
      if estimate.estimator in ("snips", "ips", "dr"):
        found = scores[split][stage]
        assert found[estimate.estimator] == pytest.approx(estimate.value, rel=2e-3)
        error = found[f"{estimate.estimator}_error"]
        assert error == pytest.approx(estimate.standard_error, rel=2e-3)
    (ips,) = off_policy.evaluate(rows, {"ips": IPS()}, num_resamples=0)
    size = scores[split][stage]["effective_sample_size"]
    assert size == pytest.approx(ips.effective_sample_size, rel=2e-3)


def test_both_stages_may_be_the_policy_on_distinct_candidates(world):
  found = world.scores(stage="distinct")["test"]["two_stage"]
  with_repeats = world.scores()["test"]["two_stage"]
  expected = {
    e.estimator: e.value
    for e in off_policy.evaluate(world.rows("test", "distinct"), num_resamples=0)
  }
  assert found["snips"] == pytest.approx(expected["snips"], rel=2e-3)
  assert abs(with_repeats["snips"] - expected["snips"]) > 5e-3 * expected["snips"]


@pytest.mark.parametrize("size", [1, 3, 13])
def test_chunks_do_not_matter(world, monkeypatch, size):
  whole = world.scores()
  monkeypatch.setattr(evaluation_log, "_CONTEXTS_PER_CHUNK", size)
  for split, stages in world.scores().items():
    for stage, scores in stages.items():
      assert scores == pytest.approx(whole[split][stage], rel=1e-5)


def test_a_model_is_evaluated_in_its_state_at_the_call(world):
  weight = tf.Variable(0.0)
  score = world.scorer(world.logits)
  evaluate = world.evaluator().evaluation(
    lambda batch: weight * score(batch), world.scorer(world.ranker), SLATE
  )
  before = evaluate()["test"]["one_stage"]["snips"]
  weight.assign(1.0)
  assert evaluate()["test"]["one_stage"]["snips"] != pytest.approx(before, rel=1e-3)
  expected = world.scores()["test"]["one_stage"]["snips"]
  assert evaluate()["test"]["one_stage"]["snips"] == pytest.approx(expected)


def test_items_that_a_policy_never_shows_weigh_nothing(world):
  never = tf.constant([0, 0, 0, -np.inf, -np.inf, -np.inf], tf.float32)
  evaluate = world.evaluator().evaluation(
    lambda batch: tf.repeat(never[None], tf.shape(batch["user_index"])[0], axis=0),
    world.scorer(world.ranker),
    SLATE,
  )
  log = world.logs["test"].rows
  weights = np.where(log.action < 3, 1 / 3, 0) / log.propensity
  scores = evaluate()["test"]
  assert scores["one_stage"]["ips"] == pytest.approx(np.mean(weights * log.reward), rel=1e-5)
  assert all(np.isfinite(list(metrics.values())).all() for metrics in scores.values())


def test_the_logging_policy_has_its_mean_reward(world):
  (scores,) = world.evaluator(grouped=False).known().values()
  reward = world.logs["test"].rows.reward
  for stage in STAGES:
    shown = scores["test"][stage]
    assert shown["snips"] == shown["ips"] == shown["dr"] == pytest.approx(reward.mean())
    assert shown["snips_error"] == pytest.approx(reward.std(ddof=1) / np.sqrt(ROWS))
    assert (shown["effective_sample_size"], shown["gain_lower_bound"]) == (ROWS, 0.0)
  assert world.scores()["test"]["one_stage"].keys() == scores["test"]["one_stage"].keys()


# What selects an epoch

REWARDS, PROPENSITIES = np.array([1.0, 0.0, 2.0, 0.0]), np.array([0.5, 0.25, 0.5, 0.01])


def gain(probabilities):
  rows = PolicyRows(REWARDS, PROPENSITIES, np.asarray(probabilities))
  (estimate,) = off_policy.evaluate(rows, {"capped": IPS(cap=10.0)}, num_resamples=0)
  return estimate


def test_the_logging_policy_gains_exactly_nothing():
  estimate = gain(PROPENSITIES)
  assert (estimate.gain, estimate.gain_error) == (0.0, 0.0)
  assert estimate.gain_lower_bound < 0


def test_a_policy_that_no_rewarded_row_supports_loses_all():
  estimate = gain([0.0, 1.0, 0.0, 1.0])
  assert estimate.gain == pytest.approx(-REWARDS.mean())
  assert estimate.gain_error > 0


def test_a_gain_is_the_mean_difference_with_weights_cut():
  # Weights 2 and 1 of the rewarded rows; 100 of the last would be cut to 10, were it rewarded.
  assert gain([1.0, 0.0, 0.5, 1.0]).gain == pytest.approx(((2 - 1) * 1 + (1 - 1) * 2) / 4)


def test_the_bound_of_the_gain_of_capped_weights_selects(world):
  scores = world.scores()["validation"]["two_stage"]
  (capped,) = off_policy.evaluate(
    world.rows("validation", "two_stage"), ["clipped_ips"], num_resamples=0
  )
  for name in ("gain", "gain_error", "gain_lower_bound"):
    assert scores[name] == pytest.approx(getattr(capped, name), rel=2e-3)
  select = metrics.HELD_OUT.selection("two_stage")
  assert select(world.scores()) == scores["gain_lower_bound"] < scores["gain"]


def test_few_effective_rows_and_no_certain_gain_give_warnings(world):
  def scores(size, bound):
    metrics = {"effective_sample_size": size, "gain_lower_bound": bound, "mean_weight": 1.0}
    return {split: dict.fromkeys(STAGES, metrics) for split in ("validation", "test")}

  evaluator = world.evaluator(grouped=False)
  assert evaluator.warnings(scores(150.0, 0.1)) == []
  few = evaluator.warnings(scores(12.3, 0.1))
  assert [text.split(":")[0] for text in few] == list(STAGES)
  assert "12 of 200 test rows" in few[0]
  (unsure,) = evaluator.warnings(scores(150.0, 0.0))
  assert "do not show, at 95%" in unsure
  by_user = world.evaluator().warnings(scores(5.0, 0.1))
  assert "5 of 7 users of test rows" in by_user[0]


@pytest.mark.parametrize("factor", [0.05, 1.0, 20.0])
def test_a_mean_weight_far_from_one_gives_a_warning(world, factor):
  metrics = {"effective_sample_size": 150.0, "gain_lower_bound": 0.1, "mean_weight": factor}
  scores = {split: dict.fromkeys(STAGES, metrics) for split in ("validation", "test")}
  warnings = world.evaluator(grouped=False).warnings(scores)
  assert len(warnings) == (0 if factor == 1 else len(STAGES))
  assert all(f"the mean weight is {factor:.4g} ± " in text for text in warnings)


def test_a_mean_weight_within_its_error_gives_none(world):
  def warnings(mean, size=50.0):
    metrics = {"effective_sample_size": size, "gain_lower_bound": 0.1, "mean_weight": mean}
    scores = {split: dict.fromkeys(STAGES, metrics) for split in ("validation", "test")}
    texts = world.evaluator(grouped=False).warnings(scores)
    return [text for text in texts if "mean weight" in text]

  # Of 200 rows 50 are effective: the error is mean * sqrt(1 / 50 - 1 / 200) = 0.1225 * mean.
  assert warnings(0.8) == warnings(1.5) == []
  assert len(warnings(0.7)) == len(warnings(1.6)) == len(STAGES)
  assert warnings(1.05, size=200.0) == []  # without any error, but little
  assert len(warnings(1.15, size=200.0)) == len(STAGES)
