"""An environment simulated from ratings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tf_twostage.bandit_log import BanditLog
from tf_twostage.config import Config
from tf_twostage.datasets.ratings import RatingsData
from tf_twostage.environment.base import Environment, requests, usual_policies
from tf_twostage.environment.fresh_log import fresh_log
from tf_twostage.environment.rankers import fitted_ranker
from tf_twostage.evaluation import protocol
from tf_twostage.evaluation.protocol import EvaluationSet
from tf_twostage.models.encoders import EncodedTables
from tf_twostage.models.slate_ranker import TowerRanker
from tf_twostage.simulation.simulate import simulate
from tf_twostage.stages import Stages


def simulated(config: Config, data: RatingsData, stages: Stages) -> Environment:
  """Simulator, labels of every pair, behavior policy, log, ranker."""
  tables = EncodedTables.encode(data.schema, data.users, data.items)
  simulation = simulate(config, data, tables, stages)
  information, recording = simulation.information, simulation.recording
  ranker, stage = fitted_ranker(config, tables, recording.log, stages, depends_on=recording.stage)
  popularity = protocol.popularity(recording.log, data.num_items)
  judge = judge_of_ratings(
    config, tables, recording.log, information.relevance, information.evaluation_context
  )
  return Environment(
    tables=tables,
    titles=data.titles,
    log=recording.log,
    judge=judge,
    ranker_logits=ranker.frozen(),
    slate_ranker=TowerRanker(ranker.towers),
    policies={
      "logging policy": protocol.vector_scorer(*recording.policy),
      **usual_policies(popularity, ranker.frozen(), config.environment_seed),
    },
    requests=requests(data.schema, data.users, judge.inputs["context"], judge.excluded),
    name=stage,
    facts={"simulator_auc": simulation.simulator_auc},
    evaluation_log=lambda stages: fresh_log(
      config,
      tables,
      recording,
      stages,
      labels=information.labels,
      # The user's, as in all evaluation, not the pair's: a policy sees it before it acts.
      contexts=lambda users, items: {
        name: values[users] for name, values in information.evaluation_context.items()
      },
    ),
  )


def judge_of_ratings(
  config: Config,
  tables: EncodedTables,
  log: BanditLog,
  relevance: np.ndarray,
  context: Mapping[str, np.ndarray],
) -> EvaluationSet:
  """All users of ratings, on what the log did not say already.

  Args:
    config: how many validate.
    tables: users as codes.
    log: whose positives are neither recommended nor relevant.
    relevance: [U, N] bool.
    context: raw context of every user, [U] each.
  """
  num_users, num_items = relevance.shape
  return EvaluationSet(
    inputs={
      "user": tables.users,
      "context": dict(context),
      "user_index": np.arange(num_users, dtype=np.int32),
    },
    relevance=relevance,
    excluded=protocol.logged_positives(log, num_users, num_items),
    num_validation=config.data.validation_users,
  )
