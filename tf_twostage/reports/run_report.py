"""What a run leaves for people: a table, its CSV, warnings in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tf_twostage.metrics import FULL_INFORMATION, Metrics, Scores
from tf_twostage.reports.tables import STAGES


def score_table(
  policies: Mapping[str, Scores], split: str = "test", measures: Metrics = FULL_INFORMATION
) -> pd.DataFrame:
  """All metrics as shown; a row for each policy, columns (stage, metric)."""
  rows = {
    policy: {
      (stage, metric): measures.measure(metric).factor * value
      for stage, metrics in scores[split].items()
      for metric, value in metrics.items()
    }
    for policy, scores in policies.items()
  }
  return pd.DataFrame.from_dict(rows, orient="index").rename_axis("policy")


def format_table(table: pd.DataFrame, measures: Metrics = FULL_INFORMATION) -> str:
  """The metrics that fit a terminal, one block a stage; with standard errors where known."""
  blocks = []
  for stage, title in STAGES.items():
    scores = table[stage]
    columns = {}
    for metric, measure in measures.printed.items():
      error = scores[measure.error] if measure.error else pd.Series(np.nan, scores.index)
      columns[measure.heading] = [
        measure.text(*pair) for pair in zip(scores[metric], error, strict=True)
      ]
    shown = pd.DataFrame(columns, index=scores.index)
    blocks.append(f"{measures.title(title)}\n{shown.to_string()}")
  return "\n\n".join(blocks)


def flat_csv(table: pd.DataFrame) -> str:
  flat = table.set_axis(["/".join(column) for column in table.columns], axis=1)
  return flat.to_csv(float_format="%.6g")


def format_timings(timings: Mapping[str, Mapping[str, Any]]) -> str:
  """One line: what each stage cost, and what was reused."""
  parts = []
  for name, t in timings.items():
    parts.append(f"{name} {'reused' if t['reused'] else format(t['seconds'], '.1f') + ' s'}")
    if "input_wait_share" in t:
      parts[-1] += f" ({t['input_wait_share']:.1%} of its steps' time waiting for batches)"
  return "Time: " + ", ".join(parts)


def health_warnings(training: Mapping[str, float], objective: str) -> Sequence[str]:
  """Plain words where the last epoch's diagnostics say that training is not to be trusted."""
  checks = (
    ("effective_sample_share", lambda v: v < 0.1, "a few rows carry the gradient"),
    ("share_capped", lambda v: v > 0.2, "the cap decides the weights of many rows"),
    ("policy_entropy", lambda v: v < 0.5, "the policy has collapsed onto one or two items"),
    (
      "ranker_probability",
      lambda v: v < 1e-3,
      "logged items hardly win a slate: nothing is learnt",
    ),
  )
  return [
    f"{objective}: {name} is {training[name]:.3g}; {meaning}"
    for name, is_bad, meaning in checks
    if name in training and is_bad(training[name])
  ]
