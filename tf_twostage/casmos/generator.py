"""The generator of an environment: its clauses are learned once, for all losses and seeds."""

from __future__ import annotations

import dataclasses
import logging
import pathlib

import numpy as np
import tensorflow as tf

from tf_twostage.casmos.clauses import Query
from tf_twostage.casmos.learning import Pairs, learn
from tf_twostage.casmos.queries import LoggedRows, StructuredQueries
from tf_twostage.casmos.terms import values
from tf_twostage.config import ClauseConfig
from tf_twostage.data.rows import LogRows
from tf_twostage.environment.base import Environment
from tf_twostage.errors import InputError
from tf_twostage.evaluation.evaluation_log import model_inputs
from tf_twostage.losses.importance import ImportanceWeights
from tf_twostage.workspace import Workspace, write_text

_log = logging.getLogger(__name__)

FILE = "clauses.json"
_TEACHER_USERS = 10_000  # whose best items by the ranker are positive pairs
_TOP, _OTHERS = 10, 40  # items of a user that are positive pairs, and drawn ones that are not
_THRESHOLD_ROWS = 20_000
_PAIRS_PER_CALL = 1 << 22
_NOT_LEARNED = ("clauses", "train_clauses", "clause_recall")  # settings that learning does not read


def structured_queries(
  environment: Environment, settings: ClauseConfig, workspace: Workspace, seed: int
) -> StructuredQueries:
  """The generator before its weights are trained by a loss.

  Args:
    environment: its log and its ranker teach the clauses.
    settings: see `config.ClauseConfig`.
    workspace: keeps the clauses.
    seed: of drawn users, items and rows.

  Raises:
    InputError: the rows are streamed, or no clause is learned.
  """
  log = environment.log
  if not isinstance(log, LogRows):
    raise InputError("casmos reads the training rows from memory; leave stream out")
  if settings.clauses:
    query = Query.read(pathlib.Path(settings.clauses))
  else:

    def build(directory: pathlib.Path) -> None:
      query = _learned(environment, log, settings, seed)
      _log.info("casmos: %d clauses", len(query.clauses))
      write_text(directory / FILE, query.to_json())

    asked = dataclasses.asdict(settings)
    learning = {name: value for name, value in asked.items() if name not in _NOT_LEARNED}
    inputs = {"environment": environment.name, "settings": learning, "seed": seed}
    query = Query.read(workspace.stage("clauses", inputs, build) / FILE)
  return StructuredQueries(
    environment.tables,
    query,
    rows=_rewarded(environment, log, seed),
    recall=settings.clause_recall,
    trainable=settings.train_clauses,
  )


def _learned(environment: Environment, log: LogRows, settings: ClauseConfig, seed: int) -> Query:
  tables = environment.tables
  if settings.clause_teacher == "ranker":
    pairs = _ranked_pairs(environment, log, seed)
  else:
    pairs = _logged_pairs(log, tables.schema.num_items)
  # Sequences differ between rows of a user, and are not among the tables.
  features = [f for f in tables.schema.user_table if f in tables.schema.user_inputs]
  return Query(
    learn(
      pairs,
      values(features, tables.users),
      values(tables.schema.item_inputs, tables.items),
      support=settings.clause_support,
      l1=settings.clause_l1,
      most=settings.max_clauses,
      conjunctions=settings.clause_pairs,
    )
  )


def _ranked_pairs(environment: Environment, log: LogRows, seed: int) -> Pairs:
  """The ranker's best items of users in the log, and others that are drawn."""
  num_items = environment.tables.schema.num_items
  top, others = min(_TOP, max(1, num_items // 2)), min(_OTHERS, num_items)
  draw = np.random.default_rng(seed)
  rows = np.unique(log.user_index, return_index=True)[1]
  if len(rows) > _TEACHER_USERS:
    rows = np.sort(draw.choice(rows, _TEACHER_USERS, replace=False))
  best = []
  for some in _parts(rows, num_items):
    inputs = model_inputs(log, some, environment.tables.users)
    best.append(tf.math.top_k(environment.ranker_logits(inputs), top).indices.numpy())
  liked = np.concatenate(best)
  drawn = draw.integers(num_items, size=(len(rows), others))
  drawn[(drawn[:, :, np.newaxis] == liked[:, np.newaxis]).any(axis=2)] = -1
  items = np.concatenate([liked, drawn], axis=1)
  label = np.broadcast_to(np.arange(items.shape[1]) < top, items.shape)
  users = np.repeat(log.user_index[rows], items.shape[1]).reshape(items.shape)
  kept = items >= 0
  return Pairs(users[kept], items[kept], label[kept], np.ones(int(kept.sum())))


def _logged_pairs(log: LogRows, num_items: int) -> Pairs:
  """The rows of the log, weighted by 1 / propensity, those with rewards by the reward, too."""
  liked, weight = log.reward > 0, _importance(log, num_items)
  weight[liked] *= log.reward[liked] / log.reward[liked].mean()
  return Pairs(log.user_index, log.action, liked, weight)


def _importance(log: LogRows, num_items: int) -> np.ndarray:
  """Clipped and self-normalised weights of the rows, [n], for the uniform policy."""
  propensities = tf.constant(log.propensity)
  uniform = tf.fill(tf.shape(propensities), -np.log(num_items, dtype=np.float32))
  return ImportanceWeights()(uniform, propensities)[1].numpy()


def _rewarded(environment: Environment, log: LogRows, seed: int) -> LoggedRows:
  """At most so many rewarded rows, drawn at random."""
  weight = _importance(log, environment.tables.schema.num_items) * log.reward
  rows = np.flatnonzero(log.reward > 0)
  if len(rows) > _THRESHOLD_ROWS:
    rows = np.random.default_rng(seed).choice(rows, _THRESHOLD_ROWS, replace=False)
  user = model_inputs(log, rows, environment.tables.users)["user"]
  return LoggedRows(user, log.action[rows], weight[rows])


def _parts(rows: np.ndarray, num_items: int) -> list[np.ndarray]:
  size = max(1, _PAIRS_PER_CALL // num_items)
  return [rows[start : start + size] for start in range(0, len(rows), size)]
