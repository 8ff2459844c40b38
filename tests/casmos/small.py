"""A catalogue whose users like items by clauses, so that the true query is known."""

import dataclasses

import numpy as np
from scipy.special import expit

from tf_twostage.casmos.clauses import Clause
from tf_twostage.casmos.learning import Pairs
from tf_twostage.casmos.queries import StructuredQueries
from tf_twostage.casmos.terms import values
from tf_twostage.data.schema import Bag, Categorical, Id, Numeric, Schema, SparseVector
from tf_twostage.models.encoders import EncodedTables

JOBS, PLACES = ("artist", "doctor", "farmer", "lawyer", "student"), ("north", "south", "west")
GENRES, COUNTRIES = ("comedy", "drama", "horror", "thriller", "western"), ("at", "de", "fr", "us")
NUM_USERS, NUM_ITEMS = 300, 200


def _is(feature, value):
  return ((feature, value),)


TRUTH = tuple(
  Clause(user, item, weight)
  for user, item, weight in (
    (_is("job", "artist"), _is("genres", "drama"), 2.0),
    (_is("job", "student"), _is("genres", "comedy"), 2.0),
    (_is("job", "farmer"), _is("genres", "western"), 2.0),
    (_is("job", "lawyer"), _is("genres", "thriller"), 2.0),
    (_is("job", "doctor"), _is("country", "us"), 1.5),
    (_is("place", "north"), _is("country", "de"), 1.5),
    (_is("place", "south"), _is("country", "fr"), 1.5),
    (_is("place", "west"), _is("genres", "horror"), 1.5),
    ((), _is("country", "at"), 1.0),
    ((), _is("genres", "comedy"), 1.0),
  )
)


@dataclasses.dataclass(frozen=True)
class World:
  tables: EncodedTables
  users: dict
  items: dict

  def scores(self, query):
    """[U, N], by a query's clauses."""
    return StructuredQueries(self.tables, query)(self.tables.users).numpy()

  def side(self, name):
    features = getattr(self.tables.schema, f"{name}_inputs")
    return values(features, getattr(self.tables, f"{name}s"))


def world(seed=0):
  draw = np.random.default_rng(seed)
  users = {
    "user_id": np.arange(NUM_USERS).astype(str),
    "job": draw.choice(JOBS, NUM_USERS),
    "place": draw.choice(PLACES, NUM_USERS),
    "age": draw.uniform(10, 90, NUM_USERS),
    "words_ids": np.where(draw.random((NUM_USERS, 3)) < 0.7, draw.integers(9, size=(300, 3)), -1),
    "words_weights": np.ones((NUM_USERS, 3), np.float32),
  }
  items = {
    "item_id": np.arange(NUM_ITEMS).astype(str),
    "genres": draw.choice((*GENRES, ""), (NUM_ITEMS, 2)),
    "country": draw.choice(COUNTRIES, NUM_ITEMS),
  }
  schema = Schema(
    user=(
      Id("user_id", tuple(users["user_id"]), embedded=False),
      Categorical("job", JOBS),
      Categorical("place", PLACES),
      Numeric("age", 10.0, 80.0),
      SparseVector("words", 9, 3),
    ),
    item=(
      Id("item_id", tuple(items["item_id"])),
      Bag("genres", GENRES, max_length=2),
      Categorical("country", COUNTRIES),
    ),
  )
  return World(EncodedTables.encode(schema, users, items), users, items)


def pairs(scores, rows=40_000, seed=1):
  """Pairs drawn at random, liked with probability 1 / (1 + exp(2 - score))."""
  draw = np.random.default_rng(seed)
  user, item = draw.integers(NUM_USERS, size=rows), draw.integers(NUM_ITEMS, size=rows)
  liked = draw.random(rows) < expit(scores[user, item] - 2)
  return Pairs(user, item, liked, np.ones(rows))
