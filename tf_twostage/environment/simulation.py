"""A simulation of a data set, stage by stage: who likes what, and a log of it."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib

from tf_twostage.config import Config
from tf_twostage.data.sets.ratings import RatingsData
from tf_twostage.environment.full_information import FullInformation, PairContexts, label_all_pairs
from tf_twostage.environment.logging_policy import LoggedPolicy, random_pairs, record
from tf_twostage.losses.binary_cross_entropy import BinaryCrossEntropy
from tf_twostage.models.encoders import EncodedTables
from tf_twostage.models.simulator import Simulator, fit_simulator
from tf_twostage.training.checkpoints import restore_weights, save_weights
from tf_twostage.workspace import Workspace, write_json

_log = logging.getLogger(__name__)

_LABELS = "full_information.npz"


@dataclasses.dataclass(frozen=True)
class Simulation:
  """Full information, and what a behavior policy logged of it.

  Attributes:
    information: labels of every pair.
    logged_policy: the behavior policy, and its log of all users.
    simulator_auc: on held-out ratings.
  """

  information: FullInformation
  logged_policy: LoggedPolicy
  simulator_auc: float


def simulate(
  config: Config, data: RatingsData, tables: EncodedTables, workspace: Workspace
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

  simulator_stage = workspace.stage(
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

  labels_stage = workspace.stage(
    "full_information",
    {"simulator": simulator_stage.name, "positive_rate": settings.positive_rate, "seed": seed},
    build_labels,
  )
  information = FullInformation.load(labels_stage / _LABELS)
  contexts = PairContexts(data, seed)

  logged_policy = record(
    config,
    tables,
    workspace,
    examples=lambda: random_pairs(information, contexts, settings.behavior_pairs, seed),
    depends_on={"labels": labels_stage.name, "pairs": settings.behavior_pairs},
    objective=BinaryCrossEntropy(),
    rewards=information.rewards,
    contexts=contexts,
    num_users=data.num_users,
  )
  return Simulation(information, logged_policy, auc)
