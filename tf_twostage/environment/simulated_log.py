"""An evaluation log where the logging policy and all rewards are known: it is drawn anew."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_twostage.config import Config
from tf_twostage.environment.logging_policy import Contexts, LoggedPolicy, draw_log
from tf_twostage.evaluation.evaluation_log import EvaluationLog
from tf_twostage.models.encoders import EncodedTables
from tf_twostage.workspace import Workspace


def simulated_log(
  config: Config,
  tables: EncodedTables,
  logged_policy: LoggedPolicy,
  workspace: Workspace,
  *,
  labels: np.ndarray,
  contexts: Contexts,
  first_user: int = 0,
) -> EvaluationLog:
  """Another log of the logging policy, which nothing was fitted on, with the truth beside it.

  Args:
    config: how it is drawn.
    tables: users and items as codes.
    logged_policy: the logging policy.
    workspace: keep the log.
    labels: [U', N] bool, rewards of all pairs of the users from `first_user` on.
    contexts: what a policy sees of the users of pairs.
    first_user: the first to be logged.
  """
  users, items = logged_policy.policy
  log, stage = draw_log(
    "evaluation_log",
    {"log": logged_policy.stage, "first_user": first_user},
    (users[first_user:], items),
    config,
    tables,
    workspace,
    rewards=lambda users, items: labels[users - first_user, items].astype(np.float32),
    contexts=contexts,
    seed=~config.environment_seed,  # negative: no training log's
    first_user=first_user,
  )
  notes = ["The log is a fresh one of the logging policy, drawn for evaluation alone."]
  if not config.simulation.replacement:
    notes.append(
      "A user's items were drawn without replacement (--noreplacement): propensities are right for"
      " the first of them only, and estimates that weight rows are biased."
    )
  return EvaluationLog(
    log,
    tables.schema.num_items,
    stage,
    tuple(notes),
    expected_rewards=lambda rows: labels[log.user_index[rows] - first_user],
    logging_probabilities=lambda rows: tf.nn.softmax(
      tf.matmul(users[log.user_index[rows]], items, transpose_b=True)
    ).numpy(),
  )
