"""An environment simulated from ratings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tf_twostage.config import Config
from tf_twostage.data.rows import LogRows
from tf_twostage.data.sets.ratings import RatingsData
from tf_twostage.environment.base import Environment, requests, usual_policies
from tf_twostage.environment.rankers import fitted_ranker
from tf_twostage.environment.simulated_log import simulated_log
from tf_twostage.environment.simulation import simulate
from tf_twostage.evaluation import full_information
from tf_twostage.evaluation.full_information import FullInformationEvaluator
from tf_twostage.models.encoders import EncodedTables
from tf_twostage.models.slate_ranker import TowerRanker
from tf_twostage.workspace import Workspace


def simulated(config: Config, data: RatingsData, workspace: Workspace) -> Environment:
  """Simulator, labels of every pair, behavior policy, log, ranker."""
  tables = EncodedTables.encode(data.schema, data.users, data.items)
  simulation = simulate(config, data, tables, workspace)
  information, logged_policy = simulation.information, simulation.logged_policy
  ranker, stage = fitted_ranker(
    config, tables, logged_policy.log, workspace, depends_on=logged_policy.stage
  )
  popularity = full_information.popularity(logged_policy.log, data.num_items)
  evaluator = ratings_evaluator(
    config, tables, logged_policy.log, information.relevance, information.evaluation_context
  )
  return Environment(
    tables=tables,
    users=data.users,
    titles=data.titles,
    log=logged_policy.log,
    evaluator=evaluator,
    ranker_logits=ranker.frozen(),
    slate_ranker=TowerRanker(ranker.towers),
    policies={
      "logging policy": full_information.vector_scorer(*logged_policy.policy),
      **usual_policies(popularity, ranker.frozen(), config.environment_seed),
    },
    requests=requests(data.schema, data.users, evaluator.inputs["context"], evaluator.excluded),
    name=stage,
    facts={"simulator_auc": simulation.simulator_auc},
    evaluation_log=lambda workspace: simulated_log(
      config,
      tables,
      logged_policy,
      workspace,
      labels=information.labels,
      # The user's, as in all evaluation, not the pair's: a policy sees it before it acts.
      contexts=lambda users, items: {
        name: values[users] for name, values in information.evaluation_context.items()
      },
    ),
  )


def ratings_evaluator(
  config: Config,
  tables: EncodedTables,
  log: LogRows,
  relevance: np.ndarray,
  context: Mapping[str, np.ndarray],
) -> FullInformationEvaluator:
  """All users of ratings, on what the log did not say already.

  Args:
    config: how many validate.
    tables: users as codes.
    log: whose positives are neither recommended nor relevant.
    relevance: [U, N] bool.
    context: raw context of every user, [U] each.
  """
  num_users, num_items = relevance.shape
  return FullInformationEvaluator(
    inputs={
      "user": tables.users,
      "context": dict(context),
      "user_index": np.arange(num_users, dtype=np.int32),
    },
    relevance=relevance,
    excluded=full_information.logged_positives(log, num_users, num_items),
    num_validation=config.data.validation_users,
  )
