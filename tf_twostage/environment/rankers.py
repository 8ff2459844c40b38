"""The second stage of an environment, where it has to be fitted."""

from __future__ import annotations

import dataclasses
import pathlib

import tensorflow as tf

from tf_twostage import bandit_log
from tf_twostage.bandit_log import BanditLog
from tf_twostage.config import Config
from tf_twostage.fitting import fit
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.models.ranker import Ranker
from tf_twostage.stages import Stages, restore_weights, save_weights


def fitted_ranker(
  config: Config,
  tables: EncodedTables,
  log: BanditLog,
  stages: Stages,
  *,
  depends_on: str,
  prior: float = 0.0,
  stage: str = "ranker",
) -> tuple[Ranker, str]:
  """A ranker fitted on the rewards of a log, and the name of its stage.

  Args:
    config: settings of the ranker.
    tables: users and items as codes.
    log: the rows.
    stages: keep what is built.
    depends_on: what the log follows from.
    prior: logit of the usual reward.
    stage: what the stage is called.
  """
  seed = config.environment_seed
  tf.keras.utils.set_random_seed(seed)
  towers = TwoTower(tables, config.encoder, l2=config.ranker.l2, use_context=True)
  ranker = Ranker(towers, tables.context_lookup, prior)

  def build(directory: pathlib.Path) -> None:
    batches = bandit_log.train_dataset(
      log, tables.users, batch_size=config.ranker.batch_size, seed=seed
    )
    fit(ranker, batches, config.ranker, len(log), stage.replace("_", " "))
    save_weights(towers, directory)

  inputs = {
    "log": depends_on,
    "encoder": dataclasses.asdict(config.encoder),
    "fit": dataclasses.asdict(config.ranker),
    "seed": seed,
  }
  directory = stages.get(stage, inputs, build)
  restore_weights(towers, directory)
  return ranker, directory.name
