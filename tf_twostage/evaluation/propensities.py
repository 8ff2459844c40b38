"""Estimated propensities, for a log that has none: a model of which items were shown to whom.

An item is modelled as a draw from a softmax over the catalogue. The logits are the log of the
item's share of all rows, plus a scale times the logits of a two-tower model of user and context.
Models are cross-fitted: the propensity of a row comes from a model that has not seen it. The
likelihood of unseen rows chooses the scale, and whether the towers use the user's id. Nothing in a
log can show that estimates are right where the logging policy used information that was not logged,
so they are marked as estimated in every result.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tf_twostage.config import Config, EncoderConfig, FitConfig
from tf_twostage.data.log import BanditLog
from tf_twostage.data.rows import LogRows
from tf_twostage.data.schema import Id
from tf_twostage.evaluation.cross_fitting import assign_folds, cross_fit
from tf_twostage.evaluation.evaluation_log import model_inputs, require_impressions
from tf_twostage.models.encoders import Codes, EncodedTables, TwoTower
from tf_twostage.policies import restricted
from tf_twostage.training.loop import fit
from tf_twostage.workspace import Workspace

_log = logging.getLogger(__name__)

_FOLDS = 3
# Embeddings start near zero, where the model equals the shares of items.
_STDDEV = 0.1
# Factors of the towers' logits, inverse temperatures: 0 ignores the towers.
SCALES = tuple(np.round(np.arange(0, 1.75, 0.125), 3).tolist())
_PAIRS_PER_CHUNK = 2**20
_BINS = 40  # of the calibration error: of equal width in log probability, from 1e-8 to 1


@dataclasses.dataclass(frozen=True, eq=False)
class Propensities:
  """Estimated propensities and diagnostics of the model, on rows that it has not seen.

  Attributes:
    values: [n] float32 in (0, 1].
    uses_ids: whether the towers use the user's id, or features alone.
    scale: the factor of the towers' logits.
    log_likelihood: mean over rows, nats.
    share_log_likelihood: the same for the items' shares alone.
    calibration_error: half the sum over bins of predicted probability of |expected - actual number
      of rows| / n; 0 is perfect, 1 the worst.
    floored: share of rows with an estimate below 1/n, which is raised to 1/n.
  """

  values: np.ndarray
  uses_ids: bool
  scale: float
  log_likelihood: float
  share_log_likelihood: float
  calibration_error: float
  floored: float

  def facts(self) -> dict[str, Any]:
    """All but the values, JSON-able."""
    return {name: fact for name, fact in vars(self).items() if name != "values"}

  def note(self) -> str:
    """One sentence for reports."""
    features = "ids and features" if self.uses_ids else "features"
    source = f"a model of which items were shown, by {features} of users"
    if not self.scale:
      source = "the items' shares of all rows, which no user feature improved on"
    return (
      f"propensities are ESTIMATED, by {source} (calibration error"
      f" {100 * self.calibration_error:.1f}%, {100 * self.floored:.1f}% of rows at the floor 1/n);"
      " training weights and all values depend on them: log propensities when you can"
    )


def estimate(config: Config, data: BanditLog, workspace: Workspace) -> tuple[Propensities, str]:
  """Estimates the propensities of all rows, or loads a finished estimate; with its stage's name.

  Rewards are not used. `config.behavior` holds the settings of the fit.

  Raises:
    InputError: the rows are no impressions: what users chose is not what they were shown.
  """
  require_impressions(data)
  inputs = {
    "data": data.fingerprint(),
    "encoder": dataclasses.asdict(_encoder(config)),
    "fit": dataclasses.asdict(config.behavior),
    "folds": _FOLDS,
    "scales": SCALES,
    "propensities": "estimated",
    "seed": config.environment_seed,
  }
  arrays, stage = workspace.arrays("propensities", inputs, lambda: vars(cross_fitted(config, data)))
  found = Propensities(arrays.pop("values"), **{n: fact.item() for n, fact in arrays.items()})
  _log.warning("%s", found.note())
  return found, stage


def cross_fitted(config: Config, data: BanditLog) -> Propensities:
  """Fits the models and predicts each row's propensity by one that has not seen it."""
  log, floor = data.rows, 1 / len(data.rows)
  has_features = any(not isinstance(feature, Id) for feature in data.schema.user)
  tried = [False] * has_features + [True] * data.schema.user_id.embedded
  fitted = [_fit(config, data, uses_ids) for uses_ids in tried]
  likelihoods = np.stack([log_probs.mean(axis=0) for *_, log_probs in fitted])
  kind, place = np.unravel_index(likelihoods.argmax(), likelihoods.shape)
  folds, models, log_probs = fitted[kind]
  values = np.exp(log_probs[:, place])
  return Propensities(
    values=np.clip(values, floor, 1.0).astype(np.float32),
    uses_ids=tried[kind],
    scale=SCALES[place],
    log_likelihood=float(likelihoods[kind, place]),
    share_log_likelihood=float(likelihoods[kind, SCALES.index(0.0)]),
    calibration_error=_calibration_error(folds, models, log, SCALES[place]),
    floored=float((values < floor).mean()),
  )


