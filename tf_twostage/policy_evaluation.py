"""`evaluate`: estimates off-policy what policies would earn on a log."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from tf_twostage.config import Config, EncoderConfig, FitConfig, RewardConfig
from tf_twostage.data.log import BanditLog
from tf_twostage.errors import InputError
from tf_twostage.evaluation import policy_file, propensities, values
from tf_twostage.evaluation.estimators import Estimators
from tf_twostage.evaluation.evaluation_log import ByRow, EvaluationLog
from tf_twostage.evaluation.reward_model import (
  RewardModel,
  fit_bayesian_rewards,
  fit_reward_model,
)
from tf_twostage.evaluation.rows import check_distribution
from tf_twostage.evaluation.values import TargetPolicy
from tf_twostage.models.encoders import EncodedTables
from tf_twostage.models.probit import of_sweeps
from tf_twostage.recommender import RecommenderPolicy, TwoStageRecommender
from tf_twostage.reports.policy_report import Evaluation
from tf_twostage.training.progress import bars
from tf_twostage.workspace import Workspace

_DEFAULTS = Config()
_ESTIMATORS = ("snips", "ips", "dr")
_ESTIMATED_SLOTS = (
  "The estimated propensities are those of an item in a slot of any position. If the logging policy"
  " prefers positions for items, values by iips are wrong; compare with pbm, and log propensities."
)


@dataclasses.dataclass(frozen=True)
class Mixture:
  """A policy that draws one of several, with their shares as probabilities, to draw the item.

      evaluate(log, {"mixed": Mixture([(0.7, vectors.policy()), (0.3, clauses.policy())])})

  Attributes:
    parts: shares, which add up to 1, and policies as `evaluate` takes them.
  """

  parts: Sequence[tuple[float, Any]]


PolicyLike = (
  TargetPolicy
  | RecommenderPolicy
  | TwoStageRecommender
  | np.ndarray
  | str
  | os.PathLike
  | Callable[[np.ndarray], Any]
  | Mixture
)


def evaluate(
  log: BanditLog | EvaluationLog,
  policies: Mapping[str, PolicyLike] | Iterable[TargetPolicy],
  estimators: Estimators | None = None,
  *,
  tables: EncodedTables | None = None,
  encoder: EncoderConfig = _DEFAULTS.encoder,
  reward_training: FitConfig = _DEFAULTS.ranker,
  reward: RewardConfig = _DEFAULTS.reward,
  workdir: str | os.PathLike | None = None,
  confidence: float = 0.95,
  seed: int = 0,
  progress: bool = True,
) -> Evaluation:
  """Estimates the value of each policy: the expected reward of one item that it shows.

  On a log of slates it is the expected sum of the rewards of a slate. A policy then draws each slot
  by itself, from the probabilities for the slot's row; what a recommender serves is a list.

  The mean reward of the logging policy comes first. DM and DR need a reward model, which is then
  fitted on this log by cross-fitting: each row is predicted by a model that has not seen it.

  Args:
    log: n rows with propensities that no policy has learned from.
    policies: by name. A recommender or its `policy()`; probabilities of the N items, [N] or
      [n, N]; a function of row numbers [m] that returns [m, N]; the path of a policy file; a
      `Mixture` of these; or a `TargetPolicy`. Or target policies that have their names.
    estimators: names in `evaluation.estimators.ESTIMATORS`, of slates in
      `evaluation.slate_estimators.SLATE_ESTIMATORS`, estimators, or a dict of them. None: snips,
      ips and dr; for slates those that fit what was logged, see `values.reported`.
    tables: users and items as codes; needed by the reward model of an `EvaluationLog`.
    encoder, reward_training: of the reward model, where it is `towers`.
    reward: which reward model predicts for DM and DR.
    workdir: keeps the reward model. None: it is fitted anew.
    confidence: of the intervals.
    seed: of folds, weights and the bootstrap.
    progress: whether to show progress bars.

  Raises:
    InputError: the log has no propensities, a policy does not fit the log, or an estimator is
      unknown.
  """
  if not isinstance(log, BanditLog | EvaluationLog):
    raise InputError(f"evaluate takes a BanditLog, got {type(log).__name__}")
  if isinstance(policies, RecommenderPolicy | TwoStageRecommender | np.ndarray):
    raise InputError('evaluate takes policies by name; pass {"ours": policy}')
  if isinstance(log, BanditLog):
    log = log.with_sequence_length(encoder.sequence_length)
  evaluation = log if isinstance(log, EvaluationLog) else EvaluationLog.of(log)
  if evaluation.slate_log is not None and evaluation.slate_log.estimated_propensities:
    evaluation = dataclasses.replace(evaluation, notes=(*evaluation.notes, _ESTIMATED_SLOTS))
  if estimators is None:
    estimators = values.reported(evaluation, _ESTIMATORS)
  chosen = values.chosen(evaluation, estimators)
  targets: Iterable[TargetPolicy]
  if isinstance(policies, Mapping):
    targets = [_target(name, policy, log, evaluation) for name, policy in policies.items()]
  else:
    targets = policies
  model: RewardModel | None = None
  if any(estimator.needs_model for estimator in chosen.values()):
    if tables is None:
      if not isinstance(log, BanditLog):
        raise InputError("DM and DR on an EvaluationLog need `tables` for their reward model")
      tables = EncodedTables.encode(log.schema, log.users, log.items)
    with _workspace(workdir) as workspace, bars(progress):
      if reward.reward_predictor == "bayesian":
        model = fit_bayesian_rewards(
          evaluation,
          tables,
          workspace,
          pessimism=reward.reward_pessimism,
          sampling=of_sweeps(reward.reward_sweeps, seed),
        )
      else:
        model = fit_reward_model(evaluation, tables, encoder, reward_training, workspace, seed=seed)
  estimates = values.evaluate(
    evaluation,
    tqdm(targets, unit="policy", desc="policies", disable=not progress),
    chosen,
    reward_model=model,
    confidence=confidence,
    seed=seed,
  )
  explained = None if model is None else model.explained(evaluation.rows)
  return Evaluation(evaluation, estimates, explained)


def estimate_propensities(
  log: BanditLog,
  *,
  encoder: EncoderConfig = _DEFAULTS.encoder,
  training: FitConfig = _DEFAULTS.behavior,
  workdir: str | os.PathLike | None = None,
  seed: int = 0,
) -> BanditLog:
  """The log with estimated propensities, by models of which items were shown to whom.

  Estimate them before you split the log. `TwoStageRecommender.fit` does so for training rows.

  Args:
    log: all rows.
    encoder, training: of the models.
    workdir: keeps the estimate. None: it is made anew.
    seed: of folds and weights.
  """
  config = Config(encoder=encoder, behavior=training, environment_seed=seed)
  log = log.with_sequence_length(encoder.sequence_length)
  with _workspace(workdir) as workspace:
    found, _ = propensities.estimate(config, log, workspace)
  estimated = log.with_propensities(found.values)
  return dataclasses.replace(estimated, notes=(*log.notes, found.note()))


@contextlib.contextmanager
def _workspace(workdir: str | os.PathLike | None) -> Iterator[Workspace]:
  with tempfile.TemporaryDirectory() as scratch:
    yield Workspace(pathlib.Path(workdir or scratch) / "stages")


def _target(
  name: str, policy: PolicyLike, log: BanditLog | EvaluationLog, evaluation: EvaluationLog
) -> TargetPolicy:
  """A policy on the rows of the log."""
  if isinstance(policy, TargetPolicy):
    return dataclasses.replace(policy, name=name)
  if isinstance(policy, Mixture):
    parts = [(share, _target(name, part, log, evaluation)) for share, part in policy.parts]
    return values.mixture(name, parts)
  if isinstance(policy, TwoStageRecommender):
    policy = policy.policy()
  if isinstance(policy, RecommenderPolicy):
    return policy.on(log, name)
  if isinstance(policy, str | os.PathLike):
    if not isinstance(log, BanditLog):
      raise InputError(f"{policy}: read policy files for an EvaluationLog with policy_file.read")
    ids = np.asarray(log.schema.item_id.vocabulary, object)
    return dataclasses.replace(policy_file.read(pathlib.Path(policy), evaluation, ids), name=name)
  if callable(policy):
    return TargetPolicy(name, "function", _checked(policy, evaluation.num_items), by_row=True)
  table = np.asarray(policy, np.float64)
  shape = len(evaluation), evaluation.num_items
  if table.shape not in (shape, shape[1:]):
    raise InputError(
      f"policy {name!r}: probabilities have shape {table.shape}; pass [{shape[1]}], one for each"
      f" item, or {list(shape)}, one for each row and item"
    )
  check_distribution(f"policy {name!r}", np.atleast_2d(table))
  if table.ndim == 1:
    return TargetPolicy(name, "array", lambda rows: np.broadcast_to(table, (len(rows), shape[1])))
  return TargetPolicy(name, "array", lambda rows: table[rows], by_row=True)


def _checked(policy: Callable[[np.ndarray], Any], num_items: int) -> ByRow:
  """The function of a policy; refuses answers of another shape."""

  def probabilities(rows: np.ndarray) -> np.ndarray:
    found, shape = np.asarray(policy(rows)), (len(rows), num_items)
    if found.shape != shape:
      raise InputError(
        f"the function returned {found.shape} for {len(rows)} rows; return {shape}, a probability"
        " for each item of the catalogue"
      )
    return found

  return probabilities
