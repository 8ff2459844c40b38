"""Who says how good a policy is: an interface, and how its scores are called and shown.

Two judges exist. `protocol.EvaluationSet` knows every user-item pair; `held_out.HeldOutRows` knows
no more than a log, and estimates. Training, tables, figures and TensorBoard read `Measures`, so
that none of them has to know which judge it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

STAGES = ("one_stage", "two_stage")

# Maps {"user": codes, "context": raw values, "user_index": [B]} to logits [B, N].
Scorer = Callable[[Mapping[str, Any]], tf.Tensor]
# {"validation" or "test": {"one_stage" or "two_stage": {metric: ...}}}
Scores = dict[str, dict[str, dict[str, float]]]


@dataclasses.dataclass(frozen=True)
class Measure:
  """How one metric is shown.

  Attributes:
    heading: of its column.
    factor: what a score is multiplied with; 100 makes percent.
    decimals: how many are printed.
    error: the metric that holds its standard error, where the judge knows one.
  """

  heading: str
  factor: float = 100.0
  decimals: int = 1
  error: str | None = None

  def text(self, shown: float, error: float = np.nan) -> str:
    """A number, multiplied already, and its standard error unless that is NaN."""
    text = f"{shown:.{self.decimals}f}"
    return text if np.isnan(error) else f"{text} ± {error:.{self.decimals}f}"


@dataclasses.dataclass(frozen=True)
class Measures:
  """The metrics of a judge.

  Attributes:
    compared: the metrics of an experiment's tables.
    printed: those of the table that a single run prints.
    headline: what tests compare, figures draw and TensorBoard's tables lead with.
    selects: what chooses the epoch, read on validation data.
    unit: of the compared metrics as shown, such as "%"; or "".
    judged: what is held out, such as "users".
  """

  compared: Mapping[str, Measure]
  printed: Mapping[str, Measure]
  headline: str
  selects: str
  unit: str
  judged: str

  @property
  def head(self) -> Measure:
    return self.compared[self.headline]

  def measure(self, metric: str) -> Measure:
    """How a metric is shown; one that no table shows, as the headline is."""
    return {**self.compared, **self.printed}.get(metric, self.head)

  def shown(self, scores: Mapping[str, float], metric: str) -> float:
    """The number to show of a stage's scores."""
    return self.measure(metric).factor * scores[metric]

  def caption(self, split: str) -> str:
    """Of an axis: "precision@10, test users, %"."""
    return ", ".join(filter(None, [self.headline, f"{split} {self.judged}", self.unit]))

  def title(self, stage: str) -> str:
    """Of a table of test data: "Test users, generator alone (%)"."""
    return f"Test {self.judged}, {stage}" + (f" ({self.unit})" if self.unit else "")

  def selection(self, stage: str) -> Callable[[Scores], float]:
    """What scores come to when the best epoch is chosen: `selects` on validation data.

    Args:
      stage: "one_stage", "two_stage", or "both" for the mean of the two.
    """
    stages = STAGES if stage == "both" else (stage,)

    def select(scores: Scores) -> float:
      return float(np.mean([scores["validation"][s][self.selects] for s in stages]))

    return select


class Judge(Protocol):
  """What an environment asks how good a scorer is."""

  @property
  def measures(self) -> Measures:
    """The metrics of its scores."""
    ...

  @property
  def settings(self) -> Mapping[str, Any]:
    """What its scores depend on beyond the environment and the scorer; JSON-able."""
    ...

  def evaluation(
    self, scorer: Scorer, ranker_logits: Scorer, slate_size: int
  ) -> Callable[[], Scores]:
    """A function that scores `scorer`, alone and with the ranker behind it, as it is when called
    (a model under training, say)."""
    ...

  def known(self) -> Mapping[str, Scores]:
    """Scores of policies that no scorer stands for, by name."""
    ...

  def warnings(self, scores: Scores) -> list[str]:
    """Plain words where scores are not to be trusted."""
    ...
