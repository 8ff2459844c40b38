"""What the Bayesian reward model recommends: a baseline of tables, and slates that teach."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import tensorflow as tf
from scipy.special import logit

from tf_twostage.data.rows import LogRows
from tf_twostage.environment.base import Environment, FittedPolicy
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

SHARES = 0.0, 0.5, 1.0  # of the model in its mixture with popularity
RANKER_SHARES = 0.0, 0.2, 0.4  # of the ranker in the mixture with both
_NEVER = 1e-6  # probabilities are cut here before logits are taken
_USERS_PER_CHUNK = 512
_APART = 64.0  # more than logits of such probabilities differ


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
  """A `Scorer`: logits of the reward model and popularity, mixed with those of the ranker.

  Attributes:
    table: [U, N], of the model and popularity.
    ranker: the ranker's logits.
    share: of the ranker.
  """

  table: tf.Tensor
  ranker: Scorer
  share: float

  def __call__(self, batch: Mapping[str, Any]) -> tf.Tensor:
    limit = float(logit(1 - _NEVER))
    ranked = tf.clip_by_value(self.ranker(batch), -limit, limit)
    scores = tf.gather(self.table, batch["user_index"])
    return (1 - self.share) * scores + self.share * ranked


def with_bayesian(environment: Environment, sampling: Sampling) -> Environment:
  """The environment with the baseline "bayesian": the slates that `SafeSlate` learns."""

  def fit(workspace: Workspace, slate_size: int) -> Scorer:
    loss = SafeSlate(slate_size=slate_size)
    return _policy(environment, mixture(environment, loss, workspace, sampling), loss)

  inputs = {"sampling": sampling.inputs(), "shares": [SHARES, RANKER_SHARES]}
  return dataclasses.replace(environment, fitted_policies={"bayesian": FittedPolicy(inputs, fit)})


def mixture(
  environment: Environment, loss: SafeSlate, workspace: Workspace, sampling: Sampling
) -> Mixture:
  """The mixture of Bayesian reward model, popularity and ranker that is best on validation data.

  A mixture is scored by its safe slates, by the mean of both stages.

  Args:
    environment: its training rows fit the model.
    loss: says how many items are in a slate and in T, and how pessimistic the model is.
    workspace: keeps the draws of the model and the scores of mixtures.
    sampling: of the model.

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

  of_log = {"environment": environment.name, "sampling": sampling.inputs()}
  stored, _ = workspace.arrays("bayesian_rewards", of_log, draws)
  mean, deviation = probit.Posterior(stored["users"], stored["items"]).moments()
  model = _logits(mean - loss.pessimism * deviation)
  popular = _logits(full_information.popularity(log, schema.num_items))
  select = environment.evaluator.metrics.selection("both")

  def mixed(share: float, ranker_share: float) -> Mixture:
    table = share * model + (1 - share) * popular
    return Mixture(tf.constant(table, tf.float32), environment.ranker_logits, ranker_share)

  def build(directory: Any) -> None:
    values = {}
    for share, ranker_share in itertools.product(SHARES, RANKER_SHARES):
      policy = _policy(environment, mixed(share, ranker_share), loss)
      scores = environment.evaluation(policy, loss.slate_size)()
      values[f"{share} {ranker_share}"] = select(scores)
    write_json(directory / "shares.json", values)

  inputs = _inputs(environment, loss, sampling)
  values = read_numbers(workspace.stage("bayesian_shares", inputs, build) / "shares.json")
  share, ranker_share = map(float, max(values, key=values.__getitem__).split())
  _log.info(
    "bayesian: validation chooses a share of %g for the ranker; the model's in the rest is %g, that"
    " of popularity %g",
    ranker_share,
    share,
    1 - share,
  )
  return mixed(share, ranker_share)


def _inputs(environment: Environment, loss: SafeSlate, sampling: Sampling) -> dict[str, Any]:
  """What the mixture of an environment, and so its safe slates, depend on."""
  return {
    "environment": environment.name,
    "sampling": sampling.inputs(),
    "slate": [loss.num_top, loss.slate_size, loss.pessimism, loss.margin],
    "shares": [SHARES, RANKER_SHARES],
    **environment.evaluator.settings,
  }


def _in_memory(environment: Environment) -> LogRows:
  if not isinstance(environment.log, LogRows):
    raise InputError(
      "stream: the Bayesian reward model reads the training rows from memory; leave it out, or"
      " choose the reward predictor towers and a loss other than safe_slate"
    )
  return environment.log


def _logits(probabilities: np.ndarray) -> np.ndarray:
  return logit(np.clip(probabilities, _NEVER, 1 - _NEVER))


def _policy(environment: Environment, scorer: Scorer, loss: SafeSlate) -> Scorer:
  """Scores in the order of safe slates; where policies are drawn from, K items of equal score."""
  drawn = environment.evaluator.metrics is HELD_OUT

  def policy(batch: Mapping[str, Any]) -> tf.Tensor:
    scores = scorer(batch)
    if "excluded" in batch:
      scores = tf.where(batch["excluded"], -_APART, scores)
    scores = safe_scores(scores, environment.ranker_logits(batch), loss.num_top, loss.margin)
    if not drawn:
      return scores
    least = tf.math.top_k(scores, loss.slate_size).values[:, -1:]
    return tf.where(scores >= least, 0.0, -100.0)

  return policy


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
    InputError: as `mixture`; or the items that can be shown change.
  """
  log, tables, schema = _in_memory(environment), environment.tables, environment.tables.schema
  if log.catalogues is not None:
    raise InputError(
      f"{type(loss).__name__}: target slates hold items of the whole catalogue, and this log says"
      " what could be shown; choose another loss"
    )

  def build() -> dict[str, np.ndarray]:
    policy = _policy(environment, mixture(environment, loss, workspace, sampling), loss)
    excluded = np.zeros((schema.num_users, schema.num_items), bool)
    if (of_last := getattr(environment.evaluator, "excluded", None)) is not None:
      excluded[-len(of_last) :] = of_last
    rows = np.unique(log.user_index, return_index=True)[1]
    slates = np.zeros((schema.num_users, loss.slate_size), np.int32)
    for some in np.array_split(rows, -(-len(rows) // _USERS_PER_CHUNK)):
      users = log.user_index[some]
      batch = {**model_inputs(log, some, tables.users), "excluded": excluded[users]}
      slates[users] = tf.math.top_k(policy(batch), loss.slate_size).indices
    return {"slates": slates}

  inputs = _inputs(environment, loss, sampling)
  stored, _ = workspace.arrays("target_slates", inputs, build)
  return SlateRows(log, stored["slates"])


def safe_scores(
  scores: tf.Tensor, ranker_logits: tf.Tensor, top: int, margin: float = 0.0
) -> tf.Tensor:
  """Scores in the order of safe slates, [B, N].

  The best items come first, then the others that the ranker scores below all of these, then the
  rest.

  Args:
    scores: [B, N], which differ by less than `_APART`. ranker_logits: [B, N].
    top: how many items are the best.
    margin: how far below these the ranker's logits of the others must be.
  """
  values, best = tf.math.top_k(scores, top)
  least = tf.reduce_min(tf.gather(ranker_logits, best, batch_dims=1), axis=1, keepdims=True)
  others = tf.where(ranker_logits < least - margin, scores, scores - 2 * _APART)
  return tf.where(scores >= values[:, -1:], scores + 2 * _APART, others)
