"""One-stage and two-stage evaluation against a loop over users."""

import numpy as np
import pytest
import tensorflow as tf

from tf_twostage import metrics
from tf_twostage.data.rows import LogRows
from tf_twostage.evaluation import full_information

USERS, ITEMS, SLATE = 12, 40, 15


@pytest.fixture
def world():
  rng = np.random.default_rng(0)
  return {
    "generator": rng.normal(size=(USERS, ITEMS)).astype(np.float32),
    "ranker": rng.normal(size=(USERS, ITEMS)).astype(np.float32),
    "relevance": rng.random((USERS, ITEMS)) < 0.3,
    "excluded": rng.random((USERS, ITEMS)) < 0.1,
  }


def table_scorer(table):
  def scores(batch, items=None):
    of_users = tf.gather(tf.constant(table), batch["user_index"])
    return of_users if items is None else tf.gather(of_users, items, batch_dims=1)

  return scores


def evaluate(world, num_validation=5):
  users = full_information.FullInformationEvaluator(
    inputs={"user_index": np.arange(USERS, dtype=np.int32)},
    relevance=world["relevance"],
    excluded=world["excluded"],
    num_validation=num_validation,
  )
  scorers = table_scorer(world["generator"]), table_scorer(world["ranker"])
  return users.evaluation(*scorers, SLATE)()


def expected_precision(world, users, depth, two_stage):
  precisions = []
  for u in users:
    allowed = [i for i in range(ITEMS) if not world["excluded"][u, i]]
    if not any(world["relevance"][u, i] for i in allowed):
      continue
    order = sorted(allowed, key=lambda i: -world["generator"][u, i])
    if two_stage:
      order = sorted(order[:SLATE], key=lambda i: -world["ranker"][u, i])
    precisions.append(np.mean([world["relevance"][u, i] for i in order[:depth]]))
  return np.mean(precisions)


@pytest.mark.parametrize("depth", full_information.CUTOFFS)
@pytest.mark.parametrize("stage", ["one_stage", "two_stage"])
def test_precision_equals_a_loop_over_users(world, stage, depth):
  scores = evaluate(world)
  for split, users in (("validation", range(5)), ("test", range(5, USERS))):
    expected = expected_precision(world, users, depth, stage == "two_stage")
    np.testing.assert_allclose(scores[split][stage][f"precision@{depth}"], expected)


def test_excluded_items_count_neither_as_hits_nor_as_relevant(world):
  world["relevance"] = world["excluded"].copy()
  world["relevance"][:, 0] = True
  world["excluded"][:, 0] = False
  world["generator"][:, 0] = 100.0
  scores = evaluate(world)
  assert scores["test"]["one_stage"]["recall@1"] == 1.0
  np.testing.assert_allclose(scores["test"]["one_stage"]["precision@10"], 0.1)


def test_nothing_may_be_excluded(world):
  world["excluded"] = np.zeros((USERS, ITEMS), bool)
  expected = evaluate(world)
  world["excluded"] = None
  assert evaluate(world) == expected


def test_scores_do_not_depend_on_the_chunks(world, monkeypatch):
  expected = evaluate(world)
  monkeypatch.setattr(full_information, "_PAIRS_PER_CHUNK", 3 * ITEMS + 1)
  assert evaluate(world) == expected


def test_a_perfect_ranker_lifts_the_second_stage(world):
  world["ranker"] = world["relevance"].astype(np.float32)
  scores = evaluate(world)["test"]
  assert scores["two_stage"]["precision@5"] > scores["one_stage"]["precision@5"]


def log_of_items(sums, rows, largest=1.0):
  """A log with so many rewards and rows of each item."""
  rewards = [np.arange(n) < s for s, n in zip(sums, rows, strict=True)]
  n = sum(rows)
  return LogRows(
    np.zeros(n, np.int32),
    np.repeat(np.arange(len(rows), dtype=np.int32), rows),
    np.full(n, 0.5, np.float32),
    largest * np.concatenate(rewards).astype(np.float32),
  )


@pytest.mark.parametrize("largest", [1.0, 30.0])
def test_popularity_shrinks_as_the_items_differ(largest):
  rng = np.random.default_rng(0)
  rows = rng.integers(1, 30, size=3000)
  sums = rng.binomial(rows, rng.beta(1.5, 6.0, size=3000))
  found = full_information.popularity(log_of_items(sums, rows, largest), 3001)
  expected = np.append((sums + 1.5) / (rows + 7.5), 0.2)  # the last item was never shown
  np.testing.assert_allclose(found, expected, atol=0.02)


def test_popularity_of_equal_items_is_their_mean():
  found = full_information.popularity(log_of_items([3] * 200, [30] * 200), 200)
  np.testing.assert_allclose(found, 0.1, atol=1e-4)


@pytest.mark.parametrize("sums", [[0, 0], [4, 9], [4, 0]])
def test_popularity_is_a_probability(sums):
  found = full_information.popularity(log_of_items(sums, [4, 9]), 3)
  assert ((found > 0) & (found < 1)).all()


def test_logged_positives_mark_rewarded_pairs_only():
  log = LogRows(
    user_index=np.array([0, 1], np.int32),
    action=np.array([2, 0], np.int32),
    propensity=np.full(2, 0.5, np.float32),
    reward=np.array([1, 0], np.float32),
  )
  expected = np.zeros((2, 3), bool)
  expected[0, 2] = True
  np.testing.assert_array_equal(full_information.logged_positives(log, 2, 3), expected)


def test_random_lists_differ_between_users_and_repeat_between_calls():
  batch = {"user_index": np.arange(3, dtype=np.int32)}
  scorer = full_information.random_scorer(50, seed=1)
  np.testing.assert_array_equal(scorer(batch), scorer(batch))
  assert not np.array_equal(scorer(batch)[0], scorer(batch)[1])


@pytest.mark.parametrize(
  ("stage", "expected"), [("one_stage", 0.2), ("two_stage", 0.6), ("both", 0.4)]
)
def test_validation_users_select(stage, expected):
  scores = {
    "validation": {"one_stage": {"precision@10": 0.2}, "two_stage": {"precision@10": 0.6}},
    "test": {"one_stage": {"precision@10": 1.0}, "two_stage": {"precision@10": 1.0}},
  }
  assert metrics.FULL_INFORMATION.selection(stage)(scores) == pytest.approx(expected)
