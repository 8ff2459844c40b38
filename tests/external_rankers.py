"""Rankers as somebody else would have made them, for the features of `user_logs`."""

import numpy as np
import tensorflow as tf

from tests.user_logs import GENRES, SEGMENTS

SEGMENT_NAMES = [f"s{i}" for i in range(SEGMENTS)]
GENRE_NAMES = [f"g{i}" for i in range(GENRES)]


def _lookup(names):
  keys = tf.lookup.KeyValueTensorInitializer(names, list(range(len(names))), tf.string, tf.int64)
  return tf.lookup.StaticHashTable(keys, 0)


class Ranker(tf.Module):
  """A table of segments by genres, and a little for the price."""

  def __init__(self, seed=0):
    super().__init__()
    self._segments, self._genres = _lookup(SEGMENT_NAMES), _lookup(GENRE_NAMES)
    taste = np.random.default_rng(seed).normal(size=(SEGMENTS, GENRES))
    self._taste = tf.Variable(taste, dtype=tf.float32)

  @tf.function(
    input_signature=[
      tf.TensorSpec([None], tf.string, "segment"),
      tf.TensorSpec([None], tf.string, "genre"),
      tf.TensorSpec([None, 1], tf.float32, "price"),
    ]
  )
  def score(self, segment, genre, price):
    pairs = tf.stack([self._segments.lookup(segment), self._genres.lookup(genre)], axis=1)
    return {"score": tf.gather_nd(self._taste, pairs)[:, tf.newaxis] + 0.1 * price}

  def save(self, directory):
    tf.saved_model.save(self, str(directory), signatures=self.score)
    return directory

  def reference(self, segments, genres, prices):
    """Scores of all pairs, [users, items], in NumPy."""
    rows = [SEGMENT_NAMES.index(name) for name in segments]
    columns = [GENRE_NAMES.index(name) for name in genres]
    return self._taste.numpy()[rows][:, columns] + 0.1 * np.asarray(prices)


def keras_model(inputs="dict"):
  """A functional model of the same inputs, given as a dict or as a list."""
  tf.keras.utils.set_random_seed(0)
  taken = {
    "segment": tf.keras.Input(shape=(), dtype=tf.string, name="segment"),
    "genre": tf.keras.Input(shape=(), dtype=tf.string, name="genre"),
    "price": tf.keras.Input(shape=(1,), name="price"),
  }
  encoded = [
    tf.keras.layers.StringLookup(vocabulary=names, output_mode="one_hot")(taken[name])
    for name, names in (("segment", SEGMENT_NAMES), ("genre", GENRE_NAMES))
  ]
  hidden = tf.keras.layers.Concatenate()([*encoded, taken["price"]])
  hidden = tf.keras.layers.Dense(8, activation="relu")(hidden)
  score = tf.keras.layers.Dense(1, name="score")(hidden)
  return tf.keras.Model(taken if inputs == "dict" else list(taken.values()), score)
