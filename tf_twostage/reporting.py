"""What a run leaves for people: a table, its CSV, a picture of the curves."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from tf_twostage.evaluation.protocol import Scores
from tf_twostage.training import History

_log = logging.getLogger(__name__)

_SHOWN = ("precision@1", "precision@5", "precision@10", "recall@10", "ndcg@10")


def score_table(policies: Mapping[str, Scores], split: str = "test") -> pd.DataFrame:
  """All metrics in percent; a row for each policy, columns (stage, metric)."""
  rows = {
    policy: {
      (stage, metric): 100 * value
      for stage, metrics in scores[split].items()
      for metric, value in metrics.items()
    }
    for policy, scores in policies.items()
  }
  return pd.DataFrame.from_dict(rows, orient="index").rename_axis("policy")


def format_table(table: pd.DataFrame) -> str:
  """The metrics that fit a terminal, one block a stage."""
  names = {"one_stage": "generator alone", "two_stage": "generator + ranker"}
  blocks = []
  for stage, title in names.items():
    shown = table[stage][list(_SHOWN)]
    blocks.append(f"Test users, {title} (%)\n{shown.to_string(float_format='{:.1f}'.format)}")
  return "\n\n".join(blocks)


def flat_csv(table: pd.DataFrame) -> str:
  flat = table.set_axis(["/".join(column) for column in table.columns], axis=1)
  return flat.to_csv(float_format="%.4f")


def plot_curves(
  history: History, baselines: Mapping[str, Scores], title: str, path: pathlib.Path
) -> None:
  """Loss, and precision@10 of both stages on validation users, by epoch."""
  try:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
  except ImportError:
    _log.warning("no %s: pip install 'tf_twostage[plot]' brings matplotlib", path.name)
    return
  epochs = [entry["epoch"] for entry in history]
  figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
  axes[0].plot(epochs, [entry["training"]["mean_loss"] for entry in history], color="black")
  axes[0].set(title="training loss", ylabel="mean loss of the epoch")
  panels = zip(axes[1:], ("one_stage", "two_stage"), ("generator alone", "+ ranker"), strict=True)
  for axis, stage, name in panels:
    curve = [100 * e["scores"]["validation"][stage]["precision@10"] for e in history]
    axis.plot(epochs, curve, marker="o", markersize=3, label="this run", color="C0")
    shown = {policy: scores for policy, scores in baselines.items() if policy != "random"}
    for i, (policy, scores) in enumerate(shown.items(), start=1):  # random would flatten the curve
      level = 100 * scores["validation"][stage]["precision@10"]
      axis.axhline(level, linestyle="--", linewidth=1, label=policy, color=f"C{i}")
    axis.set(title=f"precision@10, {name}", ylabel="validation users, %")
  for axis in axes:
    axis.set(xlabel="epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
  figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=6)
  figure.suptitle(title)
  aside = path.with_name(f".{path.name}")
  figure.savefig(aside, dpi=120, format="png")
  aside.replace(path)
  pyplot.close(figure)


def format_timings(timings: Mapping[str, Mapping[str, Any]]) -> str:
  """One line: what each stage cost, and what was reused."""
  parts = [
    f"{name} {'reused' if t['reused'] else format(t['seconds'], '.1f') + ' s'}"
    for name, t in timings.items()
  ]
  return "Time: " + ", ".join(parts)


def health_warnings(training: Mapping[str, float], objective: str) -> Sequence[str]:
  """Plain words where the last epoch's diagnostics say that training is not to be trusted."""
  checks = (
    ("effective_sample_share", lambda v: v < 0.1, "a few rows carry the gradient"),
    ("share_capped", lambda v: v > 0.2, "the cap decides the weights of many rows"),
    ("policy_entropy", lambda v: v < 0.5, "the policy has collapsed onto one or two items"),
    ("ranker_share", lambda v: v < 1e-3, "logged items hardly win a slate: nothing is learnt"),
  )
  return [
    f"{objective}: {name} is {training[name]:.3g}; {meaning}"
    for name, is_bad, meaning in checks
    if name in training and is_bad(training[name])
  ]
