"""Feature specs: what fits together, JSON, tables."""

import json

import numpy as np
import pytest

from tf_twostage.data.schema import (
  Bag,
  Categorical,
  Id,
  Numeric,
  Schema,
  SparseVector,
  check_table,
  columns,
)
from tf_twostage.errors import InputError

WORDS = SparseVector("words", size=5, max_length=3)
SCHEMA = Schema(
  user=(Id("document", ("d0", "d1"), embedded=False), WORDS),
  item=(Id("label", ("a", "b", "c")), Bag("topics", ("x", "y"), max_length=2)),
  context=(Numeric("time", offset=1.0, scale=2.0),),
)


def table(**changes):
  return {
    "document": np.array(["d0", "d1"]),
    "words_ids": np.array([[4, 0, 2], [1, -1, -1]]),
    "words_weights": np.array([[0.5, 2.0, 1.0], [3.0, 0.0, 0.0]], np.float32),
    **changes,
  }


def test_every_kind_survives_json():
  assert Schema.from_json(SCHEMA.to_json()) == SCHEMA


def test_ids_without_the_flag_are_embedded():
  sides = json.loads(SCHEMA.to_json())
  del sides["user"][0]["embedded"]
  assert Schema.from_json(json.dumps(sides)).user_id.embedded


def test_a_tower_does_not_read_an_id_that_only_names():
  assert SCHEMA.user_inputs == (WORDS,)
  assert SCHEMA.item_inputs == SCHEMA.item
  assert SCHEMA.num_users == 2


def test_a_side_without_anything_to_read_is_refused():
  with pytest.raises(InputError, match="the user side has nothing that a tower reads"):
    Schema(user=(Id("document", ("d0",), embedded=False),), item=SCHEMA.item)


@pytest.mark.parametrize("name", ["words", "words_ids", "words_weights"])
def test_names_of_columns_must_differ(name):
  with pytest.raises(InputError, match="feature names must differ"):
    Schema(user=(*SCHEMA.user, Categorical(name, ("v",))), item=SCHEMA.item)


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0)])
def test_a_sparse_vector_has_room(sizes):
  with pytest.raises(InputError, match="size and max_length must be at least 1"):
    SparseVector("words", *sizes)


def test_columns_of_features():
  assert [columns(f) for f in SCHEMA.user] == [("document",), ("words_ids", "words_weights")]


def test_a_table_that_fits_has_its_rows_counted():
  assert check_table(SCHEMA.user, table(), "documents") == 2


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"words_ids": np.array([[5, 0, 2], [1, -1, -1]])}, r"'words_ids' must lie in \[0, 5\); -1"),
    ({"words_ids": np.array([[0, 0, 0], [1, -2, -1]])}, r"1 of 2 rows .* \(first: row 1\)"),
    ({"words_ids": np.zeros((2, 3))}, "must be integers and numbers of one shape, got float64"),
    ({"words_ids": np.zeros((2, 2), int)}, r"of one shape, got int64 \(2, 2\)"),
    ({"words_ids": np.zeros(2, int)}, r"'words_ids' must have rank 2, got shape \(2,\)"),
    (
      {"words_ids": np.zeros((2, 4), int), "words_weights": np.zeros((2, 4))},
      "4 wide, more than max_length 3; keep the largest",
    ),
    ({"words_weights": np.full((2, 3), np.nan)}, "'words_weights' must be finite; 2 of 2 rows"),
    ({"words_weights": np.zeros((1, 3))}, "columns differ in length"),
  ],
)
def test_a_table_that_does_not_fit_is_refused(changes, message):
  with pytest.raises(InputError, match=f"^documents: .*{message}"):
    check_table(SCHEMA.user, table(**changes), "documents")


def test_missing_columns_are_named():
  with pytest.raises(InputError, match=r"missing column\(s\) \['words_weights'\]"):
    check_table(SCHEMA.user, {k: v for k, v in table().items() if "weights" not in k}, "documents")


@pytest.mark.parametrize("name", ["k", "seed", "class", "my feature", "my-feature", "é", "1a"])
def test_names_that_no_signature_can_have_are_refused(name):
  user, item = Id("user_id", ("a",)), Id("item_id", ("b",))
  with pytest.raises(InputError, match=r"inputs of the exported model.*rename \['"):
    Schema(user=(user, Numeric(name)), item=(item,))
  with pytest.raises(InputError, match="inputs of the exported model"):
    Schema(user=(user,), item=(item,), context=(Numeric(name),))
  Schema(user=(user,), item=(item, Numeric(name)))
