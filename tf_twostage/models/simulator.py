"""The simulator: the probability that a user likes an item in a context, for any pair."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tf_twostage.config import EncoderConfig, FitConfig
from tf_twostage.data.rows import shuffled_rows
from tf_twostage.data.schema import Schema
from tf_twostage.data.sets.ratings import RatingsData
from tf_twostage.errors import InputError
from tf_twostage.models.encoders import Codes, EncodedTables, FeatureEncoder, dense
from tf_twostage.training.loop import fit

HIDDEN = (100, 50)


class Simulator(tfrs.Model):
  """An MLP 100-50-1 over user, item and context features [Ma20, section 5].

  The first layer is linear in the concatenated features, so it is a sum of a user part, an item
  part and a context part. Labelling all pairs computes each part once.
  """

  def __init__(self, schema: Schema, config: EncoderConfig, l2: float, *, sparse_l2: bool = False):
    super().__init__()
    encoder = functools.partial(FeatureEncoder, config=config, l2=l2, sparse_l2=sparse_l2)
    self._users = encoder(schema.user_inputs, name="users")
    self._items = encoder(schema.item_inputs, name="items")
    # Empty or one: a schema may have no context.
    self._contexts = [encoder(schema.context)] if schema.context else []
    encoders = [self._users, self._items, *self._contexts]
    self._first = dense(sum(e.width for e in encoders), HIDDEN[0], l2, name="first")
    self._second = dense(HIDDEN[0], HIDDEN[1], l2, name="second")
    self._last = dense(HIDDEN[1], 1, l2, name="last")
    self._loss_mean = tf.keras.metrics.Mean("mean_loss")
    self._task = tfrs.tasks.Ranking(
      loss=tf.keras.losses.BinaryCrossentropy(from_logits=True),
      metrics=[tf.keras.metrics.AUC(from_logits=True, name="auc")],
    )

  def call(self, inputs: Mapping[str, Codes]) -> tf.Tensor:
    """Logits [B] of the pairs (user i, item i) in context i, given as codes."""
    parts = [self._users(inputs["user"]), self._items(inputs["item"])]
    parts += [encoder(inputs["context"]) for encoder in self._contexts]
    return self.pair_logits(self._first(tf.concat(parts, axis=-1)))

  def compute_loss(self, inputs, training: bool = False) -> tf.Tensor:
    """Binary cross-entropy against inputs["label"] [B]."""
    logits = self(inputs)
    loss = self._task(labels=inputs["label"][:, tf.newaxis], predictions=logits[:, tf.newaxis])
    self._loss_mean.update_state(loss)
    read = [(self._users, inputs["user"]), (self._items, inputs["item"])]
    read += [(encoder, inputs["context"]) for encoder in self._contexts]
    return loss + tf.add_n([encoder.touched_penalty(codes) for encoder, codes in read])

  def user_part(self, user: Codes) -> tf.Tensor:
    """The user part of the first layer, with its bias: [U, 100]."""
    return tf.matmul(self._users(user), self._kernels()[0]) + self._first.bias

  def item_part(self, item: Codes) -> tf.Tensor:
    """The item part of the first layer: [N, 100]."""
    return tf.matmul(self._items(item), self._kernels()[1])

  def context_part(self, context: Codes) -> tf.Tensor:
    """The context part of the first layer, [..., 100] for contexts [...]; 0 without context."""
    kernel = self._kernels()[2]
    return sum(tf.tensordot(encoder(context), kernel, axes=1) for encoder in self._contexts)

  def pair_logits(self, pairs: tf.Tensor) -> tf.Tensor:
    """Logits [...] of pairs, given the sums of their parts [..., 100]."""
    hidden = self._second(tf.nn.relu(pairs))
    return tf.squeeze(self._last(tf.nn.relu(hidden)), axis=-1)

  def _kernels(self) -> list[tf.Tensor]:
    """The rows of the first layer's kernel for users, items and contexts."""
    users, items = self._users.width, self._items.width
    return tf.split(self._first.kernel, [users, items, -1])


def fit_simulator(
  data: RatingsData,
  tables: EncodedTables,
  encoder: EncoderConfig,
  config: FitConfig,
  *,
  positive_above: float,
  holdout: float,
  seed: int,
) -> tuple[Simulator, float]:
  """Fits a simulator on ratings, positive above a threshold; returns it with its AUC.

  The AUC is on a share of the ratings, `holdout`, drawn at random, which is used for nothing else.
  """
  if data.rating is None:
    raise InputError(
      f"{data.name}: a simulator learns from ratings, and orders are all positive; learn from the"
      " orders themselves: leave `simulate` out"
    )
  tf.keras.utils.set_random_seed(seed)
  rows = np.random.default_rng(seed).permutation(len(data))
  held_out, fitted = np.split(rows, [max(1, round(holdout * len(rows)))])
  context = tables.context_lookup(data.context)

  def examples(row):
    user, item = tf.gather(data.user_index, row), tf.gather(data.item_index, row)
    return {
      "user": {name: tf.gather(codes, user) for name, codes in tables.users.items()},
      "item": {name: tf.gather(codes, item) for name, codes in tables.items.items()},
      "context": {name: tf.gather(codes, row) for name, codes in context.items()},
      "label": tf.gather(label, row),
    }

  label = tf.constant(data.rating > positive_above, tf.float32)
  fitted_rows = tf.constant(fitted)
  simulator = Simulator(tables.schema, encoder, config.l2, sparse_l2=config.sparse_l2)
  batches = shuffled_rows(len(fitted), config.batch_size, seed=seed).map(
    lambda i: examples(tf.gather(fitted_rows, i)), num_parallel_calls=tf.data.AUTOTUNE
  )
  batches = batches.prefetch(tf.data.AUTOTUNE)
  fit(simulator, batches, config, rows=len(fitted), name="simulator")
  auc = tf.keras.metrics.AUC(num_thresholds=1000, from_logits=True)
  for held_out_rows in tf.data.Dataset.from_tensor_slices(held_out).batch(65_536):
    batch = examples(held_out_rows)
    auc.update_state(batch["label"], simulator(batch))
  return simulator, float(auc.result())
