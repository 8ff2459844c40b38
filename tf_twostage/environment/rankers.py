"""The second stage of an environment: fitted to rewards, fitted to scores, or given."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_twostage.config import Config
from tf_twostage.data.log import BanditLog
from tf_twostage.data.rows import LogRows, TrainingRows
from tf_twostage.data.splits import Splits
from tf_twostage.evaluation.evaluator import Scorer
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.models.external import ExternalRanker, digest
from tf_twostage.models.generator import RankerLogits
from tf_twostage.models.ranker import ImitatingRanker, Ranker, usual_logit
from tf_twostage.models.slate_ranker import SlateRanker, TowerRanker
from tf_twostage.training.checkpoints import restore_weights, save_weights
from tf_twostage.training.fitting import fit
from tf_twostage.workspace import Workspace, write_json

_SCORES = "scores.npy"
_ROWS_PER_CHUNK = 8192


def fitted_ranker(
  config: Config,
  tables: EncodedTables,
  log: TrainingRows,
  workspace: Workspace,
  *,
  depends_on: str,
  prior: float = 0.0,
  scale: float = 1.0,
  stage: str = "ranker",
) -> tuple[Ranker, str]:
  """A ranker fitted on the rewards of a log, and the name of its stage.

  Args:
    config: settings of the ranker.
    tables: users and items as codes.
    log: the rows.
    workspace: keep what is built.
    depends_on: what the log follows from.
    prior: logit of the usual reward.
    scale: what rewards are divided by.
    stage: what the stage is called.
  """
  seed = config.environment_seed
  tf.keras.utils.set_random_seed(seed)
  towers = _towers(config, tables)
  ranker = Ranker(towers, tables.context_lookup, prior)

  def build(directory: pathlib.Path) -> None:
    batches = log.batches(tables.users, batch_size=config.ranker.batch_size, seed=seed)
    if scale != 1:
      batches = batches.map(lambda batch: {**batch, "reward": batch["reward"] / scale})
    with log.reading():
      fit(ranker, batches, config.ranker, len(log), stage.replace("_", " "))
    save_weights(towers, directory)

  inputs = {
    "log": depends_on,
    "encoder": dataclasses.asdict(config.encoder),
    "fit": dataclasses.asdict(config.ranker),
    "seed": seed,
  }
  directory = workspace.stage(stage, inputs, build)
  restore_weights(towers, directory)
  return ranker, directory.name


def _towers(config: Config, tables: EncodedTables, **options: bool) -> TwoTower:
  settings = config.ranker
  return TwoTower(
    tables,
    config.encoder,
    l2=settings.l2,
    sparse_l2=settings.sparse_l2,
    use_context=True,
    **options,
  )


class SecondStage(NamedTuple):
  """A second stage.

  Attributes:
    logits: its scores of the catalogue, or of some items.
    of_slates: the same for an export.
    stage: differs wherever the scores do.
    facts: numbers worth reporting.
    notes: what a reader should know; sentences.
  """

  logits: RankerLogits
  of_slates: SlateRanker
  stage: str
  facts: Mapping[str, Any] = {}
  notes: tuple[str, ...] = ()


class RewardModel(NamedTuple):
  """What a reward is expected to be.

  Attributes:
    ranker: its logits are of the reward over `scale`.
    scale: the largest reward, at least 1.
    stage: name of its stage.
  """

  ranker: Ranker
  scale: float
  stage: str

  @property
  def expected_rewards(self) -> Scorer:
    """Maps a batch to the expected reward of each item, [B, N]."""
    logits = self.ranker.frozen()
    return lambda batch: self.scale * tf.sigmoid(logits(batch))

  def as_ranker(self) -> SecondStage:
    """Items in the order of the reward that is expected of them."""
    return SecondStage(
      self.ranker.frozen(),
      TowerRanker(self.ranker.towers),
      self.stage,
      {"ranker": "fitted to the rewards of the training rows"},
    )


def reward_model(
  config: Config, tables: EncodedTables, log: TrainingRows, workspace: Workspace, *, depends_on: str
) -> RewardModel:
  """A pointwise ranker of a log whose rewards may be any numbers >= 0, and rare.

  Args:
    config: settings of the ranker.
    tables: users and items as codes.
    log: the training rows.
    workspace: keep what is built.
    depends_on: what the log follows from.
  """
  rewards = log.rewards()
  scale = max(1.0, rewards.largest)
  ranker, stage = fitted_ranker(
    config,
    tables,
    log,
    workspace,
    depends_on=depends_on,
    prior=usual_logit(rewards.total / scale, len(log)),
    scale=scale,
    stage="reward_model",
  )
  return RewardModel(ranker, scale, stage)


def imitated(
  config: Config,
  tables: EncodedTables,
  data: BanditLog,
  held_out: Splits,
  workspace: Workspace,
  *,
  depends_on: str,
) -> SecondStage:
  """Towers fitted to the scores that the log's ranker gave, and how near they come on test rows.

  Args:
    config: settings of the ranker.
    tables: users and items as codes.
    data: a log with ranker scores.
    held_out: which rows train, and which test.
    workspace: keep what is built.
    depends_on: what the rows follow from.
  """
  assert data.ranker_score is not None
  seed = config.environment_seed
  context = {**data.rows.context, ImitatingRanker.SCORE: data.ranker_score}
  log = dataclasses.replace(data.rows, context=context)
  train, test = log.select(held_out.train), log.select(held_out.test)
  scores = train.context[ImitatingRanker.SCORE]
  tf.keras.utils.set_random_seed(seed)
  towers = _towers(config, tables, item_bias=True)
  spread = float(scores.std())
  ranker = ImitatingRanker(towers, tables.context_lookup, float(scores.mean()), spread or 1.0)

  def build(directory: pathlib.Path) -> None:
    batches = train.batches(tables.users, batch_size=config.ranker.batch_size, seed=seed)
    fit(ranker, batches, config.ranker, len(train), "ranker, to its scores")
    save_weights(towers, directory)
    write_json(directory / "fit.json", _agreement(ranker, tables, test))

  inputs = {
    "rows": depends_on,
    "encoder": dataclasses.asdict(config.encoder),
    "fit": dataclasses.asdict(config.ranker),
    "seed": seed,
  }
  directory = workspace.stage("imitated_ranker", inputs, build)
  restore_weights(towers, directory)
  facts = json.loads((directory / "fit.json").read_text(encoding="utf-8"))
  note = (
    f"the ranker is a two-tower model fitted to the log's scores: on test rows R² is"
    f" {facts['r2']:.3f} and the correlation {facts['correlation']:.3f}; what it misses, training"
    " and values miss too"
  )
  return SecondStage(
    ranker.frozen(),
    TowerRanker(ranker.scaled_towers()),
    directory.name,
    {"ranker": "fitted to the log's ranker scores", "ranker_fit": facts},
    (note, *_scale_notes(data.ranker_score)),
  )


def _agreement(ranker: ImitatingRanker, tables: EncodedTables, log: LogRows) -> dict[str, float]:
  rows = {
    "user": {name: tf.gather(codes, log.user_index) for name, codes in tables.users.items()},
    "context": dict(log.context),
    "action": log.action,
  }
  batches = tf.data.Dataset.from_tensor_slices(rows).batch(_ROWS_PER_CHUNK)
  predicted = np.concatenate([ranker.pair_scores(batch) for batch in batches]).astype(np.float64)
  given = log.context[ImitatingRanker.SCORE]
  with np.errstate(divide="ignore", invalid="ignore"):  # NaN where scores do not differ
    r2 = 1 - np.mean((given - predicted) ** 2) / given.var()
    correlation = np.corrcoef(given, predicted)[0, 1]
  return {"r2": float(r2), "correlation": float(correlation), "rows": len(log)}


def given(path: str | None, data: BanditLog) -> ExternalRanker | None:
  """The model at `path`, loaded and checked against the data.

  Raises:
    InputError: as `ExternalRanker`.
  """
  if path is None:
    return None
  ranker = ExternalRanker(path, data.schema, data.items)
  # What it cannot do, a few pairs show before anything is trained.
  ranker.check(data.users)
  return ranker


def external_ranker(ranker: ExternalRanker, data: BanditLog, workspace: Workspace) -> SecondStage:
  """A given ranker with its scores of all pairs, a stage of their own.

  Args:
    ranker: the model.
    data: users and items.
    workspace: keep the scores.
  """
  inputs = {"model": digest(ranker.path), "data": data.fingerprint()}
  directory = workspace.stage(
    "ranker_scores",
    inputs,
    lambda directory: np.save(directory / _SCORES, ranker.scores(data.users)),
  )
  scores = np.load(directory / _SCORES)
  table = tf.constant(scores)

  def logits(batch: Mapping[str, Any], items: tf.Tensor | None = None) -> tf.Tensor:
    users = tf.cast(batch["user_index"], tf.int32)
    if items is None:
      return tf.gather(table, users)
    # The pairs alone: rows of all items would cost what the catalogue does.
    pairs = users[:, tf.newaxis] * table.shape[1] + items
    return tf.gather(tf.reshape(table, [-1]), pairs)

  return SecondStage(
    logits,
    ranker,
    directory.name,
    {"ranker": f"given: {ranker.path}"},
    _scale_notes(scores),
  )


def _scale_notes(scores: np.ndarray) -> tuple[str, ...]:
  if scores.min() < 0 or scores.max() > 1:
    return ()
  return (
    "all ranker scores lie in [0, 1], as probabilities do, and are taken for logits: the second"
    " stage hardly prefers one item to another then; give logits instead",
  )
