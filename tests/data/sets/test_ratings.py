"""RatingsData: what it refuses, and its fingerprint."""

import dataclasses
import time

import numpy as np
import pandas as pd
import pytest

from tf_twostage.data.schema import Bag, Categorical, Id, Numeric, Schema, unit_range
from tf_twostage.data.sets.ratings import RatingsData
from tf_twostage.errors import InputError

SCHEMA = Schema(
  user=(Id("user", ("u0", "u1")), Numeric("height")),
  item=(
    Id("item", ("i0", "i1", "i2")),
    Categorical("color", ("red", "blue")),
    Bag("tags", ("a", "b"), max_length=2),
  ),
  context=(Numeric("time"),),
)
ITEMS = {
  "item": np.array(["i0", "i1", "i2"]),
  "color": np.array(["red", "blue", "red"]),
  "tags": np.array([["a", ""], ["a", "b"], ["b", ""]]),
}


def make(**changes) -> RatingsData:
  fields = {
    "name": "toy",
    "schema": SCHEMA,
    "users": {"user": np.array(["u0", "u1"]), "height": np.array([1.5, 1.8])},
    "items": ITEMS,
    "titles": np.array(["zero", "one", "two"]),
    "user_index": np.array([0, 1, 1, 0], np.int32),
    "item_index": np.array([0, 2, 1, 1], np.int32),
    "rating": np.array([1, 2, 3, 4], np.float32),
    "context": {"time": np.array([0.0, 1.0, 2.0, 3.0])},
  }
  return RatingsData(**(fields | changes))


def test_counts_come_from_the_schema():
  assert (make().num_users, make().num_items) == (2, 3)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"users": {"user": np.array(["u0", "u1"])}}, "user features: missing column.*height"),
    ({"items": ITEMS | {"color": np.array(["red"])}}, "item features: columns differ in length"),
    ({"items": {k: v[:2] for k, v in ITEMS.items()}}, "item features: 2 rows for 3 values"),
    (
      {"items": ITEMS | {"item": ITEMS["item"][::-1]}},
      "in the vocabulary's order; 2 of 3 rows .*first: row 0",
    ),
    ({"items": ITEMS | {"color": np.arange(3).astype(object)}}, "'color' must hold strings"),
    ({"titles": np.array(["zero", "one"])}, "titles must be 3 strings"),
    ({"titles": np.array([0, 1, 2])}, "titles must be 3 strings"),
    ({"user_index": np.zeros(0, np.int32)}, "no ratings"),
    ({"rating": np.zeros(3, np.float32)}, r"rating must be float32 \(4,\)"),
    ({"time": np.array([0, 1, np.nan, 3])}, "time must be finite"),
    ({"rating": np.ones(4)}, "rating must be float32"),
    ({"rating": np.array([1, np.nan, 3, 4], np.float32)}, "rating must be finite"),
    ({"user_index": np.zeros(3, np.int32)}, r"item_index must be int32 \(3,\)"),
    ({"item_index": np.zeros(4, np.int64)}, "item_index must be int32"),
    ({"user_index": np.array([0, 1, 2, 2], np.int32)}, r"\[0, 2\); 2 of 4 .*row 2, value '2'"),
    ({"item_index": np.array([0, -1, 2, 2], np.int32)}, r"\[0, 3\); 1 of 4 .*row 1, value '-1'"),
    ({"context": {}}, "context: missing column"),
    ({"context": {"time": np.zeros(3)}}, "context has 3 rows for 4 ratings"),
    ({"context": {"time": np.array([0, np.inf, 0, 0])}}, "'time' must be finite; 1 of 4"),
  ],
)
def test_refuses_what_does_not_fit(changes, message):
  with pytest.raises(InputError, match=message):
    make(**changes)


def test_context_may_be_absent():
  schema = dataclasses.replace(SCHEMA, context=())
  assert make(schema=schema, context={}).schema.context == ()


def test_equal_content_has_an_equal_fingerprint():
  reordered = dict(reversed(ITEMS.items()))
  assert make().fingerprint() == make(items=reordered).fingerprint()
  assert len(make().fingerprint()) == 64


