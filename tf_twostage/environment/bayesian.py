"""What the Bayesian reward model recommends: a baseline of tables, and slates that teach."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import tensorflow as tf
from scipy.special import logit

from tf_twostage.data.rows import LogRows
from tf_twostage.environment.base import Environment
from tf_twostage.errors import InputError
from tf_twostage.evaluation import full_information
from tf_twostage.evaluation.evaluation_log import model_inputs
from tf_twostage.evaluation.evaluator import Scorer
from tf_twostage.losses.safe_slate import SafeSlate
from tf_twostage.metrics import HELD_OUT
from tf_twostage.models import probit
from tf_twostage.models.external import MAX_PAIRS
from tf_twostage.models.probit import Sampling
from tf_twostage.workspace import Workspace, read_numbers, write_json

_log = logging.getLogger(__name__)

SHARES = 0.0, 0.25, 0.5, 0.75, 1.0  # of the model in its mixture with popularity
_NEVER = 1e-6  # probabilities are cut here before logits are taken
_USERS_PER_CHUNK = 512
_UNSAFE = 1e6  # lowers the score of an item that the ranker prefers to one of the target


def with_bayesian(environment: Environment, sampling: Sampling) -> Environment:
  """The environment with the baseline "bayesian"."""

  def fit(workspace: Workspace, slate_size: int) -> Scorer:
    scores = pooled_scores(environment, workspace, sampling, slate_size=slate_size)
    return _scorer(environment, scores, slate_size)

  return dataclasses.replace(environment, fitted_policies={"bayesian": fit})


def pooled_scores(
  environment: Environment,
  workspace: Workspace,
  sampling: Sampling,
  *,
  slate_size: int,
  pessimism: float = 0.0,
) -> np.ndarray:
  """Logits of rewards by the Bayesian model, mixed with those of popularity: [U, N] float32.

  Validation data choose the share of the model, by the mean of both stages.

  Args:
    environment: its training rows fit the model.
    workspace: keeps the draws of the model and the share.
    sampling: of the model.
    slate_size: K.
    pessimism: how many posterior standard deviations are taken off the mean.

  Raises:
    InputError: rows are streamed, or there are too many pairs of users and items.
  """
  log, schema = _in_memory(environment), environment.tables.schema
  num_pairs = schema.num_items * len(next(iter(environment.tables.users.values())))
  if num_pairs > MAX_PAIRS:
    raise InputError(
      f"the Bayesian reward model scores all pairs of users and items, and {num_pairs:,} are more"
      f" than {MAX_PAIRS:,}; choose the reward predictor towers, or another loss"
    )

  def draws() -> dict[str, np.ndarray]:
    found = probit.of_log(log, environment.tables, sampling, log.rewards().scale)
    return {"users": found.users, "items": found.items}

  of_log = {"environment": environment.name, "sampling": dataclasses.asdict(sampling)}
  stored, _ = workspace.arrays("bayesian_rewards", of_log, draws)
  mean, deviation = probit.Posterior(stored["users"], stored["items"]).moments()
  model = _logits(mean - pessimism * deviation)
  popular = _logits(full_information.popularity(log, schema.num_items))
  select = environment.evaluator.metrics.selection("both")

  def build(directory: Any) -> None:
    values = {}
    for share in SHARES:
      scorer = _scorer(environment, share * model + (1 - share) * popular, slate_size)
      values[str(share)] = select(environment.evaluation(scorer, slate_size)())
    write_json(directory / "shares.json", values)

  inputs = {
    **of_log,
    "slate_size": slate_size,
    "pessimism": pessimism,
    "shares": SHARES,
    **environment.evaluator.settings,
  }
  values = read_numbers(workspace.stage("bayesian_share", inputs, build) / "shares.json")
  share = float(max(values, key=values.__getitem__))
  _log.info("bayesian: validation chooses a share of %g, the rest is popularity", share)
  return (share * model + (1 - share) * popular).astype(np.float32)


def _in_memory(environment: Environment) -> LogRows:
  if not isinstance(environment.log, LogRows):
    raise InputError(
      "stream: the Bayesian reward model reads the training rows from memory; leave it out, or"
      " choose the reward predictor towers and a loss other than safe_slate"
    )
  return environment.log


def _logits(probabilities: np.ndarray) -> np.ndarray:
  return logit(np.clip(probabilities, _NEVER, 1 - _NEVER))


def _scorer(environment: Environment, scores: np.ndarray, slate_size: int) -> Scorer:
  """Scores of users; where policies are drawn from, one of a user's K best at random."""
  if environment.evaluator.metrics is HELD_OUT:
    best = np.partition(scores, -slate_size, axis=1)[:, -slate_size, np.newaxis]
    scores = np.where(scores >= best, 0.0, -100.0)
  table = tf.constant(scores, tf.float32)
  return lambda batch: tf.gather(table, batch["user_index"])


