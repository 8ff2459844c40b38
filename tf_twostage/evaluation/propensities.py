"""Propensities of a log that has none: a model of what was shown to whom.

The item is a draw from a softmax over the catalogue: log of how often the item was shown at all,
plus a two-tower model of the user in context. Nobody tells the model its own row: rows are dealt
into folds, and the propensity of a row comes from models of the other folds. How much of the
towers to believe, between nothing (what is shown does not depend on the user) and more than they
say, is chosen by the likelihood of rows they have not seen; so is whether they may know the user's
id. Estimates are marked as such wherever they go: nothing a log says can show that they are right,
where the logging policy looked at what was not logged.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tf_twostage.config import Config, EncoderConfig, FitConfig
from tf_twostage.data.log import BanditLog
from tf_twostage.data.rows import LogRows
from tf_twostage.data.schema import Id
from tf_twostage.evaluation.cross_fitting import assign_folds
from tf_twostage.models.encoders import Codes, EncodedTables, FeatureLookup, TwoTower
from tf_twostage.training.loop import fit
from tf_twostage.workspace import Workspace, write_json

_log = logging.getLogger(__name__)

_FOLDS = 3
# Embeddings start near zero, where the model starts as the shares of items alone.
_STDDEV = 0.1
# What the towers' logits are multiplied with: 0 ignores them, 1 takes them as they are. The
# inverse of a temperature.
TRUST = tuple(np.round(np.arange(0, 1.75, 0.125), 3).tolist())
_PAIRS_PER_CHUNK = 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class Propensities:
  """An estimate and what to think of it.

  Attributes:
    values: [n] float32 in (0, 1].
    knows_ids: whether the model knows the user's id, or features only.
    trust: see `TRUST`.
    log_likelihood: mean over rows the model has not seen, nats.
    of_shares: the same of the items' shares alone; what is above it is what users tell.
    calibration_error: between what the model says of an item in a row and how often it was shown,
      over bins of what it says, as a share of all rows; 0 is right, 1 is wrong everywhere.
    floored: share of the rows below 1/n, which n rows cannot tell from it, and raised to it.
  """

  values: np.ndarray
  knows_ids: bool
  trust: float
  log_likelihood: float
  of_shares: float
  calibration_error: float
  floored: float

  def facts(self) -> dict[str, Any]:
    """All but the values, JSON-able."""
    facts = dataclasses.asdict(self)
    del facts["values"]
    return facts

  def note(self) -> str:
    """For people."""
    if self.trust:
      reader = "ids and features" if self.knows_ids else "features"
      source = f"a model of which items were shown, by {reader} of users"
    else:
      source = "the items' shares of all rows, which no user feature improved on"
    return (
      f"propensities are ESTIMATED, by {source} (calibration error"
      f" {100 * self.calibration_error:.1f}%, {100 * self.floored:.1f}% of rows at the floor 1/n);"
      " training weights and all values stand on them: log propensities when you can"
    )


def estimate(config: Config, data: BanditLog, workspace: Workspace) -> tuple[Propensities, str]:
  """Builds, or finds built, the propensities of a log that has none.

  All rows take part: rewards are not looked at, and each row's own item is kept from its model.

  Args:
    config: `behavior` says how the models are fitted.
    data: the log with its users and items.
    workspace: keep the estimate.

  Returns:
    the estimate and the name of its stage.
  """
  seed = config.environment_seed

  def build(directory: pathlib.Path) -> None:
    found = cross_fitted(config, data)
    np.save(directory / "propensities.npy", found.values)
    write_json(directory / "facts.json", found.facts())

  inputs = {
    "data": data.fingerprint(),
    "encoder": dataclasses.asdict(_encoder(config)),
    "fit": dataclasses.asdict(config.behavior),
    "folds": _FOLDS,
    "trust": TRUST,
    "propensities": "estimated",
    "seed": seed,
  }
  stage = workspace.stage("propensities", inputs, build)
  facts = json.loads((stage / "facts.json").read_text(encoding="utf-8"))
  found = Propensities(np.load(stage / "propensities.npy"), **facts)
  _log.warning("%s", found.note())
  return found, stage.name


def cross_fitted(config: Config, data: BanditLog) -> Propensities:
  """Fits the models and reads each row's propensity from those that have not seen it.

  Args:
    config: settings.
    data: the log with its users and items.
  """
  candidates = [_Candidate.fit(config, data, knows_ids) for knows_ids in _readers(data)]
  scores = [candidate.log_probs.mean(axis=0) for candidate in candidates]
  best = int(np.argmax([score.max() for score in scores]))
  place = int(scores[best].argmax())
  chosen, trust = candidates[best], TRUST[place]
  log, floor = data.rows, 1 / len(data.rows)
  values = np.exp(chosen.log_probs[:, place])
  return Propensities(
    values=np.clip(values, floor, 1.0).astype(np.float32),
    knows_ids=chosen.knows_ids,
    trust=trust,
    log_likelihood=float(scores[best][place]),
    of_shares=float(scores[best][TRUST.index(0.0)]),
    calibration_error=chosen.calibration_error(log, trust),
    floored=float((values < floor).mean()),
  )


class _LoggingPolicy(tfrs.Model):
  """log share of each item + towers of users in context and items."""

  def __init__(
    self, tables: EncodedTables, encoder: EncoderConfig, config: FitConfig, shares: np.ndarray
  ):
    super().__init__()
    self._towers = TwoTower.of(tables, encoder, config, use_context=True, item_bias=True)
    self._context_lookup: FeatureLookup = tables.context_lookup
    self._users: Codes = tables.users
    self._log_shares = tf.constant(np.log(shares), tf.float32)
    self._loss_mean = tf.keras.metrics.Mean("mean_loss")

  def call(self, inputs) -> tf.Tensor:
    """What the towers add to the items' log shares, [B, N]."""
    return self._towers(self._codes(inputs))

  def _codes(self, inputs) -> Codes:
    return {**inputs["user"], **self._context_lookup(inputs["context"])}

  def log_probs(self, added: tf.Tensor, trust: float) -> tf.Tensor:
    """Log probability of every item, from what `call` says of some rows: [B, N] to [B, N]."""
    return tf.nn.log_softmax(self._log_shares + trust * added)

  def compute_loss(self, inputs, training: bool = False) -> tf.Tensor:
    """Negative log likelihood of what was shown."""
    loss = tf.reduce_mean(
      tf.nn.sparse_softmax_cross_entropy_with_logits(
        inputs["action"], self._log_shares + self(inputs)
      )
    )
    self._loss_mean.update_state(loss)
    return loss + self._towers.touched_penalty(self._codes(inputs))

  def chunks(self, log: LogRows) -> Iterator[tuple[slice, dict[str, Any]]]:
    """Rows, and what the model reads of them."""
    size = max(1, _PAIRS_PER_CHUNK // len(self._log_shares))
    for start in range(0, len(log), size):
      rows = slice(start, start + size)
      users = log.user_index[rows]
      yield (
        rows,
        {
          "user": {name: tf.gather(codes, users) for name, codes in self._users.items()},
          "context": {name: tf.constant(values[rows]) for name, values in log.context.items()},
        },
      )


class _Candidate(NamedTuple):
  """One kind of model, fitted without each fold.

  Attributes:
    knows_ids: whether it knows the user's id.
    models: by fold.
    folds: [n] int.
    log_probs: [n, len(TRUST)], of what was shown, by the model that has not seen the row.
  """

  knows_ids: bool
  models: list[_LoggingPolicy]
  folds: np.ndarray
  log_probs: np.ndarray

  @classmethod
  def fit(cls, config: Config, data: BanditLog, knows_ids: bool) -> _Candidate:
    seed, settings, log = config.environment_seed, config.behavior, data.rows
    user_side = tuple(
      dataclasses.replace(f, embedded=knows_ids) if isinstance(f, Id) else f
      for f in data.schema.user
    )
    schema = dataclasses.replace(data.schema, user=user_side)
    tables = EncodedTables.encode(schema, data.users, data.items)
    folds = assign_folds(len(log), _FOLDS, groups=_groups(log, knows_ids), seed=seed)
    models = []
    log_probs = np.empty((len(log), len(TRUST)), np.float32)
    for fold in range(_FOLDS):
      others, own = log.select(folds != fold), np.flatnonzero(folds == fold)
      tf.keras.utils.set_random_seed(seed)
      model = _LoggingPolicy(tables, _encoder(config), settings, shares(others, data.num_items))
      batches = others.batches(tables.users, batch_size=settings.batch_size, seed=seed)
      name = f"propensities, fold {fold + 1} of {_FOLDS}"
      fit(model, batches, settings, rows=len(others), name=name)
      held_out = log.select(own)
      for rows, inputs in model.chunks(held_out):
        added, actions = model(inputs), held_out.action[rows]
        log_probs[own[rows]] = np.stack(
          [tf.gather(model.log_probs(added, t), actions, batch_dims=1) for t in TRUST], axis=1
        )
      models.append(model)
    return cls(knows_ids, models, folds, log_probs)

  def calibration_error(self, log: LogRows, trust: float, bins: int = 40) -> float:
    """See `Propensities`; bins are of equal width in log probability, 1e-8 to 1."""
    expected, shown = np.zeros(bins), np.zeros(bins)
    for fold, model in enumerate(self.models):
      held_out = log.select(self.folds == fold)
      for rows, inputs in model.chunks(held_out):
        log_p = model.log_probs(model(inputs), trust).numpy()
        place = np.clip((-log_p / np.log(1e8) * bins).astype(int), 0, bins - 1)
        expected += np.bincount(place.ravel(), np.exp(log_p, dtype=np.float64).ravel(), bins)
        actions = held_out.action[rows]
        shown += np.bincount(place[np.arange(len(actions)), actions], minlength=bins)
    return float(np.abs(expected - shown).sum() / 2 / len(log))


def shares(log: LogRows, num_items: int) -> np.ndarray:
  """Of all rows, how many show each item, [N]; smoothed, so that none is 0.

  Every item counts as shown once more, or less than that in a catalogue so large that this would
  be a tenth of all rows.
  """
  extra = min(1.0, 0.1 * len(log) / num_items)
  counts = np.bincount(log.action, minlength=num_items) + extra
  return counts / counts.sum()


def _encoder(config: Config) -> EncoderConfig:
  return dataclasses.replace(config.encoder, embedding_stddev=_STDDEV)


def _readers(data: BanditLog) -> list[bool]:
  """Whether models shall know ids: both are tried where users have features and ids."""
  features = any(not isinstance(feature, Id) for feature in data.schema.user)
  return [*([False] if features else []), *([True] if data.schema.user_id.embedded else [])]


def _groups(log: LogRows, knows_ids: bool) -> np.ndarray | None:
  """Users, whose rows all go to one fold, lest a model knows a user by what it was shown.

  What an id means only other rows of the same user can say, so models of ids need these; and a
  handful of users cannot be dealt into folds.
  """
  few = len(np.unique(log.user_index)) < 10 * _FOLDS
  return None if knows_ids or few else log.user_index
