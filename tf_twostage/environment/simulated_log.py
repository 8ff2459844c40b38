"""A simulated log: a logging policy shows items to every user and records the feedback."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_twostage.config import Config
from tf_twostage.data.rows import LogRows
from tf_twostage.evaluation.evaluation_log import EvaluationLog
from tf_twostage.losses.base import OffPolicyLoss
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.models.generator import CandidateGenerator
from tf_twostage.training.loop import fit
from tf_twostage.workspace import Workspace

_log = logging.getLogger(__name__)

_CONTEXT = "context_"
_SHARPEST, _FLATTEST = 2.0, 0.5  # factors of the logits in the first slot of a slate and the last
_USERS_PER_CHUNK = 256  # a user may be a document of a thousand words, an embedding each
_PAIRS_PER_CHUNK = 2**25  # 128 MB of logits

# User vectors [U, D] and item vectors [N, D]; their products are a policy's logits.
Vectors = tuple[np.ndarray, np.ndarray]
# Rewards [n] of the pairs (users[i], items[i]), and their raw context by name, [n] each.
Feedback = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, Mapping[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class LoggedPolicy:
  """A logging policy by its vectors, its log, and the name of the log's stage."""

  vectors: Vectors
  log: LogRows
  stage: str


def slot_examination(slots: int) -> tuple[float, ...] | None:
  """The probability that each slot of a slate is examined; None without slates."""
  return tuple(1 / (1 + slot) for slot in range(slots)) or None


def with_log_seed(config: Config) -> Config:
  """The settings with the seed of the logging policy, the log and the ranker."""
  seed = config.environment_seed + config.simulation.log_number
  return dataclasses.replace(config, environment_seed=seed)


def fit_and_log(
  config: Config,
  tables: EncodedTables,
  workspace: Workspace,
  *,
  examples: Callable[[], LogRows],
  depends_on: Mapping[str, Any],
  objective: OffPolicyLoss,
  feedback: Feedback,
  logged: slice,
) -> LoggedPolicy:
  """Fits a logging policy and draws its log of the users `logged`; each is a stage.

  The policy is fitted with `objective` to the rows of `examples`, which the JSON-able values of
  `depends_on` determine. `feedback` gives the rewards and contexts of the log.
  """
  seed, settings = config.environment_seed, config.behavior

  def fitted() -> dict[str, np.ndarray]:
    tf.keras.utils.set_random_seed(seed)
    towers = TwoTower.of(tables, config.encoder, settings)
    rows = examples()
    batches = rows.batches(tables.users, batch_size=settings.batch_size, seed=seed)
    policy = CandidateGenerator(towers, objective)
    fit(policy, batches, settings, rows=len(rows), name="behavior policy")
    chunks = tf.data.Dataset.from_tensor_slices(tables.users).batch(_USERS_PER_CHUNK)
    vectors = np.concatenate([towers.query(chunk) for chunk in chunks])
    return {"users": vectors, "items": towers.candidates()}

  inputs = {
    **depends_on,
    "encoder": dataclasses.asdict(config.encoder),
    "fit": dataclasses.asdict(settings),
    "seed": seed,
  }
  vectors, stage = workspace.arrays("behavior_policy", inputs, fitted)
  users, items = vectors["users"], vectors["items"]
  log, log_stage = _logged(
    "log",
    {"behavior": stage},
    (users[logged], items),
    config,
    workspace,
    feedback,
    seed=seed,
    first_user=logged.start,
    slots=config.simulation.slots,
  )
  _log.info("log: %d rows, %.1f%% rewarded", len(log), 100 * log.reward.mean())
  return LoggedPolicy((users, items), log, log_stage)


def evaluation_log(
  config: Config,
  policy: LoggedPolicy,
  workspace: Workspace,
  *,
  labels: np.ndarray,
  contexts: Mapping[str, np.ndarray],
  user_ids: Sequence[str],
  first_user: int = 0,
) -> EvaluationLog:
  """Draws another log of the policy, which nothing is fitted on, with the true values beside it.

  `labels` [U', N] are rewards, `contexts` [U'] what a policy sees, from `first_user` on.
  """
  users, items = policy.vectors

  def feedback(users: np.ndarray, items: np.ndarray):
    rows = users - first_user
    return labels[rows, items].astype(np.float32), {n: v[rows] for n, v in contexts.items()}

  log, stage = _logged(
    "evaluation_log",
    {"log": policy.stage, "first_user": first_user},
    (users[first_user:], items),
    config,
    workspace,
    feedback,
    seed=~config.environment_seed,  # negative, unlike the seed of any training log
    first_user=first_user,
  )
  notes = ["The log was drawn from the logging policy for evaluation alone."]
  if not config.simulation.replacement:
    notes.append(
      "The items of a user were drawn without replacement: propensities are exact only for the"
      " first of them, and estimates that weight rows are biased."
    )
  return EvaluationLog(
    log,
    len(items),
    stage,
    tuple(notes),
    expected_rewards=lambda rows: labels[log.user_index[rows] - first_user],
    user_ids=user_ids,
    logging_probabilities=lambda rows: tf.nn.softmax(
      tf.matmul(users[log.user_index[rows]], items, transpose_b=True)
    ).numpy(),
  )


