"""An environment of documents with complete labels: only the logging is simulated.

A policy fitted on a few documents with known labels shows labels of its choice for every training
document, and the log records which of them were right, as Swaminathan and Joachims (ICML 2015)
convert supervised data. Test documents evaluate.
"""

from __future__ import annotations

import numpy as np

from tf_twostage.config import Config
from tf_twostage.data.rows import LogRows
from tf_twostage.data.sets.xmc import XmcData, document_tables
from tf_twostage.environment.base import Environment, with_full_information
from tf_twostage.environment.rankers import fitted_ranker
from tf_twostage.environment.simulated_log import (
  LoggedPolicy,
  evaluation_log,
  fit_and_log,
  with_log_seed,
)
from tf_twostage.errors import InputError
from tf_twostage.losses import CrossEntropy
from tf_twostage.models.encoders import EncodedTables
from tf_twostage.models.ranker import usual_logit
from tf_twostage.workspace import Workspace


def full_labels(config: Config, data: XmcData, workspace: Workspace) -> Environment:
  """Makes an environment of documents; logging policy, log and ranker are stages."""
  if config.data.environment:
    raise InputError(
      f"environment={config.data.environment}: a prepared environment is one of ratings; leave it"
      f" out, the labels of {config.data.dataset} are complete"
    )
  config = with_log_seed(config)
  schema, documents, labels = document_tables(data, config.data.max_features)
  tables = EncodedTables.encode(schema, documents, labels)
  policy = log_labels(config, data, tables, workspace)
  log = policy.log
  prior = usual_logit(log.rewards().total, len(log))
  ranker = fitted_ranker(config, tables, log, workspace, depends_on=policy.stage, prior=prior)
  relevance = data.test.relevance()
  return with_full_information(
    config,
    tables,
    documents,
    log,
    ranker,
    relevance=relevance,
    context={},
    excluded=None,  # test documents are not in the log
    # The policy shows a rare label only where it expects it, and is often right then: by its mean
    # reward a rare label would seem popular.
    popularity=log.earned(data.num_labels),
    logging_vectors=policy.vectors,
    titles=labels[schema.item_id.name],
    name=ranker.stage,
    facts={"logged_reward": float(log.reward.mean())},
    evaluation_log=lambda workspace: evaluation_log(
      config,
      policy,
      workspace,
      labels=relevance,
      contexts={},
      user_ids=schema.user_id.vocabulary,
      first_user=data.num_train,
    ),
  )


def log_labels(
  config: Config, data: XmcData, tables: EncodedTables, workspace: Workspace
) -> LoggedPolicy:
  """Fits a softmax policy on the supervised documents and logs all training documents."""
  count, seed = config.simulation.supervised_documents, config.environment_seed
  if count > data.num_train:
    raise InputError(
      f"supervised_documents is {count}, but {data.name} has {data.num_train} training documents"
    )
  return fit_and_log(
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
    feedback=lambda users, items: (data.has_label(users, items).astype(np.float32), {}),
    logged=slice(0, data.num_train),
  )


def supervised_pairs(data: XmcData, count: int, seed: int) -> LogRows:
  """All labels of `count` random training documents, as rewarded rows of propensity 1."""
  documents = np.sort(np.random.default_rng(seed).permutation(data.num_train)[:count])
  row, labels = data.labels[documents].nonzero()
  if not row.size:
    raise InputError(f"{data.name}: {count} supervised documents have no labels; raise the number")
  ones = np.ones(len(row), np.float32)
  return LogRows(documents[row].astype(np.int32), labels, ones, ones)
