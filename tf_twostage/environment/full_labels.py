"""An environment of documents with complete labels: nothing is simulated but the logging."""

from __future__ import annotations

import numpy as np

from tf_twostage.config import Config
from tf_twostage.data.sets.xmc import XmcData, document_tables
from tf_twostage.environment.base import Environment, requests, usual_policies
from tf_twostage.environment.label_log import log_labels
from tf_twostage.environment.rankers import fitted_ranker
from tf_twostage.environment.simulated_log import simulated_log
from tf_twostage.errors import InputError
from tf_twostage.evaluation import full_information
from tf_twostage.evaluation.full_information import FullInformationEvaluator
from tf_twostage.models.encoders import EncodedTables
from tf_twostage.models.ranker import usual_logit
from tf_twostage.models.slate_ranker import TowerRanker
from tf_twostage.workspace import Workspace


def full_labels(config: Config, data: XmcData, workspace: Workspace) -> Environment:
  """Behavior policy, log of the training documents, ranker; test documents evaluator."""
  if config.data.environment:
    raise InputError(
      f"environment={config.data.environment}: a prepared environment is one of ratings; leave it"
      f" out, the labels of {config.data.dataset} are complete"
    )
  schema, documents, labels = document_tables(data, config.data.max_features)
  tables = EncodedTables.encode(schema, documents, labels)
  logged_policy = log_labels(config, data, tables, workspace)
  log = logged_policy.log
  ranker, stage = fitted_ranker(
    config,
    tables,
    log,
    workspace,
    depends_on=logged_policy.stage,
    prior=usual_logit(log.rewards().total, len(log)),
  )
  # The policy shows a rare label only where it expects it: that it is right then does not make
  # the label popular, as a mean would have it.
  popularity = full_information.total_reward(log, data.num_labels)
  tests = slice(data.num_train, data.num_documents)
  relevance = data.test.relevance()
  return Environment(
    tables=tables,
    users=documents,
    titles=labels[schema.item_id.name],
    log=log,
    evaluator=FullInformationEvaluator(
      inputs={
        "user": {name: codes[tests] for name, codes in tables.users.items()},
        "context": {},
        "user_index": np.arange(tests.start, tests.stop, dtype=np.int32),
      },
      relevance=relevance,
      excluded=None,  # the log knows nothing of test documents
      num_validation=config.data.validation_users,
    ),
    ranker_logits=ranker.frozen(),
    slate_ranker=TowerRanker(ranker.towers),
    policies={
      "logging policy": full_information.vector_scorer(*logged_policy.policy),
      **usual_policies(popularity, ranker.frozen(), config.environment_seed),
    },
    requests=requests(schema, {n: v[tests] for n, v in documents.items()}, {}),
    name=stage,
    facts={"logged_reward": float(log.reward.mean())},
    evaluation_log=lambda workspace: simulated_log(
      config,
      tables,
      logged_policy,
      workspace,
      labels=relevance,
      contexts=lambda documents, labels: {},
      first_user=tests.start,
    ),
  )