def _logged(
  name: str,
  depends_on: Mapping[str, Any],
  vectors: Vectors,
  config: Config,
  workspace: Workspace,
  feedback: Feedback,
  *,
  seed: int,
  first_user: int = 0,
  slots: int = 0,
) -> tuple[LogRows, str]:
  """Returns a log and the name of its stage; see `simulate_log`."""
  drawn: dict[str, Any] = {
    "items_per_user": config.simulation.items_per_user,
    "replacement": config.simulation.replacement,
    "seed": seed,
  }
  if slots:
    drawn |= {"slots": slots, "position_blind": config.simulation.position_blind}

  def draw() -> dict[str, np.ndarray]:
    log = simulate_log(vectors, feedback, **drawn, first_user=first_user)
    return {_CONTEXT + n: values for n, values in log.context.items()} | log.columns()

  found, stage = workspace.arrays(name, {**depends_on, **drawn}, draw)
  arrays: dict[str, Any] = found
  names = [name for name in arrays if name.startswith(_CONTEXT)]
  context = {name.removeprefix(_CONTEXT): arrays.pop(name) for name in names}
  fields: dict[str, Any] = {**arrays, "context": context}
  return LogRows(**fields), stage


def simulate_log(
  vectors: Vectors,
  feedback: Feedback,
  *,
  items_per_user: int,
  replacement: bool,
  seed: int,
  first_user: int = 0,
  slots: int = 0,
  position_blind: bool = False,
) -> LogRows:
  """Shows `items_per_user` items to every user and records propensity and reward.

  With `slots`, items are shown in slates. Slot k is examined with probability 1 / (k + 1), and its
  item rewarded only then. It is drawn by itself, from logits that are multiplied by a number from
  `_SHARPEST` in the first slot to `_FLATTEST` in the last: the policy shows on top what it is sure
  of. The propensity is that of exposure, Σ_k P(item in slot k) / (k + 1), as expected for one
  slate; if `position_blind`, Σ_k P(item in slot k), at most 1.

  The propensity is the softmax probability of a single draw. With replacement that is exact;
  without, only for the first draw (the published log is of that kind). Users are in order; the
  vectors are of those from `first_user` on.
  """
  user_vectors, item_vectors = vectors
  num_users, chunk = len(user_vectors), max(1, _PAIRS_PER_CHUNK // len(item_vectors))
  actions, propensities = [], []
  for start in range(0, num_users, chunk):
    logits = tf.matmul(user_vectors[start : start + chunk], item_vectors, transpose_b=True)
    if slots:
      seeds = [[seed, start * slots + slot] for slot in range(slots)]
      drawn, chance = _draw_slates(logits, items_per_user // slots, seeds, position_blind)
    else:
      drawn = _draw(logits, items_per_user, replacement, [seed, start])
      chance = tf.nn.softmax(logits)
    actions.append(drawn.numpy().ravel())
    propensities.append(tf.gather(chance, drawn, batch_dims=1).numpy().ravel())
  users = first_user + np.repeat(np.arange(num_users, dtype=np.int32), items_per_user)
  items = np.concatenate(actions).astype(np.int32)
  rewards, context = feedback(users, items)
  position = None
  if slots:
    position = np.tile(np.arange(slots, dtype=np.int32), len(items) // slots)
    examined = np.array(slot_examination(slots))[position]
    rewards *= np.random.default_rng(seed).random(len(items)) < examined
  return LogRows(users, items, np.concatenate(propensities), rewards, context, position)


def _draw_slates(
  logits: tf.Tensor, slates: int, seeds: list[list[int]], position_blind: bool
) -> tuple[tf.Tensor, tf.Tensor]:
  """Items [U, slates * slots] by a seed for each slot, and the propensity of every item, [U, N]."""
  drawn, chance, examined = [], tf.zeros_like(logits), slot_examination(len(seeds)) or ()
  for slot, sharpness in enumerate(np.linspace(_SHARPEST, _FLATTEST, len(seeds))):
    sharpened = logits * np.float32(sharpness)
    drawn.append(tf.random.stateless_categorical(sharpened, slates, seeds[slot]))
    chance += tf.nn.softmax(sharpened) * (1.0 if position_blind else examined[slot])
  items = tf.reshape(tf.stack(drawn, 2), [len(logits), -1])
  return items, tf.minimum(chance, 1.0)


def _draw(logits: tf.Tensor, items: int, replacement: bool, seed: list[int]) -> tf.Tensor:
  """[U, items] draws from softmax(logits), [U, N]."""
  if replacement:
    return tf.random.stateless_categorical(logits, items, seed)
  # The largest Gumbel-perturbed logits are a draw without replacement.
  uniform = tf.random.stateless_uniform(tf.shape(logits), seed, minval=1e-20)
  return tf.math.top_k(logits - tf.math.log(-tf.math.log(uniform)), items).indices
