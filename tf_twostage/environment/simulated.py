"""An environment simulated from ratings.

Stages in order: simulator, labels of all pairs, logging policy, log, ranker.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tf_twostage.config import Config
from tf_twostage.data.rows import LogRows
from tf_twostage.data.sets.ratings import RatingsData
from tf_twostage.environment.base import Environment, with_full_information
from tf_twostage.environment.full_information import FullInformation, PairContexts, label_all_pairs
from tf_twostage.environment.rankers import fitted_ranker
from tf_twostage.environment.simulated_log import (
  evaluation_log,
  fit_and_log,
  slot_examination,
  with_log_seed,
)
from tf_twostage.evaluation import full_information
from tf_twostage.losses import BinaryCrossEntropy
from tf_twostage.models.encoders import EncodedTables
from tf_twostage.models.simulator import Simulator, fit_simulator
from tf_twostage.training.checkpoints import restore_weights, save_weights
from tf_twostage.workspace import Workspace, read_numbers, write_json

_log = logging.getLogger(__name__)

_LABELS = "full_information.npz"


def simulated(config: Config, data: RatingsData, workspace: Workspace) -> Environment:
  """Makes an environment of ratings; every step is a stage."""
  tables = EncodedTables.encode(data.schema, data.users, data.items)
  contexts = PairContexts(data, config.environment_seed)
  information, labels, auc = _full_information(config, data, contexts, tables, workspace)
  return of_labels(
    config,
    data,
    tables,
    information,
    workspace,
    depends_on=labels,
    drawn_contexts=contexts,
    context=contexts.mean(),
    facts={"simulator_auc": auc},
  )


def of_labels(
  config: Config,
  data: RatingsData,
  tables: EncodedTables,
  information: FullInformation,
  workspace: Workspace,
  *,
  depends_on: str,
  drawn_contexts: Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]],
  context: Mapping[str, np.ndarray],
  facts: Mapping[str, Any],
) -> Environment:
  """Makes an environment of labels: a logging policy, its log and a ranker, each a stage.

  Args:
    config, data, tables, information, workspace: settings, ratings and the labels of all pairs.
    depends_on: identifies the labels.
    drawn_contexts: raw context of the pairs (users[i], items[i]) in logs.
    context: raw context of each user in evaluation, [U].
    facts: see `Environment`.
  """
  config = with_log_seed(config)
  pairs = config.simulation.behavior_pairs
  policy = fit_and_log(
    config,
    tables,
    workspace,
    examples=lambda: random_pairs(information, drawn_contexts, pairs, config.environment_seed),
    depends_on={"labels": depends_on, "pairs": pairs},
    objective=BinaryCrossEntropy(),
    feedback=lambda users, items: (
      information.rewards(users, items),
      drawn_contexts(users, items),
    ),
    num_users=data.num_users,
  )
  ranker = fitted_ranker(config, tables, policy.log, workspace, depends_on=policy.stage)
  return with_full_information(
    config,
    tables,
    data.users,
    policy.log,
    ranker,
    relevance=information.relevance,
    context=context,
    excluded=full_information.logged_positives(policy.log, data.num_users, data.num_items),
    popularity=full_information.popularity(policy.log, data.num_items),
    logging_vectors=policy.vectors,
    titles=data.titles,
    slot_examination=slot_examination(config.simulation.slots),
    name=ranker.stage,
    facts=facts,
    # The context is the user's, as in all evaluation: a policy sees it before it chooses an item.
    evaluation_log=lambda workspace: evaluation_log(
      config, policy, workspace, labels=information.labels, contexts=context
    ),
  )


def _full_information(
  config: Config,
  data: RatingsData,
  contexts: PairContexts,
  tables: EncodedTables,
  workspace: Workspace,
) -> tuple[FullInformation, str, float]:
  """The labels of all pairs, the name of their stage, and the AUC of the fitted simulator."""
  positive_above, holdout = config.data.positive_above, config.simulation.holdout
  rate, seed = config.simulation.positive_rate, config.environment_seed

  def build_simulator(directory: pathlib.Path) -> None:
    simulator, auc = fit_simulator(
      data,
      tables,
      config.encoder,
      config.simulator,
      positive_above=positive_above,
      holdout=holdout,
      seed=seed,
    )
    save_weights(simulator, directory)
    write_json(directory / "metrics.json", {"holdout_auc": auc})

  inputs = {
    "data": data.fingerprint(),
    "encoder": dataclasses.asdict(config.encoder),
    "fit": dataclasses.asdict(config.simulator),
    "positive_above": positive_above,
    "holdout": holdout,
    "seed": seed,
  }
  fitted = workspace.stage("simulator", inputs, build_simulator)
  auc = read_numbers(fitted / "metrics.json")["holdout_auc"]
  _log.info("simulator: AUC %.3f on held-out ratings", auc)

  def build_labels(directory: pathlib.Path) -> None:
    simulator = Simulator(tables.schema, config.encoder, config.simulator.l2)
    restore_weights(simulator, fitted)
    information = label_all_pairs(simulator, contexts, tables, rate)
    information.save(directory / _LABELS)

  inputs = {"simulator": fitted.name, "positive_rate": rate, "seed": seed}
  stage = workspace.stage("full_information", inputs, build_labels)
  return FullInformation.load(stage / _LABELS), stage.name, auc


def random_pairs(
  information: FullInformation,
  contexts: Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]],
  num_pairs: int,
  seed: int,
) -> LogRows:
  """Draws labelled pairs uniformly, as a log whose propensities are 1/N."""
  num_users, num_items = information.labels.shape
  rng = np.random.default_rng(seed)
  users = rng.integers(num_users, size=num_pairs, dtype=np.int32)
  items = rng.integers(num_items, size=num_pairs, dtype=np.int32)
  propensity = np.full(num_pairs, 1 / num_items, np.float32)
  return LogRows(
    users, items, propensity, information.rewards(users, items), contexts(users, items)
  )
