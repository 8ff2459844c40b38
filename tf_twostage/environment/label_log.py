"""A bandit problem made of complete labels: nothing has to be simulated but the logging.

As Swaminathan and Joachims (ICML 2015) convert supervised data: a policy fitted on a few
documents whose labels are known shows labels of its choice for every training document; the log
says which of them were right.
"""

from __future__ import annotations

import numpy as np

from tf_twostage.config import Config
from tf_twostage.data.rows import LogRows
from tf_twostage.data.sets.xmc import XmcData
from tf_twostage.environment.logging_policy import LoggedPolicy, record
from tf_twostage.errors import InputError
from tf_twostage.losses.cross_entropy import CrossEntropy
from tf_twostage.models.encoders import EncodedTables
from tf_twostage.workspace import Workspace


def log_labels(
  config: Config, data: XmcData, tables: EncodedTables, workspace: Workspace
) -> LoggedPolicy:
  """Builds, or finds built: a softmax policy of the supervised documents -> log.

  Args:
    config: settings.
    data: documents; those for training are logged.
    tables: codes of all documents and labels.
    workspace: keep what is built.

  Raises:
    InputError: there are fewer training documents than are to be supervised, or those that are
      have no labels.
  """
  count, seed = config.simulation.supervised_documents, config.environment_seed
  if count > data.num_train:
    raise InputError(
      f"supervised_documents is {count}, but {data.name} has {data.num_train} training documents"
    )
  return record(
    config,
    tables,
    workspace,
    examples=lambda: supervised_pairs(data, count, seed),
    depends_on={
      "data": data.fingerprint(),
      "max_features": config.data.max_features,
      "supervised_documents": count,
    },
    objective=CrossEntropy(),
    rewards=lambda users, items: data.has_label(users, items).astype(np.float32),
    contexts=lambda users, items: {},
    num_users=data.num_train,
  )


def supervised_pairs(data: XmcData, count: int, seed: int) -> LogRows:
  """All labels of `count` training documents drawn at random, as rewarded rows shown for sure.

  Raises:
    InputError: the documents have no labels.
  """
  documents = np.sort(np.random.default_rng(seed).permutation(data.num_train)[:count])
  row, labels = data.labels[documents].nonzero()
  rows = documents[row].astype(np.int32)
  if not rows.size:
    raise InputError(f"{data.name}: {count} supervised documents have no labels; raise the number")
  ones = np.ones(len(rows), np.float32)
  return LogRows(
    user_index=rows,
    action=labels,
    propensity=ones,
    reward=ones,
  )
