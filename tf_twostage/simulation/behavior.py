"""The behavior policy at work: it shows items to every user and logs what they say."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_twostage.bandit_log import BanditLog
from tf_twostage.simulation.full_information import FullInformation, PairContexts


def random_pairs(
  information: FullInformation, contexts: PairContexts, num_pairs: int, seed: int
) -> BanditLog:
  """Labelled pairs drawn uniformly, as a log whose propensities are 1/N."""
  num_users, num_items = information.labels.shape
  rng = np.random.default_rng(seed)
  users = rng.integers(num_users, size=num_pairs, dtype=np.int32)
  items = rng.integers(num_items, size=num_pairs, dtype=np.int32)
  return BanditLog(
    user_index=users,
    action=items,
    propensity=np.full(num_pairs, 1 / num_items, np.float32),
    reward=information.labels[users, items].astype(np.float32),
    context=contexts(users, items),
  )


def log_interactions(
  logits: tf.Tensor,
  information: FullInformation,
  contexts: PairContexts,
  *,
  items_per_user: int,
  replacement: bool,
  seed: int,
) -> BanditLog:
  """Shows `items_per_user` items to every user and records propensity and reward.

  The propensity is the softmax probability of a single draw. With replacement that is the
  probability of what happened; without, only the first draw's is exact (the published log is
  of that kind).

  Args:
    logits: [U, N] of the behavior policy.
    information: rewards of all pairs.
    contexts: the context in which each pair was labelled.
    items_per_user: rows a user.
    replacement: whether an item may be shown to a user twice.
    seed: fixes the draws.

  Returns:
    a log of U * items_per_user rows, users in order.
  """
  stateless_seed = [seed, 0]
  if replacement:
    actions = tf.random.stateless_categorical(logits, items_per_user, stateless_seed)
  else:  # the largest Gumbel-perturbed logits are a draw without replacement
    uniform = tf.random.stateless_uniform(tf.shape(logits), stateless_seed, minval=1e-20)
    actions = tf.math.top_k(logits - tf.math.log(-tf.math.log(uniform)), items_per_user).indices
  propensity = tf.gather(tf.nn.softmax(logits), actions, batch_dims=1).numpy().ravel()
  users = np.repeat(np.arange(logits.shape[0], dtype=np.int32), items_per_user)
  items = actions.numpy().ravel().astype(np.int32)
  return BanditLog(
    user_index=users,
    action=items,
    propensity=propensity,
    reward=information.labels[users, items].astype(np.float32),
    context=contexts(users, items),
  )
