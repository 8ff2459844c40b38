"""The invented data set: its form, its bias, and that it can be learned."""

import numpy as np
import pytest

from tf_twostage.data.sets.synthetic import make_synthetic
from tf_twostage.errors import InputError


@pytest.fixture(scope="module")
def data():
  return make_synthetic()


def test_the_same_seed_gives_the_same_data(data):
  assert make_synthetic(seed=0).fingerprint() == data.fingerprint()
  assert make_synthetic(seed=1).fingerprint() != data.fingerprint()


def test_has_the_numbers_asked_for():
  data = make_synthetic(num_users=7, num_items=11, num_ratings=30)
  assert (data.num_users, data.num_items, len(data.rating)) == (7, 11, 30)


def test_has_every_kind_of_feature(data):
  assert [type(f).__name__ for f in data.schema.user] == ["Id", "Categorical", "Categorical"]
  assert [type(f).__name__ for f in data.schema.item] == ["Id", "Categorical", "Bag"]
  assert [type(f).__name__ for f in data.schema.context] == ["Numeric"]


def test_every_value_is_in_its_vocabulary(data):
  for features, table in ((data.schema.user, data.users), (data.schema.item, data.items)):
    for feature in features:
      assert np.isin(table[feature.name], [*feature.vocabulary, ""]).all(), feature.name


def test_bags_hold_one_to_three_distinct_topics_then_padding(data):
  bags = [tuple(bag) for bag in data.items["topics"].tolist()]
  topics = [tuple(filter(None, bag)) for bag in bags]
  assert {len(names) for names in topics} == {1, 2, 3}
  assert all(len(set(names)) == len(names) for names in topics)
  assert all(names == bag[: len(names)] for names, bag in zip(topics, bags, strict=True))


def test_every_user_rates_and_no_pair_repeats(data):
  assert np.bincount(data.user_index, minlength=data.num_users).min() >= 1
  pairs = data.user_index.astype(np.int64) * data.num_items + data.item_index
  assert len(np.unique(pairs)) == len(pairs)


def test_scarce_ratings_go_to_every_user_once():
  data = make_synthetic(num_users=50, num_items=40, num_ratings=50)
  assert sorted(data.user_index) == list(range(50))


def test_ratings_are_ordered_by_user_time_and_item(data):
  order = np.lexsort((data.item_index, data.context["timestamp"], data.user_index))
  np.testing.assert_array_equal(order, np.arange(len(order)))


def test_ratings_are_stars_and_55_percent_are_above_three(data):
  assert np.unique(data.rating).tolist() == [1, 2, 3, 4, 5]
  assert np.mean(data.rating > 3) == pytest.approx(0.55, abs=0.001)


def test_exposure_follows_a_power_law(data):
  counts = np.sort(np.bincount(data.item_index, minlength=data.num_items))[::-1]
  # The head saturates (no item has more ratings than there are users) and the tail is thin.
  middle = slice(data.num_items // 20, data.num_items // 2)
  rank = np.log(np.arange(1, data.num_items + 1))[middle]
  slope = np.polyfit(rank, np.log(counts[middle]), 1)[0]
  assert -1.2 < slope < -0.6


def test_exposed_items_are_rated_higher(data):
  counts = np.bincount(data.item_index, minlength=data.num_items)
  rated = counts > 0
  mean = np.bincount(data.item_index, data.rating, data.num_items)[rated] / counts[rated]
  popular = counts[rated] > np.median(counts)
  assert mean[popular].mean() > mean[~popular].mean()


def _one_hot(values, vocabulary):
  return (values[..., None] == np.array(vocabulary)).astype(float)


@pytest.mark.parametrize("seed", range(3))
def test_features_predict_held_out_ratings(seed):
  data = make_synthetic(seed=seed)
  _, *user_features = data.schema.user
  _, decade, topics = data.schema.item
  users = np.hstack([_one_hot(data.users[f.name], f.vocabulary) for f in user_features])
  items = np.hstack(
    [
      _one_hot(data.items["decade"], decade.vocabulary),
      _one_hot(data.items["topics"], topics.vocabulary).sum(axis=1),
    ]
  )
  crosses = np.einsum("ri,rj->rij", users[data.user_index], items[data.item_index])
  x, y = crosses.reshape(len(crosses), -1), data.rating - data.rating.mean()
  train = np.random.default_rng(0).random(len(y)) < 0.8
  ridge = x[train].T @ x[train] + np.eye(x.shape[1])
  prediction = x[~train] @ np.linalg.solve(ridge, x[train].T @ y[train])
  assert np.corrcoef(prediction, y[~train])[0, 1] > 0.4


@pytest.mark.parametrize("counts", [(1, 1, 1), (1, 5, 5), (4, 1, 4), (3, 2, 6)])
def test_the_smallest_sets_work(counts):
  num_users, num_items, num_ratings = counts
  assert len(make_synthetic(num_users, num_items, num_ratings).rating) == num_ratings


@pytest.mark.parametrize("counts", [(0, 5, 5), (5, 0, 5), (5, 5, 4), (5, 5, 26)])
def test_impossible_counts_are_refused(counts):
  with pytest.raises(InputError, match=f"{counts[2]} ratings are impossible"):
    make_synthetic(*counts)