class _LoggingPolicy(tfrs.Model):
  """Softmax of the log share of each item plus the logits of two towers."""

  def __init__(
    self, tables: EncodedTables, encoder: EncoderConfig, config: FitConfig, shares: np.ndarray
  ):
    super().__init__()
    self._towers = TwoTower.of(tables, encoder, config, use_context=True, item_bias=True)
    self._context_lookup = tables.context_lookup
    self._users: Codes = tables.users
    self._log_shares = tf.constant(np.log(shares), tf.float32)
    self._loss_mean = tf.keras.metrics.Mean("mean_loss")

  def _codes(self, inputs) -> Codes:
    return {**inputs["user"], **self._context_lookup(inputs["context"])}

  def call(self, inputs) -> tf.Tensor:
    """The towers' logits, [B, N]; -inf for items that could not be shown."""
    return restricted(self._towers(self._codes(inputs)), inputs.get("available"))

  def log_probs(self, logits: tf.Tensor, scale: float) -> tf.Tensor:
    """Log probability of every item from the towers' logits: [B, N] to [B, N]."""
    scaled = tf.where(logits == -np.inf, logits, scale * logits)
    return tf.nn.log_softmax(self._log_shares + scaled)

  def compute_loss(self, inputs, training: bool = False) -> tf.Tensor:
    """Negative log likelihood of the logged items."""
    loss = tf.reduce_mean(
      tf.nn.sparse_softmax_cross_entropy_with_logits(
        inputs["action"], self._log_shares + self(inputs)
      )
    )
    self._loss_mean.update_state(loss)
    return loss + self._towers.touched_penalty(self._codes(inputs))

  def chunks(self, log: LogRows, rows: np.ndarray) -> Iterator[tuple[tf.Tensor, np.ndarray]]:
    """The towers' logits and the logged items of some rows, chunk by chunk."""
    size = max(1, _PAIRS_PER_CHUNK // len(self._log_shares))
    for start in range(0, len(rows), size):
      some = rows[start : start + size]
      yield self(model_inputs(log, some, self._users)), log.action[some]


def _fit(
  config: Config, data: BanditLog, uses_ids: bool
) -> tuple[np.ndarray, list[_LoggingPolicy], np.ndarray]:
  """Folds, models and log probabilities [n, len(SCALES)] of one kind of model, cross-fitted."""
  seed, settings, log = config.environment_seed, config.behavior, data.rows
  user_side = tuple(
    dataclasses.replace(f, embedded=uses_ids) if isinstance(f, Id) else f for f in data.schema.user
  )
  schema = dataclasses.replace(data.schema, user=user_side)
  tables = EncodedTables.encode(schema, data.users, data.items)

  def fit_fold(fold: int, rows: np.ndarray) -> _LoggingPolicy:
    others = log.select(rows)
    tf.keras.utils.set_random_seed(seed)
    model = _LoggingPolicy(tables, _encoder(config), settings, shares(others, data.num_items))
    batches = others.batches(tables.users, batch_size=settings.batch_size, seed=seed)
    name = f"propensities, fold {fold + 1} of {_FOLDS}"
    fit(model, batches, settings, rows=len(others), name=name)
    return model

  def predict(model: _LoggingPolicy, rows: np.ndarray) -> np.ndarray:
    return np.concatenate(
      [
        np.stack([tf.gather(model.log_probs(z, s), a, batch_dims=1) for s in SCALES], axis=1)
        for z, a in model.chunks(log, rows)
      ]
    )

  # A model of features sees no other row of a user, or it would recognise users by what they were
  # shown. A model of ids needs other rows of the same user; and a few users are too few for folds.
  few = len(np.unique(log.user_index)) < 10 * _FOLDS
  groups = None if uses_ids or few else log.user_index
  folds = assign_folds(len(log), _FOLDS, groups=groups, seed=seed)
  return folds, *cross_fit(fit_fold, predict, folds)


def _calibration_error(
  folds: np.ndarray, models: list[_LoggingPolicy], log: LogRows, scale: float
) -> float:
  expected, shown = np.zeros(_BINS), np.zeros(_BINS)
  for fold, model in enumerate(models):
    for logits, actions in model.chunks(log, np.flatnonzero(folds == fold)):
      log_p = model.log_probs(logits, scale).numpy()
      place = np.clip(-log_p / np.log(1e8) * _BINS, 0, _BINS - 1).astype(int)
      expected += np.bincount(place.ravel(), np.exp(log_p, dtype=np.float64).ravel(), _BINS)
      shown += np.bincount(place[np.arange(len(actions)), actions], minlength=_BINS)
  return float(np.abs(expected - shown).sum() / 2 / len(log))


def shares(log: LogRows, num_items: int) -> np.ndarray:
  """The share of each item in the rows that could show it, [N], which sum to 1; none is 0.

  To the rows of each item 1 is added, or less in a catalogue so large that this would add more
  than a tenth of all rows.
  """
  extra = min(1.0, 0.1 * len(log) / num_items)
  counts = np.bincount(log.action, minlength=num_items) + extra
  if log.catalogues is not None and log.catalogue is not None:
    counts *= len(log) / np.maximum(log.catalogues.counts(log.catalogue), 1)
  return counts / counts.sum()


def _encoder(config: Config) -> EncoderConfig:
  return dataclasses.replace(config.encoder, embedding_stddev=_STDDEV)
