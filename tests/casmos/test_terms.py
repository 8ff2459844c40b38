import numpy as np
import pytest
import tensorflow as tf

from tests.casmos import small
from tf_twostage.casmos.terms import TermMatcher, values
from tf_twostage.data.schema import Embedding
from tf_twostage.errors import InputError
from tf_twostage.models.encoders import FeatureLookup


@pytest.fixture(scope="module")
def world():
  return small.world()


@pytest.mark.parametrize("side", ["user", "item"])
def test_matcher_finds_the_values_that_the_matrix_holds(world, side):
  matrix, terms = world.side(side)
  features = getattr(world.tables.schema, f"{side}_inputs")
  met = TermMatcher(features, terms)(getattr(world.tables, f"{side}s"))
  np.testing.assert_array_equal(met, matrix.toarray())


def test_a_bag_meets_each_of_its_values(world):
  matrix, terms = world.side("item")
  for genre in small.GENRES:
    expected = (world.items["genres"] == genre).any(axis=1)
    column = matrix[:, [terms.index((("genres", genre),))]].toarray()[:, 0]
    np.testing.assert_array_equal(column, expected)


def test_ranges_of_a_number_are_disjoint_and_hold_every_row(world):
  matrix, terms = world.side("user")
  columns = [i for i, ((name, _),) in enumerate(terms) if name == "age"]
  bins = matrix[:, columns].toarray()
  np.testing.assert_array_equal(bins.sum(axis=1), 1)
  assert len(columns) == 8
  assert bins.sum(axis=0).min() > small.NUM_USERS / 10


def test_a_term_is_met_where_all_of_its_conditions_are(world):
  both = (("job", "artist"), ("place", "north"))
  met = TermMatcher(world.tables.schema.user_inputs, [both, ()])(world.tables.users).numpy()
  expected = (world.users["job"] == "artist") & (world.users["place"] == "north")
  np.testing.assert_array_equal(met[:, 0], expected)
  np.testing.assert_array_equal(met[:, 1], 1)


def test_values_that_appear_after_training_meet_nothing(world):
  features = world.tables.schema.user_inputs
  new = {
    "job": ["astronaut"],
    "place": [""],
    "age": [1e30],
    "words_ids": [[99, -1]],
    "words_weights": [[1.0, 1.0]],
  }
  terms = [(("job", job),) for job in small.JOBS] + [(("words", 0),), (("age", (None, 20.0)),)]
  met = TermMatcher(features, terms)(FeatureLookup(features)(new))
  np.testing.assert_array_equal(met, np.zeros([1, len(terms)]))


def test_an_embedding_has_no_values():
  matrix, terms = values(
    [Embedding("vector", 2), *small.world().tables.schema.item_inputs],
    {**small.world().tables.items, "vector": tf.zeros([small.NUM_ITEMS, 2])},
  )
  assert not [term for term in terms if term[0][0] == "vector"]
  assert matrix.shape == (small.NUM_ITEMS, len(terms))


@pytest.mark.parametrize(
  ("condition", "message"),
  [
    (("jbo", "artist"), "no feature 'jbo' here; there are job, place, age, words"),
    (("job", "atrist"), "feature 'job' has no value 'atrist'"),
    (("age", "30"), "feature 'age' has no value '30'"),
    (("words", 9), "feature 'words' has no value 9"),
  ],
)
def test_wrong_conditions_are_refused(world, condition, message):
  with pytest.raises(InputError, match=message):
    TermMatcher(world.tables.schema.user_inputs, [(condition,)])
