"""A prepared environment: its full information, log and ranker read from a directory."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib

import numpy as np
import pandas as pd

from tf_twostage.config import Config
from tf_twostage.data.npz import read_array
from tf_twostage.data.rows import LogRows
from tf_twostage.data.sets.ratings import RatingsData
from tf_twostage.environment.base import Environment, SecondStage, with_full_information
from tf_twostage.environment.full_information import FullInformation, unpack_pairs
from tf_twostage.environment.simulated import of_labels
from tf_twostage.errors import InputError, require
from tf_twostage.evaluation import full_information
from tf_twostage.evaluation.evaluation_log import EvaluationLog
from tf_twostage.models.encoders import EncodedTables
from tf_twostage.models.slate_ranker import PrecomputedTowers, TowerRanker
from tf_twostage.workspace import Workspace

_SEEN = (
  "The generators learned from this log, so their estimated values are too high by an unknown"
  " amount. True values are unknown, too: the environment holds the relevance of all pairs, but"
  " rewards only of logged ones."
)
PREPARED_FILES = ("full_information.npz", "bandit_log.csv", "ranker.npz")


def prepared(
  config: Config, data: RatingsData, directory: pathlib.Path, workspace: Workspace
) -> Environment:
  """Reads the environment in `directory`.

  Log number 0 and its ranker are those of the files. The other logs are simulated: a logging policy
  and a ranker are fitted as in a simulated environment, to the relevance in the files.
  """
  missing = [name for name in PREPARED_FILES if not (directory / name).is_file()]
  if missing:
    raise InputError(
      f"environment={directory}: no {', '.join(missing)}; a prepared environment holds"
      f" {', '.join(PREPARED_FILES)}"
    )
  # Labels and ranker contain the context already.
  schema = dataclasses.replace(data.schema, context=())
  tables = EncodedTables.encode(schema, data.users, data.items)
  shape = data.num_users, data.num_items
  packed_shape = data.num_users, -(-data.num_items // 8)
  packed = read_array(directory / "full_information.npz", "relevance", packed_shape, np.uint8)
  relevance = unpack_pairs(packed, data.num_items)
  log = _indexed_log(directory / "bandit_log.csv", shape)
  vectors = _vectors(directory / "ranker.npz", shape)
  digest = hashlib.sha256(data.fingerprint().encode())
  for name in PREPARED_FILES:
    digest.update((directory / name).read_bytes())
  name = f"prepared-{digest.hexdigest()[:10]}"
  if config.simulation.log_number:
    return of_labels(
      config,
      data,
      tables,
      FullInformation(relevance, relevance),
      workspace,
      depends_on=name,
      drawn_contexts=lambda users, items: {},
      context={},
      facts={},
    )
  towers = PrecomputedTowers(schema.user_id.name, *vectors)
  return with_full_information(
    config,
    tables,
    data.users,
    log,
    SecondStage(full_information.vector_scorer(*vectors), TowerRanker(towers), name),
    relevance=relevance,
    context={},
    excluded=full_information.logged_positives(log, *shape),
    popularity=full_information.popularity(log, data.num_items),
    titles=data.titles,
    name=f"{name}-{config.environment_seed}",
    facts={},
    evaluation_log=lambda stages: EvaluationLog(
      log, data.num_items, name, (_SEEN,), user_ids=schema.user_id.vocabulary
    ),
  )


def _vectors(path: pathlib.Path, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  users = read_array(path, "user_vectors", (shape[0], None), np.float32)
  items = read_array(path, "item_vectors", (shape[1], None), np.float32)
  if users.shape[1] != items.shape[1]:
    raise InputError(
      f"{path}: user_vectors are {users.shape[1]} wide and item_vectors {items.shape[1]}; their"
      " products are the ranker's logits, so make them one width"
    )
  return users, items


def _indexed_log(path: pathlib.Path, shape: tuple[int, int]) -> LogRows:
  """A log whose ids are rows of the users' and items' tables."""
  limits = {"user_index": shape[0], "item_index": shape[1], "propensity": None, "reward": None}
  try:
    frame = pd.read_csv(path)
  except (ValueError, OSError) as error:
    raise InputError(f"{path}: not a readable CSV ({error}); copy the file again") from error
  missing = [name for name in limits if name not in frame]
  if missing:
    raise InputError(
      f"{path}: missing column(s) {missing} in a log of {len(frame)} rows; found"
      f" {list(map(str, frame))}; add them, or mend the header"
    )
  if frame.empty:
    raise InputError(f"{path}: the log has no rows; log some traffic first")
  numbers = {}
  for name, limit in limits.items():
    values = pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64)
    subject, shown = f"{path}: column {name!r}", frame[name].to_numpy()
    require(~np.isnan(values), subject, "must hold numbers", "mend or drop these rows", shown)
    if limit:
      whole = (values >= 0) & (values < limit) & (values % 1 == 0)
      rule = f"must be a whole number in [0, {limit})"
      require(whole, subject, rule, "mend or drop these rows", shown)
      values = values.astype(np.int32)
    numbers[name] = values
  try:
    user_index, action, propensity, reward = numbers.values()
    return LogRows(user_index, action, propensity, reward)
  except InputError as error:
    raise InputError(f"{path}: {error}") from error
