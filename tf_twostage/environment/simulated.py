"""An environment simulated from ratings.

Stages in order: simulator, labels of all pairs, logging policy, log, ranker.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
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
from tf_twostage.errors import InputError
from tf_twostage.evaluation import full_information
from tf_twostage.losses import BinaryCrossEntropy
from tf_twostage.models.encoders import EncodedTables
from tf_twostage.models.simulator import Simulator, fit_simulator
from tf_twostage.training.checkpoints import restore_weights, save_weights
from tf_twostage.workspace import Workspace, read_numbers, write_json

_log = logging.getLogger(__name__)

_LABELS = "full_information.npz"
_OF_RANKER = 1  # beside the seed, so that its pairs are not those of the logging policy


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
  others: LogRows | None = None,
) -> Environment:
  """Makes an environment of labels: a logging policy, its log and a ranker, each a stage.

  Args:
    config, data, tables, workspace: settings and ratings.
    information: the labels of all pairs of the last users, who are logged and evaluated.
    depends_on: identifies the labels.
    drawn_contexts: raw context of the pairs (users[i], items[i]) in logs.
    context: raw context of each user in evaluation, [U].
    facts: see `Environment`.
    others: labelled pairs of other users. Those of one half of them fit the logging policy, and
      those of the other half the ranker. None: labelled pairs of any users fit the policy, and the
      log fits the ranker.
  """
  config = with_log_seed(config)
  seed, pairs = config.environment_seed, config.simulation.behavior_pairs
  first = data.num_users - len(information.labels)
  halves = (None, None) if others is None else by_users(others, seed)

  def labelled(known: LogRows | None, count: int, *seeds: int) -> LogRows:
    if known is None:
      return random_pairs(information, drawn_contexts, count, seeds)
    return some_rows(known, count, seeds, data.name)

  policy = fit_and_log(
    config,
    tables,
    workspace,
    examples=lambda: labelled(halves[0], pairs, seed),
    depends_on={"labels": depends_on, "pairs": pairs},
    objective=BinaryCrossEntropy(),
    feedback=lambda users, items: (
      information.rewards(users - first, items),
      drawn_contexts(users, items),
    ),
    logged=slice(first, data.num_users),
  )
  rows, fitted_to = halves[1] or policy.log, policy.stage
  if config.simulation.ranker_pairs:
    rows = labelled(halves[1], config.simulation.ranker_pairs, seed, _OF_RANKER)
    fitted_to += f", {len(rows)} labelled pairs"
  if config.simulation.ranker_reversed:
    rows = dataclasses.replace(rows, reward=1 - rows.reward)
    fitted_to += ", reversed"
  ranker = fitted_ranker(config, tables, rows, workspace, depends_on=fitted_to)
  return with_full_information(
    config,
    tables,
    data.users,
    policy.log,
    ranker,
    relevance=information.relevance,
    context=context,
    excluded=full_information.logged_positives(policy.log, data.num_users, data.num_items)[first:],
    popularity=full_information.popularity(policy.log, data.num_items),
    logging_vectors=policy.vectors,
    titles=data.titles,
    slot_examination=slot_examination(config.simulation.slots),
    name=ranker.stage,
    facts=facts,
    # The context is the user's, as in all evaluation: a policy sees it before it chooses an item.
    evaluation_log=lambda workspace: evaluation_log(
      config,
      policy,
      workspace,
      labels=information.labels,
      contexts=context,
      user_ids=data.schema.user_id.vocabulary,
      first_user=first,
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
  seed: int | Sequence[int],
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


def by_users(rows: LogRows, seed: int) -> tuple[LogRows, LogRows]:
  """The rows of a random half of the users, and those of the others."""
  users = np.unique(rows.user_index)
  half = np.random.default_rng(seed).permutation(users)[: len(users) // 2]
  inside = np.isin(rows.user_index, half)
  return rows.select(inside), rows.select(~inside)


def some_rows(rows: LogRows, count: int, seed: Sequence[int], name: str) -> LogRows:
  """That many rows, drawn without replacement."""
  if count > len(rows):
    raise InputError(
      f"{name}: {count} labelled pairs are wanted (behavior_pairs or ranker_pairs), but half of the"
      f" people who are not evaluated have {len(rows)}; ask for fewer"
    )
  return rows.select(np.random.default_rng(seed).permutation(len(rows))[:count])
