"""The environment of a generator: log, ranker, evaluator and baselines."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tf_twostage.config import Config
from tf_twostage.data.rows import LogRows
from tf_twostage.data.schema import FeatureTable, Schema, columns
from tf_twostage.data.streamed import TrainingRows
from tf_twostage.evaluation import full_information
from tf_twostage.evaluation.evaluation_log import EvaluationLog
from tf_twostage.evaluation.evaluator import Evaluator, Scorer
from tf_twostage.evaluation.full_information import FullInformationEvaluator
from tf_twostage.evaluation.slot_examination import Examination
from tf_twostage.metrics import Scores
from tf_twostage.models.encoders import EncodedTables
from tf_twostage.models.generator import RankerLogits
from tf_twostage.models.ranker import Ranker
from tf_twostage.models.slate_ranker import SlateRanker, TowerRanker
from tf_twostage.workspace import Workspace, read_numbers, write_json

_SOME = 5  # users whose recommendations an export is tested with


class SecondStage(NamedTuple):
  """A ranker: scores of the catalogue, or of some items; the same for an export; and what it is.

  The scores of an export may differ by a constant. `stage` identifies the scores.
  """

  logits: RankerLogits
  of_slates: SlateRanker
  stage: str
  facts: Mapping[str, Any] = {}
  notes: tuple[str, ...] = ()
  trainable: Callable[[], Ranker] | None = None  # makes a copy that may learn further


class FittedPolicy(NamedTuple):
  """A baseline that `fit` makes for a slate size; `inputs` say what it depends on, JSON-able."""

  inputs: Mapping[str, Any]
  fit: Callable[[Workspace, int], Scorer]


@dataclasses.dataclass(frozen=True)
class Environment:
  """A log, a ranker and an evaluator.

  Attributes:
    tables: users and items as codes.
    users: raw user features, [U, ...] each.
    titles: [N] display names of the items.
    log: the rows that generators are trained on, with propensities.
    evaluator: scores a generator.
    ranker_logits, slate_ranker: the ranker; see `SecondStage`.
    trainable_ranker: makes a copy of the ranker that may learn further; None: it may not.
    policies: baselines of every table, by name.
    fitted_policies: more baselines, by name, made when they are first scored.
    requests: raw values of a few users, which an export is tested with.
    name: identifies all of the above, so that results of different environments stay apart.
    facts: numbers worth reporting, such as the simulator's AUC; JSON-able.
    evaluation_log: builds, or finds built, the log for off-policy evaluation: rows that generators
      were not trained on, or a note that they were.
    notes: sentences for readers of the results.
    item_bias: [N], where the item biases of generators start; None: at 0.
    examination: of the slots of the log, if it was estimated.
    slot_examination: mean probability that each slot is examined, relative to the first, if known.
  """

  tables: EncodedTables
  users: FeatureTable
  titles: np.ndarray
  log: TrainingRows
  evaluator: Evaluator
  ranker_logits: RankerLogits
  slate_ranker: SlateRanker
  policies: Mapping[str, Scorer]
  requests: FeatureTable
  name: str
  facts: Mapping[str, Any]
  evaluation_log: Callable[[Workspace], EvaluationLog]
  notes: tuple[str, ...] = ()
  fitted_policies: Mapping[str, FittedPolicy] = dataclasses.field(default_factory=dict)
  trainable_ranker: Callable[[], Ranker] | None = None
  item_bias: np.ndarray | None = None
  examination: Examination | None = None
  slot_examination: tuple[float, ...] | None = None

  def following(self, ranker: Ranker) -> Environment:
    """The same environment with a ranker that learns, as it is whenever it is asked."""
    return dataclasses.replace(self, ranker_logits=ranker.logits)

  def with_ranker(self, ranker: Ranker) -> Environment:
    """The same environment with another ranker, which evaluation and export then use."""
    return dataclasses.replace(
      self, ranker_logits=ranker.frozen(), slate_ranker=TowerRanker(ranker.towers, ranker.scale)
    )

  def evaluation(
    self, scorer: Scorer, slate_size: int, stage: str = "two_stage"
  ) -> Callable[[], Scores]:
    """A function that evaluates the current `scorer`, alone and followed by this ranker."""
    return self.evaluator.evaluation(scorer, self.ranker_logits, slate_size, stage)

  def baselines(
    self, workspace: Workspace, slate_size: int, stage: str = "two_stage"
  ) -> dict[str, Scores]:
    """Scores of the baselines of every table; a cached stage."""

    def build(directory: pathlib.Path) -> None:
      scores = {**self.evaluator.known()}
      made = {n: of.fit(workspace, slate_size) for n, of in self.fitted_policies.items()}
      policies = {**self.policies, **made}
      scores |= {n: self.evaluation(p, slate_size, stage)() for n, p in policies.items()}
      write_json(directory / "scores.json", scores)

    inputs = {
      "environment": self.name,
      "policies": [*self.policies],
      "fitted": {name: of.inputs for name, of in self.fitted_policies.items()},
      "slate_size": slate_size,
      **self.evaluator.settings,
    }
    if self.evaluator.draws and stage != "two_stage":
      inputs["stage"] = stage
    directory = workspace.stage("baselines", inputs, build)
    return read_numbers(directory / "scores.json")


def with_full_information(
  config: Config,
  tables: EncodedTables,
  users: FeatureTable,
  log: LogRows,
  ranker: SecondStage,
  *,
  relevance: np.ndarray,
  context: Mapping[str, np.ndarray],
  excluded: np.ndarray | None,
  popularity: np.ndarray,
  logging_vectors: tuple[np.ndarray, np.ndarray] | None = None,
  **fields: Any,
) -> Environment:
  """An environment whose evaluator reads the label of every pair.

  `relevance` and `excluded` are [E, N] bool, of the last E users, which are evaluated in their raw
  `context` [E]. Excluded items are neither recommended nor counted. Baselines are the order of
  `popularity` [N], and the policy of `logging_vectors` (users, items), if given.
  """
  num_users = len(next(iter(users.values())))
  evaluated = slice(num_users - len(relevance), num_users)
  evaluator = FullInformationEvaluator(
    inputs={
      "user": {name: codes[evaluated] for name, codes in tables.users.items()},
      "context": dict(context),
      "user_index": np.arange(evaluated.start, evaluated.stop, dtype=np.int32),
    },
    relevance=relevance,
    excluded=excluded,
    num_validation=config.data.validation_users,
  )
  policies: dict[str, Scorer] = {}
  if logging_vectors is not None:
    policies["logging policy"] = full_information.vector_scorer(*logging_vectors)
  policies |= {
    "popularity": full_information.list_scorer(popularity),
    "ranker, all items": ranker.logits,
    "random": full_information.random_scorer(len(popularity), config.environment_seed),
  }
  return Environment(
    tables=tables,
    users=users,
    log=log,
    evaluator=evaluator,
    ranker_logits=ranker.logits,
    slate_ranker=ranker.of_slates,
    trainable_ranker=ranker.trainable,
    policies=policies,
    requests=requests(
      tables.schema, {n: values[evaluated] for n, values in users.items()}, context, excluded
    ),
    **fields,
  )


def requests(
  schema: Schema,
  users: FeatureTable,
  context: Mapping[str, np.ndarray],
  excluded: np.ndarray | None = None,
) -> FeatureTable:
  """Raw requests of the first users and contexts, [U] each, without excluded items, [U, N]."""
  rows = slice(0, _SOME)
  exclude = np.full((min(_SOME, len(users[schema.user_id.name])), 1), "")
  if excluded is not None:
    excluded = excluded[rows]
    ids = np.asarray(schema.item_id.vocabulary, object)
    width = max(1, excluded.sum(axis=1).max())
    best = np.argsort(~excluded, axis=1, kind="stable")[:, :width]
    exclude = np.where(np.take_along_axis(excluded, best, axis=1), ids[best], "")
  inputs = [name for feature in schema.user_inputs for name in columns(feature)]
  return {
    **{name: np.asarray(users[name])[rows] for name in inputs},
    **{feature.name: context[feature.name][rows] for feature in schema.context},
    "exclude": exclude,
  }
