"""A pair of 20 users and 15 items, untrained, and requests to it."""

import contextlib
import functools

import numpy as np
import tensorflow as tf

from tf_twostage import serving
from tf_twostage.config import EncoderConfig
from tf_twostage.data.sets import make_synthetic
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.models.slate_ranker import TowerRanker
from tf_twostage.serving import check

DATA = make_synthetic(num_users=20, num_items=15, num_ratings=200)
SCHEMA = DATA.schema
IDS = np.asarray(SCHEMA.item_id.vocabulary)
SLATE = 6
TITLE = dict(zip(IDS, DATA.titles, strict=True))


def untrained(data, seed=0):
  """A pair for any data."""
  tf.keras.utils.set_random_seed(seed)
  tables = EncodedTables.encode(data.schema, data.users, data.items)
  return serving.Pair(
    data.schema,
    TwoTower(tables, EncoderConfig(embedding_stddev=1.0), l2=0.0),
    TowerRanker(TwoTower(tables, EncoderConfig(embedding_stddev=1.0), l2=0.0, use_context=True)),
    data.titles,
  )


@functools.cache
def pair(seed=0):
  return untrained(DATA, seed)


def recommender(seed=0, slate_size=SLATE, **settings):
  return serving.ServableRecommender(*pair(seed), slate_size, **settings)


def skip_replay(patch=setattr):
  """Exports appear without the process that tests them."""
  patch(check, "differences", lambda calls, answers: [])
  patch(check, "replay", lambda *_: {"answers": []})
  patch(check, "fresh_process", contextlib.nullcontext)


def users(rows=3):
  """Raw features of the first users, over and over."""
  index = np.arange(rows) % 20
  return {f.name: np.asarray(DATA.users[f.name])[index] for f in SCHEMA.user}


def context(rows=3):
  return {f.name: np.full(rows, f.offset) for f in SCHEMA.context}


def exclude(rows=3, ids=("",)):
  return np.broadcast_to(np.array(ids, dtype=str), (rows, len(ids)))


def requests(rows=3, excluded=("",)):
  return {**users(rows), **context(rows), "exclude": exclude(rows, excluded)}


def scores(seed=0, rows=3):
  """The generator's and the ranker's scores of the catalogue, [rows, 15] each."""
  _, generator, ranker, _ = pair(seed)
  tables = EncodedTables.encode(SCHEMA, DATA.users, DATA.items)
  codes = {name: values[:rows] for name, values in tables.users.items()}
  codes |= tables.context_lookup(context(rows))
  return generator(codes).numpy(), ranker.products(codes).numpy()


def ask(signature, **inputs):
  """Calls a signature, or a method, with arrays; answers with arrays, ids as text."""
  answer = signature(**{name: tf.constant(value) for name, value in inputs.items()})
  return {
    name: value.numpy().astype(str) if value.dtype == tf.string else value.numpy()
    for name, value in answer.items()
  }
