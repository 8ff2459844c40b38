"""The reward model of DM and DR: predicted rewards of every item, by models of other users."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from tf_twostage.config import EncoderConfig, FitConfig
from tf_twostage.data.rows import LogRows
from tf_twostage.errors import InputError
from tf_twostage.evaluation.cross_fitting import assign_folds, cross_fit
from tf_twostage.evaluation.evaluation_log import EvaluationLog, model_inputs
from tf_twostage.models import probit
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.models.probit import Posterior
from tf_twostage.models.ranker import Ranker, usual_logit
from tf_twostage.rewards import from_logits
from tf_twostage.training.loop import fit
from tf_twostage.workspace import Workspace

_FOLDS = 5
_ROWS_PER_CHUNK = 1024
# An item that the log never shows keeps its initial vector. A small one leaves its prediction near
# the mean reward, whatever the width of the towers.
_EMBEDDING_STDDEV = 0.1
# With the ranker's L2 of 1e-4 the variance explained out of fold falls with the number of epochs:
# on MovieLens-1M (30,200 rows) from 26% after 2 to 16% after 20. With this value: 26% and 27%.
_L2 = 1e-3


class RewardModel:
  """Predicted rewards of the rows of a log, each by a model that was fitted without it."""

  def __call__(self, rows: np.ndarray) -> np.ndarray:
    """Predicted rewards of every item in these rows of the log: [m] to [m, N] float32."""
    raise NotImplementedError

  def logged(self, actions: np.ndarray) -> np.ndarray:
    """Predicted rewards of the logged items of all rows, [n] to [n]."""
    raise NotImplementedError

  def explained(self, log: LogRows) -> float:
    """The share of the variance of the log's rewards that the model explains.

    0 is no better than the mean reward, below 0 worse; NaN where all rewards are the same.
    """
    errors = log.reward - self.logged(log.action)
    variance = log.reward.var()
    return float(1 - (errors**2).mean() / variance) if variance else np.nan


@dataclasses.dataclass(frozen=True, eq=False)
class TowerRewards(RewardModel):
  """rhat(x_i, a) = scale σ(prior + query_i · item_a), with prior and items of the row's fold.

  Attributes:
    queries: [n, D], one for each row of the log.
    items: [F, N, D], of each fold.
    priors: [F], logits of the mean reward.
    folds: [n] int, the fold of each row; its models were fitted without it.
    scale: the reward of the label 1.
  """

  queries: np.ndarray
  items: np.ndarray
  priors: np.ndarray
  folds: np.ndarray
  scale: float

  def __call__(self, rows: np.ndarray) -> np.ndarray:
    logits = np.empty((len(rows), self.items.shape[1]), np.float32)
    folds = self.folds[rows]
    for fold in np.unique(folds):
      of_fold = folds == fold
      logits[of_fold] = self.queries[rows[of_fold]] @ self.items[fold].T + self.priors[fold]
    return from_logits(logits, self.scale).numpy()

  def logged(self, actions: np.ndarray) -> np.ndarray:
    items = self.items[self.folds, actions]
    logits = (self.queries * items).sum(axis=1) + self.priors[self.folds]
    return from_logits(logits, self.scale).numpy()


@dataclasses.dataclass(frozen=True, eq=False)
class BayesianRewards(RewardModel):
  """rhat(x_i, a) = scale (mean - pessimism · deviation) of P(r = 1) over the posterior.

  Attributes:
    users: [S, V, 1 + D] draws of the users of each fold, from the posterior without the fold.
    items: [F, S, N, 1 + D] draws of the items, of each fold.
    places: [n] int, of each row in the V.
    folds: [n] int.
    scale: the reward of the label 1.
    pessimism: how many standard deviations are taken off; a reward is at least 0.
  """

  users: np.ndarray
  items: np.ndarray
  places: np.ndarray
  folds: np.ndarray
  scale: float
  pessimism: float

  def __call__(self, rows: np.ndarray) -> np.ndarray:
    out = np.empty((len(rows), self.items.shape[2]), np.float32)
    folds = self.folds[rows]
    for fold in np.unique(folds):
      of_fold = folds == fold
      users = self.users[:, self.places[rows[of_fold]]]
      out[of_fold] = self._rewards(*Posterior(users, self.items[fold]).moments())
    return out

  def logged(self, actions: np.ndarray) -> np.ndarray:
    out = np.empty(len(actions))
    for fold, items in enumerate(self.items):
      rows = np.flatnonzero(self.folds == fold)
      pairs = Posterior(self.users, items).pair_moments(self.places[rows], actions[rows])
      out[rows] = self._rewards(*pairs)
    return out

  def _rewards(self, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    return self.scale * np.maximum(mean - self.pessimism * deviation, 0)


def fit_bayesian_rewards(
  evaluation: EvaluationLog,
  tables: EncodedTables,
  workspace: Workspace,
  *,
  pessimism: float,
  sampling: probit.Sampling,
) -> BayesianRewards:
  """Samples the posterior of `models.probit` for each fold on all other rows, or loads the draws.

  Users of the fold are predicted by their features, and with the spread of users.

  Raises:
    InputError: the log has fewer than two users, or rows.
  """
  log, num_users = evaluation.rows, tables.schema.num_users
  folds, scale = _folds(evaluation, sampling.seed), log.rewards().scale
  users, places = np.unique(folds * num_users + log.user_index, return_inverse=True)

  def draws() -> dict[str, np.ndarray]:
    posteriors = [
      probit.of_log(log.select(folds != fold), tables, sampling, scale)
      for fold in range(folds.max() + 1)
    ]
    of_folds = [
      posterior.users[:, users[users // num_users == fold] % num_users]
      for fold, posterior in enumerate(posteriors)
    ]
    items = np.stack([posterior.items for posterior in posteriors])
    return {"users": np.concatenate(of_folds, axis=1), "items": items}

  inputs = {"log": evaluation.stage, "sampling": sampling.inputs()}
  stored, _ = workspace.arrays("bayesian_folds", inputs, draws)
  return BayesianRewards(
    **stored, places=places.reshape(-1), folds=folds, scale=scale, pessimism=pessimism
  )


def _folds(evaluation: EvaluationLog, seed: int) -> np.ndarray:
  """The fold of each row, [n]; users stay together where their rows depend on each other."""
  units = len(evaluation) if evaluation.groups is None else len(np.unique(evaluation.groups))
  if units < 2:
    raise InputError(
      f"the evaluation log has rows of {units} user: its values need at least two; log more users"
    )
  return assign_folds(len(evaluation), min(_FOLDS, units), groups=evaluation.groups, seed=seed)


def fit_reward_model(
  evaluation: EvaluationLog,
  tables: EncodedTables,
  encoder: EncoderConfig,
  config: FitConfig,
  workspace: Workspace,
  *,
  seed: int,
) -> TowerRewards:
  """Fits a pointwise ranker for each fold on all other rows, or loads the finished ones.

  Folds keep users together where rows of a user depend on each other. There are fewer folds where
  there are fewer users. Models do not see user ids.

  Raises:
    InputError: the log has fewer than two users, or rows.
  """
  log, name = evaluation.rows, tables.schema.user_id.name
  # Ids carry no information about users that a fold has not seen.
  users = {n: tf.zeros_like(v) if n == name else v for n, v in tables.users.items()}
  scale = log.rewards().scale
  folds = _folds(evaluation, seed)
  num_folds = int(folds.max()) + 1
  encoder = dataclasses.replace(encoder, embedding_stddev=_EMBEDDING_STDDEV)
  config = dataclasses.replace(config, l2=_L2)

  def fit_fold(fold: int, rows: np.ndarray) -> tuple[Ranker, float]:
    seen = log.select(rows)
    tf.keras.utils.set_random_seed(seed + fold)
    towers = TwoTower.of(tables, encoder, config, use_context=True, item_bias=True)
    prior = usual_logit(seen.rewards().total / scale, len(seen))
    ranker = Ranker(towers, tables.context_lookup, prior, scale)
    batches = seen.batches(users, batch_size=config.batch_size, seed=seed)
    name = f"reward model {fold + 1} of {num_folds}"
    fit(ranker, batches, config, rows=len(seen), name=name)
    return ranker, prior

  def queries(model: tuple[Ranker, float], rows: np.ndarray) -> np.ndarray:
    ranker, chunks = model[0], np.array_split(rows, -(-len(log) // _ROWS_PER_CHUNK))
    inputs = (model_inputs(log, chunk, users) for chunk in chunks)
    return np.concatenate([ranker.towers.query(ranker.codes(batch)) for batch in inputs])

  def fitted() -> dict[str, np.ndarray]:
    models, of_rows = cross_fit(fit_fold, queries, folds)
    items = np.stack([ranker.towers.candidates() for ranker, _ in models])
    priors = np.array([prior for _, prior in models], np.float32)
    return {"queries": of_rows, "items": items, "priors": priors}

  stored, _ = workspace.arrays(
    "reward_models",
    {
      "log": evaluation.stage,
      "encoder": dataclasses.asdict(encoder),
      "fit": dataclasses.asdict(config),
      "folds": num_folds,
      "seed": seed,
    },
    fitted,
  )
  return TowerRewards(**stored, folds=folds, scale=scale)
