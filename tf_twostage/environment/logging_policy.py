"""The behavior policy at work: it shows items to every user and logs what they say."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tf_twostage.config import Config
from tf_twostage.data import rows
from tf_twostage.data.rows import LogRows
from tf_twostage.environment.full_information import FullInformation, PairContexts
from tf_twostage.losses.base import OffPolicyLoss
from tf_twostage.models.encoders import Codes, EncodedTables, TwoTower
from tf_twostage.models.generator import CandidateGenerator
from tf_twostage.training.fitting import fit
from tf_twostage.workspace import Workspace

_log = logging.getLogger(__name__)

_VECTORS = "vectors.npz"
_USERS_PER_CHUNK = 256  # a user may be a document of a thousand words, an embedding each
_PAIRS_PER_CHUNK = 2**25  # 128 MB of logits

# [U, D] and [N, D]; their products are a policy's logits.
Vectors = tuple[np.ndarray, np.ndarray]
# Functions of pairs (users[i], items[i]): their rewards [n], their raw contexts by name [n].
Rewards = Callable[[np.ndarray, np.ndarray], np.ndarray]
Contexts = Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class LoggedPolicy:
  """A behavior policy and what it logged.

  Attributes:
    policy: vectors of all users and items.
    log: what the policy showed, with propensities and rewards.
    stage: name of the log's stage, for later stages to depend on.
  """

  policy: Vectors
  log: LogRows
  stage: str


def record(
  config: Config,
  tables: EncodedTables,
  workspace: Workspace,
  *,
  examples: Callable[[], LogRows],
  depends_on: Mapping[str, Any],
  objective: OffPolicyLoss,
  rewards: Rewards,
  contexts: Contexts,
  num_users: int,
) -> LoggedPolicy:
  """Builds, or finds built: behavior policy -> log.

  Args:
    config: settings of the policy and of the log.
    tables: codes of users and items.
    workspace: keep what is built.
    examples: makes the rows that the policy is fitted on.
    depends_on: what these follow from, JSON-able.
    objective: what it is fitted with.
    rewards: what the log says of a pair.
    contexts: in which context.
    num_users: the first so many users are logged.
  """
  seed = config.environment_seed

  def build_policy(directory: pathlib.Path) -> None:
    tf.keras.utils.set_random_seed(seed)
    settings = config.behavior
    towers = TwoTower.of(tables, config.encoder, settings)
    rows = examples()
    batches = rows.batches(tables.users, batch_size=config.behavior.batch_size, seed=seed)
    policy = CandidateGenerator(towers, objective)
    fit(policy, batches, config.behavior, len(rows), "behavior policy")
    np.savez(
      directory / _VECTORS,
      user_vectors=_user_vectors(towers, tables.users),
      item_vectors=towers.candidates(),
    )

  policy_stage = workspace.stage(
    "behavior_policy",
    {
      **depends_on,
      "encoder": dataclasses.asdict(config.encoder),
      "fit": dataclasses.asdict(config.behavior),
      "seed": seed,
    },
    build_policy,
  )
  with np.load(policy_stage / _VECTORS) as stored:
    policy = stored["user_vectors"], stored["item_vectors"]

  log, log_stage = draw_log(
    "log",
    {"behavior": policy_stage.name},
    (policy[0][:num_users], policy[1]),
    config,
    tables,
    workspace,
    rewards=rewards,
    contexts=contexts,
    seed=seed,
  )
  _log.info("log: %d rows, %.1f%% rewarded", len(log), 100 * log.reward.mean())
  return LoggedPolicy(policy, log, log_stage)


def draw_log(
  name: str,
  depends_on: Mapping[str, Any],
  policy: Vectors,
  config: Config,
  tables: EncodedTables,
  workspace: Workspace,
  *,
  rewards: Rewards,
  contexts: Contexts,
  seed: int,
  first_user: int = 0,
) -> tuple[LogRows, str]:
  """Builds, or finds built, a log of a policy.

  Args:
    name: of the stage.
    depends_on: what policy, rewards and contexts follow from, JSON-able.
    policy: vectors of the users to log, and of all items.
    config: how many items a user, and whether with replacement.
    tables: their schema is the log's.
    workspace: keep what is built.
    rewards, contexts, seed, first_user: as for `log_interactions`.

  Returns:
    the log, and the name of its stage.
  """
  settings = config.simulation

  def build(directory: pathlib.Path) -> None:
    log = log_interactions(
      policy,
      rewards,
      contexts,
      items_per_user=settings.items_per_user,
      replacement=settings.replacement,
      seed=seed,
      first_user=first_user,
    )
    rows.write(log, directory / "shards", tables.schema)

  stage = workspace.stage(
    name,
    {
      **depends_on,
      "items_per_user": settings.items_per_user,
      "replacement": settings.replacement,
      "seed": seed,
    },
    build,
  )
  return rows.read(stage / "shards", tables.schema), stage.name


def random_pairs(
  information: FullInformation, contexts: PairContexts, num_pairs: int, seed: int
) -> LogRows:
  """Labelled pairs drawn uniformly, as a log whose propensities are 1/N."""
  num_users, num_items = information.labels.shape
  rng = np.random.default_rng(seed)
  users = rng.integers(num_users, size=num_pairs, dtype=np.int32)
  items = rng.integers(num_items, size=num_pairs, dtype=np.int32)
  return LogRows(
    user_index=users,
    action=items,
    propensity=np.full(num_pairs, 1 / num_items, np.float32),
    reward=information.rewards(users, items),
    context=contexts(users, items),
  )


def log_interactions(
  policy: Vectors,
  rewards: Rewards,
  contexts: Contexts,
  *,
  items_per_user: int,
  replacement: bool,
  seed: int,
  first_user: int = 0,
) -> LogRows:
  """Shows `items_per_user` items to every user and records propensity and reward.

  The propensity is the softmax probability of a single draw. With replacement that is the
  probability of what happened; without, only the first draw's is exact (the published log is
  of that kind).

  Args:
    policy: vectors of the users to log, and of all items.
    rewards: rewards of pairs.
    contexts: the context in which each pair was labelled.
    items_per_user: rows a user.
    replacement: whether an item may be shown to a user twice.
    seed: fixes the draws.
    first_user: index of the first of them; the others follow.

  Returns:
    a log of U * items_per_user rows, users in order.
  """
  user_vectors, item_vectors = policy
  num_users, chunk = len(user_vectors), max(1, _PAIRS_PER_CHUNK // len(item_vectors))
  actions, propensities = [], []
  for start in range(0, num_users, chunk):
    logits = tf.matmul(user_vectors[start : start + chunk], item_vectors, transpose_b=True)
    drawn = _draw(logits, items_per_user, replacement, [seed, start])
    actions.append(drawn.numpy().ravel())
    propensities.append(tf.gather(tf.nn.softmax(logits), drawn, batch_dims=1).numpy().ravel())
  users = first_user + np.repeat(np.arange(num_users, dtype=np.int32), items_per_user)
  items = np.concatenate(actions).astype(np.int32)
  return LogRows(
    user_index=users,
    action=items,
    propensity=np.concatenate(propensities),
    reward=rewards(users, items),
    context=contexts(users, items),
  )


def _draw(logits: tf.Tensor, items: int, replacement: bool, seed: list[int]) -> tf.Tensor:
  """[U, items] draws from softmax(logits), [U, N]."""
  if replacement:
    return tf.random.stateless_categorical(logits, items, seed)
  # The largest Gumbel-perturbed logits are a draw without replacement.
  uniform = tf.random.stateless_uniform(tf.shape(logits), seed, minval=1e-20)
  return tf.math.top_k(logits - tf.math.log(-tf.math.log(uniform)), items).indices


def _user_vectors(towers: TwoTower, users: Codes) -> np.ndarray:
  batches = tf.data.Dataset.from_tensor_slices(users).batch(_USERS_PER_CHUNK)
  return np.concatenate([towers.query(batch) for batch in batches])