@pytest.mark.parametrize(
  "changes",
  [
    {"schema": dataclasses.replace(SCHEMA, context=(Numeric("time", scale=2.0),))},
    {"users": {"user": np.array(["u0", "u1"]), "height": np.array([1.5, 1.9])}},
    {"items": ITEMS | {"tags": np.array([["a", ""], ["b", "a"], ["b", ""]])}},
    {"titles": np.array(["zero", "one", "too"])},
    {"user_index": np.array([0, 1, 0, 1], np.int32)},
    {"item_index": np.array([0, 2, 1, 0], np.int32)},
    {"rating": np.array([1, 2, 3, 5], np.float32)},
    {"context": {"time": np.array([0.0, 1.0, 2.0, 4.0])}},
  ],
  ids=lambda changes: next(iter(changes)),
)
def test_any_change_changes_the_fingerprint(changes):
  assert make(**changes).fingerprint() != make().fingerprint()


def test_equal_bytes_of_another_type_have_another_fingerprint():
  height = make().users["height"]
  users = make().users | {"height": height.view(np.int64)}
  assert make(users=users).fingerprint() != make().fingerprint()


def test_fingerprint_of_a_million_ratings_is_quick():
  million = 1_000_000
  data = make(
    user_index=np.zeros(million, np.int32),
    item_index=np.zeros(million, np.int32),
    rating=np.ones(million, np.float32),
    context={"time": np.zeros(million)},
  )
  start = time.perf_counter()
  data.fingerprint()
  assert time.perf_counter() - start < 1.0


def test_unit_range_reads_the_extremes_as_zero_and_one():
  values = np.array([30.0, 10.0, 20.0])
  feature = unit_range("time", values)
  np.testing.assert_allclose((values - feature.offset) / feature.scale, [1.0, 0.0, 0.5])


def test_unit_range_of_one_value_reads_as_zero():
  feature = unit_range("time", np.array([7.0, 7.0]))
  assert (7.0 - feature.offset) / feature.scale == 0.0


RATINGS = pd.DataFrame(
  {"who": [7, 10, 7], "what": ["b", "a", "a"], "stars": [1, -5, 4], "when": [30, 10, 20]}
)
MOVIES = pd.DataFrame(
  {"what": ["b", "a", "c"], "genres": ["x|y", "", "y"], "length": [90, 80, 70], "label": [*"BAC"]}
)


def from_pandas(ratings=RATINGS, **changes):
  settings = {
    "user": "who",
    "item": "what",
    "rating": "stars",
    "items": MOVIES,
    "item_features": {"genres": "bag", "length": "numeric"},
    "context": ["when"],
    "title": "label",
  }
  return RatingsData.from_pandas(ratings, **(settings | changes))


def test_tables_become_arrays():
  data = from_pandas()
  assert data.users["user_id"].tolist() == ["7", "10"]  # by id, as numbers
  assert data.items["item_id"].tolist() == ["b", "a", "c"]  # as in their table
  assert data.user_index.tolist() == [0, 1, 0]
  assert data.item_index.tolist() == [0, 1, 1]
  assert data.rating.tolist() == [1, -5, 4]
  assert data.titles.tolist() == ["B", "A", "C"]
  assert data.items["genres"].tolist() == [["x", "y"], ["", ""], ["y", ""]]
  assert data.schema.item[1:] == (Bag("genres", ("x", "y"), 2), Numeric("length", 70, 20))
  assert data.schema.context == (Numeric("when", 10, 20),)


def test_ratings_alone_are_enough():
  data = RatingsData.from_pandas(RATINGS, user="who", item="what", rating="stars")
  assert data.titles.tolist() == data.items["item_id"].tolist() == ["a", "b"]
  assert data.item_index.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"rating": "points"}, "ratings: no column 'points'; found .'who', 'what'"),
    ({"ratings": RATINGS.assign(stars=["1", "two", "3"])}, "rating must be finite; 1 of 3 .*row 1"),
    ({"title": "name"}, "items: no column 'name'"),
    ({"items": MOVIES[:1]}, "must name a known item"),
  ],
)
def test_tables_that_do_not_fit_are_refused(changes, message):
  with pytest.raises(InputError, match=message):
    from_pandas(**changes)


def test_ratings_above_a_threshold_are_rewarded_rows_of_a_log_without_impressions():
  log = from_pandas(time="when").log(positive_above=1)
  assert log.rows.reward.tolist() == [0, 0, 1]
  assert log.time.tolist() == [30, 10, 20]
  assert not log.impressions
  assert not log.has_propensities


def test_orders_are_all_positive():
  data = from_pandas(rating=None)
  assert data.rating is None
  assert data.log().rows.reward.tolist() == [1, 1, 1]


def test_orders_and_times_change_the_fingerprint():
  prints = [
    from_pandas(**changes).fingerprint() for changes in ({}, {"rating": None}, {"time": "when"})
  ]
  assert len(set(prints)) == 3
