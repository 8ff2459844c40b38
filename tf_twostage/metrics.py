"""The metrics of evaluators: their names, how they are printed, which one chooses the epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

SERVED = "served"  # the stage of what `recommend` and exports answer
STAGES = {"one_stage": "generator alone", "two_stage": "generator + ranker"}
# What both stages show if they draw: candidates with repeats, or distinct ones.
TWO_STAGES = {
  "two_stage": STAGES["two_stage"],
  "distinct": "generator + ranker, distinct candidates",
}
CUTOFFS = (1, 5, 10)

# {"validation" or "test": {"one_stage" or "two_stage": {metric: value}}}
Scores = dict[str, dict[str, dict[str, float]]]


@dataclasses.dataclass(frozen=True)
class Metric:
  """How one metric is shown.

  Attributes:
    heading: of its column.
    factor: values are multiplied by it to be shown; 100 gives percent.
    decimals: printed digits after the point.
    error: name of the metric that holds its standard error, if there is one.
  """

  heading: str
  factor: float = 100.0
  decimals: int = 1
  error: str | None = None

  def text(self, shown: float, error: float = np.nan) -> str:
    """A value that is already multiplied, and its standard error unless that is NaN."""
    text = f"{shown:.{self.decimals}f}"
    return text if np.isnan(error) else f"{text} ± {error:.{self.decimals}f}"


@dataclasses.dataclass(frozen=True)
class Metrics:
  """The metrics of one evaluator.

  Attributes:
    compared: columns of an experiment's tables, by name.
    printed: columns of the table that a single run prints, by name.
    headline: the metric of plots, paired tests and TensorBoard's first chart.
    selects: the metric that chooses the best epoch on validation data.
    unit: of the compared metrics as shown, such as "%"; may be empty.
    population: what is held out, such as "users".
  """

  compared: Mapping[str, Metric]
  printed: Mapping[str, Metric]
  headline: str
  selects: str
  unit: str
  population: str

  @property
  def head(self) -> Metric:
    return self.compared[self.headline]

  def metric(self, name: str) -> Metric:
    """How a metric is shown; one that is in no table is shown like the headline."""
    return {**self.compared, **self.printed}.get(name, self.head)

  def shown(self, scores: Mapping[str, float], name: str) -> float:
    """The value of a stage's scores as shown."""
    return self.metric(name).factor * scores[name]

  def caption(self, split: str) -> str:
    """Label of an axis: "precision@10, test users, %"."""
    return ", ".join(filter(None, [self.headline, f"{split} {self.population}", self.unit]))

  def title(self, stage: str) -> str:
    """Title of a table of test data: "Test users, generator alone (%)"."""
    return f"Test {self.population}, {stage}" + (f" ({self.unit})" if self.unit else "")

  def selection(self, stage: str) -> Callable[[Scores], float]:
    """A function from scores to the number that is highest at the best epoch.

    Args:
      stage: "one_stage", "two_stage", or "both" for the mean of the two.
    """
    stages = STAGES if stage == "both" else (stage,)
    return lambda scores: float(np.mean([scores["validation"][s][self.selects] for s in stages]))


FULL_INFORMATION = Metrics(
  compared={
    f"{name}@{k}": Metric(f"{heading}@{k}")
    for name, heading, cutoffs in (
      ("precision", "P", CUTOFFS),
      ("recall", "R", CUTOFFS[1:]),
      ("ndcg", "NDCG", CUTOFFS[1:]),
    )
    for k in cutoffs
  },
  printed={
    name: Metric(name)
    for name in ("precision@1", "precision@5", "precision@10", "recall@10", "ndcg@10")
  },
  headline="precision@10",
  selects="precision@10",
  unit="%",
  population="users",
)

CHOICES = dataclasses.replace(FULL_INFORMATION, headline="ndcg@10", selects="ndcg@10")

_VALUES = {
  **{
    name: Metric(name.upper(), factor=1.0, decimals=4, error=f"{name}_error")
    for name in ("snips", "ips", "dr")
  },
  "effective_sample_size": Metric("effective sample", factor=1.0, decimals=0),
}
HELD_OUT = Metrics(
  compared=_VALUES,
  printed=_VALUES,
  headline="snips",
  selects="gain_lower_bound",
  unit="mean reward of an item",
  population="rows",
)


def effective_sample_size(weights: np.ndarray) -> float:
  """(Σω)² / Σω² [Kish 1965]: how many equal weights would be as good; 0 without weight.

  Weights are divided by the largest first, so that squares of huge weights do not overflow.
  """
  largest = weights.max()
  if largest == 0:
    return 0.0
  scaled = weights / largest
  return float(scaled.sum() ** 2 / (scaled**2).sum())
