"""The metrics of evaluators: what they are called, how they are printed, which one selects."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

STAGES = ("one_stage", "two_stage")
CUTOFFS = (1, 5, 10)
_HEADINGS = {"precision": "P", "recall": "R", "ndcg": "NDCG"}

# {"validation" or "test": {"one_stage" or "two_stage": {metric: ...}}}
Scores = dict[str, dict[str, dict[str, float]]]


@dataclasses.dataclass(frozen=True)
class Metric:
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
class Metrics:
  """The metrics of a evaluator.

  Attributes:
    compared: the metrics of an experiment's tables.
    printed: those of the table that a single run prints.
    headline: what tests compare, figures draw and TensorBoard's tables lead with.
    selects: what chooses the epoch, read on validation data.
    unit: of the compared metrics as shown, such as "%"; or "".
    judged: what is held out, such as "users".
  """

  compared: Mapping[str, Metric]
  printed: Mapping[str, Metric]
  headline: str
  selects: str
  unit: str
  judged: str

  @property
  def head(self) -> Metric:
    return self.compared[self.headline]

  def measure(self, metric: str) -> Metric:
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


def _named(*metrics: str, heading: bool) -> dict[str, Metric]:
  def short(metric: str) -> str:
    name, cutoff = metric.split("@")
    return f"{_HEADINGS[name]}@{cutoff}" if heading else metric

  return {metric: Metric(short(metric)) for metric in metrics}


FULL_INFORMATION = Metrics(
  compared=_named(
    "precision@1",
    "precision@5",
    "precision@10",
    "recall@5",
    "recall@10",
    "ndcg@5",
    "ndcg@10",
    heading=True,
  ),
  printed=_named(
    "precision@1", "precision@5", "precision@10", "recall@10", "ndcg@10", heading=False
  ),
  headline="precision@10",
  selects="precision@10",
  unit="%",
  judged="users",
)


_VALUES = {
  "snips": Metric("SNIPS", factor=1.0, decimals=4, error="snips_error"),
  "ips": Metric("IPS", factor=1.0, decimals=4, error="ips_error"),
  "dr": Metric("DR", factor=1.0, decimals=4, error="dr_error"),
  "effective_sample_size": Metric("effective rows", factor=1.0, decimals=0),
}
HELD_OUT = Metrics(
  compared=_VALUES,
  printed=_VALUES,
  headline="snips",
  selects="gain_lower_bound",
  unit="mean reward",
  judged="rows",
)


def effective_sample_size(weights: np.ndarray) -> float:
  """(Σω)² / Σω², [Kish 1965]: how many equally weighted rows would be as good; 0 without weight.

  Scale does not matter, and the sum of squares of huge weights does not overflow.
  """
  largest = weights.max()
  if largest == 0:
    return 0.0
  scaled = weights / largest
  return float(scaled.sum() ** 2 / (scaled**2).sum())