@dataclasses.dataclass(frozen=True, eq=False)
class SlateRows:
  """Training rows of a loss of target slates: those of a log, with slates in place of the items.

  Attributes:
    log: the rows, which say how often a user comes.
    slates: [U, K] int32, target slates; zeros for users without rows.
  """

  log: LogRows
  slates: np.ndarray

  def __len__(self) -> int:
    return len(self.log)

  def reading(self) -> AbstractContextManager[None]:
    return contextlib.nullcontext()

  def batches(self, user_features: Mapping[str, Any], **settings: Any) -> tf.data.Dataset:
    """As `LogRows.batches`, with slates [B, K] as "action"."""
    slates = tf.constant(self.slates)

    def with_slates(batch: dict[str, Any]) -> dict[str, Any]:
      return {**batch, "action": tf.gather(slates, batch["user_index"])}

    return self.log.batches(user_features, **settings).map(with_slates)


def target_rows(
  environment: Environment, loss: SafeSlate, workspace: Workspace, sampling: Sampling
) -> SlateRows:
  """The training rows with the target slates of their users, which are computed once.

  Raises:
    InputError: as `pooled_scores`; or the items that can be shown change.
  """
  log, tables = _in_memory(environment), environment.tables
  if log.catalogues is not None:
    raise InputError(
      f"{type(loss).__name__}: target slates hold items of the whole catalogue, and this log says"
      " what could be shown; choose another loss"
    )

  def build() -> dict[str, np.ndarray]:
    scores = pooled_scores(
      environment, workspace, sampling, slate_size=loss.slate_size, pessimism=loss.pessimism
    )
    excluded = getattr(environment.evaluator, "excluded", None)
    if excluded is not None:  # of the last users
      scores[len(scores) - len(excluded) :][excluded] = -np.inf
    slates = np.zeros((len(scores), loss.slate_size), np.int32)
    for start in range(0, len(rows), _USERS_PER_CHUNK):
      some = rows[start : start + _USERS_PER_CHUNK]
      ranked = environment.ranker_logits(model_inputs(log, some, tables.users))
      users = log.user_index[some]
      slates[users] = safe_slates(scores[users], ranked, loss.num_top, loss.slate_size).numpy()
    return {"slates": slates}

  rows = np.unique(log.user_index, return_index=True)[1]
  inputs = {
    "environment": environment.name,
    "sampling": dataclasses.asdict(sampling),
    "slate": [loss.num_top, loss.slate_size, loss.pessimism],
    **environment.evaluator.settings,
  }
  stored, _ = workspace.arrays("target_slates", inputs, build)
  return SlateRows(log, stored["slates"])


@tf.function(reduce_retracing=True)
def safe_slates(
  scores: tf.Tensor, ranker_logits: tf.Tensor, top: int, slate_size: int
) -> tf.Tensor:
  """The best items, then the best others that the ranker scores below all of these: [B, K] int32.

  Where there are too few such others, the best of the rest follow.

  Args:
    scores: [B, N]. ranker_logits: [B, N].
    top: how many items are the best.
    slate_size: K.
  """
  best = tf.math.top_k(scores, top).indices
  least = tf.reduce_min(tf.gather(ranker_logits, best, batch_dims=1), axis=1, keepdims=True)
  others = tf.where(ranker_logits < least, scores, scores - _UNSAFE)
  taken = tf.reduce_any(tf.one_hot(best, tf.shape(scores)[1], True, False, dtype=tf.bool), axis=1)
  others = tf.where(taken, scores.dtype.min, others)
  return tf.concat([best, tf.math.top_k(others, slate_size - top).indices], axis=1)
