"""The report of one run: a table of scores, its CSV, timings and warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tf_twostage.metrics import FULL_INFORMATION, STAGES, Metrics, Scores

# Diagnostics of the last epoch, the range in which they are suspicious, and what that means.
_HEALTH = (
  ("effective_sample_share", (-np.inf, 0.1), "a few rows carry the gradient"),
  ("share_capped", (0.2, np.inf), "the cap decides the weights of many rows"),
  ("policy_entropy", (-np.inf, 0.5), "the policy has collapsed onto one or two items"),
  ("ranker_probability", (-np.inf, 1e-3), "logged items hardly win a slate: nothing is learnt"),
)


def score_table(
  policies: Mapping[str, Scores], split: str = "test", metrics: Metrics = FULL_INFORMATION
) -> pd.DataFrame:
  """All metrics as shown: a row for each policy, columns (stage, metric)."""
  rows = {
    policy: {
      (stage, name): metrics.shown(values, name)
      for stage, values in scores[split].items()
      for name in values
    }
    for policy, scores in policies.items()
  }
  return pd.DataFrame.from_dict(rows, orient="index").rename_axis("policy")


def format_table(table: pd.DataFrame, metrics: Metrics = FULL_INFORMATION) -> str:
  """The metrics that fit a terminal, one block for each stage, with standard errors if known."""
  blocks = []
  for stage, title in STAGES.items():
    scores = table[stage]
    columns = {}
    for name, metric in metrics.printed.items():
      error = scores[metric.error] if metric.error else np.full(len(scores), np.nan)
      columns[metric.heading] = list(map(metric.text, scores[name], error))
    shown = pd.DataFrame(columns, index=scores.index)
    blocks.append(f"{metrics.title(title)}\n{shown.to_string()}")
  return "\n\n".join(blocks)


def unknown_values(table: pd.DataFrame, metrics: Metrics = FULL_INFORMATION) -> list[str]:
  """A sentence that names the policies whose headline is not known, if there are any."""
  headlines = [table[stage][metrics.headline] for stage in STAGES]
  unknown = [str(n) for n in table.index if any(np.isnan(scores[n]) for scores in headlines)]
  if not unknown:
    return []
  return [
    f"{metrics.headline} of {', '.join(unknown)} is not known (nan): the test {metrics.population}"
    " show none of the items that such a policy recommends"
  ]


def flat_csv(table: pd.DataFrame) -> str:
  """The table with columns stage/metric."""
  return table.set_axis(table.columns.map("/".join), axis=1).to_csv(float_format="%.6g")


def format_timings(timings: Mapping[str, Mapping[str, Any]]) -> str:
  """One line: the time of each stage of work, and which were reused."""
  parts = []
  for name, t in timings.items():
    parts.append(f"{name} {'reused' if t['reused'] else format(t['seconds'], '.1f') + ' s'}")
    if "input_wait_share" in t:
      parts[-1] += f" ({t['input_wait_share']:.1%} of its steps' time waiting for batches)"
  return "Time: " + ", ".join(parts)


def health_warnings(training: Mapping[str, float], objective: str) -> Sequence[str]:
  """Warnings where the last epoch's diagnostics show that training is not to be trusted."""
  return [
    f"{objective}: {name} is {training[name]:.3g}; {meaning}"
    for name, (low, high), meaning in _HEALTH
    if name in training and low < training[name] < high
  ]
