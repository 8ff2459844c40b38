"""The ranker of an environment: fitted to rewards, fitted to logged scores, or made elsewhere."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tf_twostage.config import Config, FitConfig
from tf_twostage.data.log import BanditLog
from tf_twostage.data.rows import LogRows
from tf_twostage.data.streamed import TrainingRows
from tf_twostage.environment.base import SecondStage
from tf_twostage.evaluation.evaluation_log import model_inputs
from tf_twostage.evaluation.evaluator import Scorer
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.models.external import ExternalRanker, digest
from tf_twostage.models.ranker import ImitatingRanker, Ranker, usual_logit
from tf_twostage.models.slate_ranker import TowerRanker
from tf_twostage.rewards import from_logits
from tf_twostage.training.checkpoints import restore_weights, save_weights
from tf_twostage.training.loop import fit
from tf_twostage.workspace import Workspace, read_numbers, write_json

_ROWS_PER_CHUNK = 8192


def fitted_ranker(
  config: Config,
  tables: EncodedTables,
  log: TrainingRows,
  workspace: Workspace,
  *,
  depends_on: str,
  prior: float = 0.0,
  stage: str = "ranker",
) -> SecondStage:
  """A ranker fitted on the rewards of a log; a stage.

  `depends_on` identifies the rows, and `prior` is the logit of their mean label.
  """
  seed, scale = config.environment_seed, log.rewards().scale

  def fresh(settings: FitConfig = config.ranker) -> Ranker:
    towers = TwoTower.of(tables, config.encoder, settings, use_context=True)
    return Ranker(towers, tables.context_lookup, prior, scale)

  tf.keras.utils.set_random_seed(seed)
  ranker = fresh()

  def build(directory: pathlib.Path) -> None:
    batches = log.batches(tables.users, batch_size=config.ranker.batch_size, seed=seed)
    with log.reading():
      fit(ranker, batches, config.ranker, rows=len(log), name=stage.replace("_", " "))
    save_weights(ranker.towers, directory)

  directory = workspace.stage(stage, {"log": depends_on, **_fit_inputs(config)}, build)
  restore_weights(ranker.towers, directory)

  def trainable() -> Ranker:
    # L2 would draw what few rows touch from where it was fitted to zero; Adagrad, which makes all
    # first steps equally long, within a hundred steps.
    copy = fresh(dataclasses.replace(config.ranker, l2=0.0))
    copy.towers.set_weights(ranker.towers.get_weights())
    return copy

  return SecondStage(
    ranker.frozen(), TowerRanker(ranker.towers), directory.name, trainable=trainable
  )


def fitted_to_rewards(
  config: Config, tables: EncodedTables, log: TrainingRows, workspace: Workspace, *, depends_on: str
) -> tuple[SecondStage, Scorer]:
  """Fits a pointwise ranker to rewards that may be any numbers >= 0, and rare.

  Returns:
    The ranker, which orders items by expected reward, and the expected reward of every item: maps
    a batch to [B, N].
  """
  rewards = log.rewards()
  scale = rewards.scale
  ranker = fitted_ranker(
    config,
    tables,
    log,
    workspace,
    depends_on=depends_on,
    prior=usual_logit(rewards.total / scale, len(log)),
    stage="reward_model",
  )
  ranker = ranker._replace(facts={"ranker": "fitted to the rewards of the training rows"})
  return ranker, lambda batch: from_logits(ranker.logits(batch), scale)


def imitated(
  config: Config,
  tables: EncodedTables,
  train: BanditLog,
  held_out: BanditLog,
  workspace: Workspace,
  *,
  depends_on: str,
) -> SecondStage:
  """Towers fitted to the ranker scores of a log, and their fit on held-out rows."""
  rows, test = _with_scores(train), _with_scores(held_out)
  scores = rows.context[ImitatingRanker.SCORE]
  seed = config.environment_seed
  tf.keras.utils.set_random_seed(seed)
  towers = TwoTower.of(tables, config.encoder, config.ranker, use_context=True, item_bias=True)
  spread = float(scores.std())
  ranker = ImitatingRanker(towers, tables.context_lookup, float(scores.mean()), spread or 1.0)

  def build(directory: pathlib.Path) -> None:
    batches = rows.batches(tables.users, batch_size=config.ranker.batch_size, seed=seed)
    fit(ranker, batches, config.ranker, rows=len(rows), name="ranker, to its scores")
    save_weights(towers, directory)
    write_json(directory / "fit.json", _agreement(ranker, tables, test))

  inputs = {"rows": depends_on, **_fit_inputs(config)}
  directory = workspace.stage("imitated_ranker", inputs, build)
  restore_weights(towers, directory)
  facts = read_numbers(directory / "fit.json")
  note = (
    f"the ranker is a two-tower model fitted to the log's scores: on held-out rows R² is"
    f" {facts['r2']:.3f} and the correlation {facts['correlation']:.3f}; its errors are in training"
    " and in all values"
  )
  return SecondStage(
    ranker.frozen(),
    TowerRanker(towers, ranker.scale),
    directory.name,
    {"ranker": "fitted to the log's ranker scores", "ranker_fit": facts},
    (note, *_scale_notes(scores)),
  )


def _with_scores(log: BanditLog) -> LogRows:
  assert log.ranker_score is not None
  context = {**log.rows.context, ImitatingRanker.SCORE: log.ranker_score}
  return dataclasses.replace(log.rows, context=context)


def _fit_inputs(config: Config) -> dict[str, Any]:
  """What a fitted ranker depends on besides its rows."""
  return {
    "encoder": dataclasses.asdict(config.encoder),
    "fit": dataclasses.asdict(config.ranker),
    "seed": config.environment_seed,
  }


def _agreement(ranker: ImitatingRanker, tables: EncodedTables, log: LogRows) -> dict[str, float]:
  chunks = np.array_split(np.arange(len(log)), -(-len(log) // _ROWS_PER_CHUNK))
  batches = (
    model_inputs(log, rows, tables.users) | {"action": log.action[rows]} for rows in chunks
  )
  predicted = np.concatenate([ranker.pair_scores(batch) for batch in batches]).astype(np.float64)
  logged = log.context[ImitatingRanker.SCORE]
  with np.errstate(divide="ignore", invalid="ignore"):  # NaN where all scores are equal
    r2 = 1 - np.mean((logged - predicted) ** 2) / logged.var()
    correlation = np.corrcoef(logged, predicted)[0, 1]
  return {"r2": float(r2), "correlation": float(correlation), "rows": len(log)}


def external_ranker(ranker: ExternalRanker, data: BanditLog, workspace: Workspace) -> SecondStage:
  """A ranker made elsewhere, with its scores of all pairs; those of a file are a cached stage."""
  if ranker.path is None:
    scores = ranker.scores(data.users)
    stage = "ranker_scores-" + hashlib.sha256(scores.tobytes()).hexdigest()[:10]
  else:
    inputs = {"model": digest(ranker.path), "data": data.fingerprint()}
    stored, stage = workspace.arrays(
      "ranker_scores", inputs, lambda: {"scores": ranker.scores(data.users)}
    )
    scores = stored["scores"]
  table = tf.constant(scores)

  def logits(batch: Mapping[str, Any], items: tf.Tensor | None = None) -> tf.Tensor:
    users = tf.cast(batch["user_index"], tf.int32)
    if items is None:
      return tf.gather(table, users)
    # The pairs alone: rows of all items would cost as much as the catalogue.
    pairs = users[:, tf.newaxis] * table.shape[1] + items
    return tf.gather(tf.reshape(table, [-1]), pairs)

  return SecondStage(logits, ranker, stage, {"ranker": ranker.place}, _scale_notes(scores))


def _scale_notes(scores: np.ndarray) -> tuple[str, ...]:
  if scores.min() < 0 or scores.max() > 1:
    return ()
  return (
    "all ranker scores lie in [0, 1], like probabilities, but are used as logits: the ranker then"
    " hardly prefers one item to another; give logits instead",
  )
