"""A simulation of a data set, stage by stage: who likes what, and a log of it."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib

import numpy as np
import tensorflow as tf

from tf_twostage import bandit_log
from tf_twostage.bandit_log import BanditLog
from tf_twostage.config import Config
from tf_twostage.datasets.ratings import RatingsData
from tf_twostage.fitting import fit
from tf_twostage.losses.binary_cross_entropy import BinaryCrossEntropy
from tf_twostage.models.candidate_generator import CandidateGenerator
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.simulation.behavior import log_interactions, random_pairs
from tf_twostage.simulation.full_information import (
  FullInformation,
  PairContexts,
  label_all_pairs,
)
from tf_twostage.simulation.preference import Simulator, fit_simulator
from tf_twostage.stages import Stages, restore_weights, save_weights, write_json

_log = logging.getLogger(__name__)

_LABELS = "full_information.npz"
_VECTORS = "vectors.npz"


@dataclasses.dataclass(frozen=True)
class Simulation:
  """Full information, and what a behavior policy logged of it.

  Attributes:
    information: labels of every pair.
    log: what the behavior policy showed, with propensities and rewards.
    behavior: user vectors [U, D] and item vectors [N, D], whose products are the behavior
      policy's logits.
    log_stage: name of the log's stage, for later stages to depend on.
    simulator_auc: on held-out ratings.
  """

  information: FullInformation
  log: BanditLog
  behavior: tuple[np.ndarray, np.ndarray]
  log_stage: str
  simulator_auc: float


def simulate(
  config: Config, data: RatingsData, tables: EncodedTables, stages: Stages
) -> Simulation:
  """Builds, or finds built: simulator -> labels of all pairs -> behavior policy -> log."""
  settings = config.simulation
  seed = config.environment_seed
  encoder = dataclasses.asdict(config.encoder)

  def build_simulator(directory: pathlib.Path) -> None:
    simulator, auc = fit_simulator(
      data,
      tables,
      config.encoder,
      config.simulator,
      positive_above=config.data.positive_above,
      holdout=settings.holdout,
      seed=seed,
    )
    save_weights(simulator, directory)
    write_json(directory / "metrics.json", {"holdout_auc": auc})

  simulator_stage = stages.get(
    "simulator",
    {
      "data": data.fingerprint(),
      "positive_above": config.data.positive_above,
      "encoder": encoder,
      "fit": dataclasses.asdict(config.simulator),
      "holdout": settings.holdout,
      "seed": seed,
    },
    build_simulator,
  )
  auc = json.loads((simulator_stage / "metrics.json").read_text())["holdout_auc"]
  _log.info("simulator: AUC %.3f on held-out ratings", auc)

  def build_labels(directory: pathlib.Path) -> None:
    simulator = Simulator(tables.schema, config.encoder, config.simulator.l2)
    restore_weights(simulator, simulator_stage)
    label_all_pairs(simulator, data, tables, positive_rate=settings.positive_rate, seed=seed).save(
      directory / _LABELS
    )

  labels_stage = stages.get(
    "full_information",
    {"simulator": simulator_stage.name, "positive_rate": settings.positive_rate, "seed": seed},
    build_labels,
  )
  information = FullInformation.load(labels_stage / _LABELS)
  contexts = PairContexts(data, seed)

  def build_behavior(directory: pathlib.Path) -> None:
    tf.keras.utils.set_random_seed(seed)
    policy = CandidateGenerator(
      TwoTower(tables, config.encoder, l2=config.behavior.l2), BinaryCrossEntropy()
    )
    pairs = random_pairs(information, contexts, settings.behavior_pairs, seed)
    batches = bandit_log.train_dataset(
      pairs, tables.users, batch_size=config.behavior.batch_size, seed=seed
    )
    fit(policy, batches, config.behavior, len(pairs), "behavior policy")
    np.savez(
      directory / _VECTORS,
      user_vectors=policy.towers.query(tables.users),
      item_vectors=policy.towers.candidates(),
    )

  behavior_stage = stages.get(
    "behavior_policy",
    {
      "labels": labels_stage.name,
      "encoder": encoder,
      "fit": dataclasses.asdict(config.behavior),
      "pairs": settings.behavior_pairs,
      "seed": seed,
    },
    build_behavior,
  )
  with np.load(behavior_stage / _VECTORS) as stored:
    behavior = stored["user_vectors"], stored["item_vectors"]

  def build_log(directory: pathlib.Path) -> None:
    log = log_interactions(
      tf.matmul(*behavior, transpose_b=True),
      information,
      contexts,
      items_per_user=settings.items_per_user,
      replacement=settings.replacement,
      seed=seed,
    )
    bandit_log.write(log, directory / "shards", data.schema)

  log_stage = stages.get(
    "log",
    {
      "behavior": behavior_stage.name,
      "items_per_user": settings.items_per_user,
      "replacement": settings.replacement,
      "seed": seed,
    },
    build_log,
  )
  log = bandit_log.read(log_stage / "shards", data.schema)
  _log.info("log: %d rows, %.1f%% rewarded", len(log), 100 * log.reward.mean())
  return Simulation(information, log, behavior, log_stage.name, auc)
