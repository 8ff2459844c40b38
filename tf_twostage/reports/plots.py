"""Pictures: the curves of one run, and of an experiment what a paper would show.

Without matplotlib (extra `[plot]`) nothing is drawn and a warning says so.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tf_twostage import plotting
from tf_twostage.metrics import FULL_INFORMATION, Metrics, Scores
from tf_twostage.reports.tables import STAGES
from tf_twostage.training.loop import History

# Seven colors and eight markers have no common divisor: no two of 56 look alike.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
_BASELINE_MARKERS = ("+", "x", "1", "2")
_BASELINE_COLOR = "0.4"
_MARKS_A_CURVE = 10


def run_curves(
  history: History,
  baselines: Mapping[str, Scores],
  title: str,
  path: pathlib.Path,
  measures: Metrics = FULL_INFORMATION,
) -> None:
  """Saves loss, and the headline of both stages on validation data, by epoch."""
  plotting.save({path: run_picture(history, baselines, title, measures)})


def run_picture(
  history: History, baselines: Mapping[str, Scores], title: str, measures: Metrics
) -> tuple[float, float, Callable[[Any], None]]:
  """Width, height and drawing function of the curves of a run."""

  def draw(figure):
    epochs = [entry["epoch"] for entry in history]
    axes = figure.subplots(1, 3)
    axes[0].plot(epochs, [entry["training"]["mean_loss"] for entry in history], ".-k")
    axes[0].set(title="training loss", ylabel="mean loss of the epoch")
    for axis, (stage, name) in zip(axes[1:], STAGES.items(), strict=True):
      scores = [entry["scores"]["validation"][stage] for entry in history]
      curve = [measures.shown(of_epoch, measures.headline) for of_epoch in scores]
      axis.plot(epochs, curve, ".-", label="this run", color=plotting.COLORS[0])
      _baseline_lines(axis, axis.axhline, baselines, "validation", stage, measures)
      axis.set(title=name, ylabel=measures.caption("validation"))
    for axis in axes:
      _by_epoch(axis)
    figure.suptitle(title)
    _legend(figure, axes[1])

  return 13, 3.8, draw


def experiment(
  every_seed: pd.DataFrame,
  curves: pd.DataFrame,
  variants: Sequence[str],
  baselines: Mapping[str, Scores],
  directory: pathlib.Path,
  measures: Metrics = FULL_INFORMATION,
) -> None:
  """curves.png, losses.png, stages.png and seeds.png.

  Args:
    every_seed: from `tables.every_seed`.
    curves: from `tables.curves`.
    variants: in the order of the legend.
    baselines: drawn as lines; "random" is left out, as it would flatten everything else.
    directory: where the files go.
    measures: name the headline.
  """
  rows = len(variants)
  plotting.save(
    {
      directory / "curves.png": (
        12,
        4.5,
        lambda f: _curves(f, curves, variants, baselines, measures),
      ),
      directory / "losses.png": (
        12,
        1.4 + 0.4 * rows,
        lambda f: _losses(f, every_seed, variants, baselines, measures),
      ),
      directory / "stages.png": (
        7,
        5.5,
        lambda f: _stages(f, every_seed, variants, baselines, measures),
      ),
      directory / "seeds.png": (
        12,
        1.4 + 0.5 * rows,
        lambda f: _seeds(f, every_seed, variants, baselines, measures),
      ),
    }
  )


def _curves(figure, curves, variants, baselines, measures):
  axes = figure.subplots(1, 2)
  for axis, (stage, name) in zip(axes, STAGES.items(), strict=True):
    shown = curves[(curves["stage"] == stage) & (curves["split"] == "validation")]
    for i, variant in enumerate(variants):
      grouped = shown[shown["variant"] == variant].groupby("epoch")["score"]
      mean, sd = grouped.mean(), grouped.std().fillna(0.0)
      marked = -(-len(mean) // _MARKS_A_CURVE)
      axis.plot(mean.index, mean, label=variant, **_look(i), markersize=4, markevery=marked)
      axis.fill_between(
        mean.index, mean - sd, mean + sd, color=_look(i)["color"], alpha=0.15, linewidth=0
      )
    _baseline_lines(axis, axis.axhline, baselines, "validation", stage, measures)
    axis.set(title=name, ylabel=measures.caption("validation"))
    _by_epoch(axis)
  figure.suptitle("By epoch: mean over seeds, band of one standard deviation")
  _legend(figure, axes[0])


def _losses(figure, every_seed, variants, baselines, measures):
  axes = figure.subplots(1, 2, sharey=True)
  for axis, (stage, name) in zip(axes, STAGES.items(), strict=True):
    for i, scores in enumerate(_scores(every_seed, stage, variants, measures)):
      seeds = len(scores)
      half = stats.t.ppf(0.975, seeds - 1) * stats.sem(scores) if seeds > 1 else 0.0
      axis.errorbar(scores.mean(), -i, xerr=half, capsize=4, markersize=5, **_look(i))
    _by_variant(axis, name, variants, baselines, stage, measures)
  figure.suptitle("By loss: mean over seeds, 95% confidence interval")
  _legend(figure, axes[0])


def _stages(figure, every_seed, variants, baselines, measures):
  axis = figure.subplots()
  one, two = (_scores(every_seed, stage, variants, measures) for stage in STAGES)
  for i, variant in enumerate(variants):
    axis.scatter(one[i], two[i], s=25, alpha=0.7, label=variant, **_look(i))
  for i, (name, scores) in enumerate(_shown(baselines).items()):
    x, y = (measures.shown(scores["test"][stage], measures.headline) for stage in STAGES)
    marker = _BASELINE_MARKERS[i % len(_BASELINE_MARKERS)]
    axis.scatter(x, y, s=90, label=name, marker=marker, color=_BASELINE_COLOR)
  limits = axis.axis()
  axis.axline((limits[0], limits[0]), slope=1, color="0.8", linewidth=1, zorder=0)
  axis.axis(limits)  # the points alone say what is shown
  axis.set(
    title="Every seed a point; on the line the ranker changes nothing",
    xlabel=f"{measures.caption('test')}, {STAGES['one_stage']}",
    ylabel=f"{measures.caption('test')}, {STAGES['two_stage']}",
  )
  axis.grid(alpha=0.3)
  _legend(figure, axis)


def _seeds(figure, every_seed, variants, baselines, measures):
  axes = figure.subplots(1, 2, sharey=True)
  for axis, (stage, name) in zip(axes, STAGES.items(), strict=True):
    for i, scores in enumerate(_scores(every_seed, stage, variants, measures)):
      spread = np.linspace(-0.25, 0.25, len(scores)) if len(scores) > 1 else np.zeros(1)
      axis.scatter(scores, spread - i, s=14, alpha=0.7, zorder=3, **_look(i))
      axis.plot([np.median(scores)] * 2, [-i - 0.35, -i + 0.35], color="black", linewidth=1.5)
    _by_variant(axis, name, variants, baselines, stage, measures)
  figure.suptitle("Every seed a point, in the order of seeds from below; the bar is the median")
  _legend(figure, axes[0])


def _scores(
  every_seed: pd.DataFrame, stage: str, variants: Sequence[str], measures: Metrics
) -> list[np.ndarray]:
  column = f"test/{stage}/{measures.headline}"
  return [every_seed.loc[every_seed["variant"] == v, column].to_numpy() for v in variants]


def _look(i: int) -> dict[str, Any]:
  return {"color": plotting.COLORS[i % len(plotting.COLORS)], "marker": _MARKERS[i % len(_MARKERS)]}


def _shown(baselines: Mapping[str, Scores]) -> dict[str, Scores]:
  return {name: scores for name, scores in baselines.items() if name != "random"}


def _baseline_lines(
  axis,
  line: Callable[..., Any],
  baselines: Mapping[str, Scores],
  split: str,
  stage: str,
  measures: Metrics,
) -> None:
  for i, (name, scores) in enumerate(_shown(baselines).items()):
    level = measures.shown(scores[split][stage], measures.headline)
    style = _LINES[i % len(_LINES)]
    line(level, linestyle=style, linewidth=1.2, label=name, color=_BASELINE_COLOR, zorder=1)
  axis.autoscale_view()  # a line near the edge of the data asks for no room by itself


def _by_variant(
  axis,
  title: str,
  variants: Sequence[str],
  baselines: Mapping[str, Scores],
  stage: str,
  measures: Metrics,
) -> None:
  """A row for each variant, from the top; scores of test data along x."""
  _baseline_lines(axis, axis.axvline, baselines, "test", stage, measures)
  axis.set(title=title, xlabel=measures.caption("test"), ylim=(-len(variants) + 0.4, 0.6))
  # A loss and its settings below each other, lest a long name take the picture's width.
  axis.set_yticks(range(0, -len(variants), -1), [v.replace(":", "\n", 1) for v in variants])
  axis.grid(alpha=0.3, axis="x")


def _by_epoch(axis) -> None:
  axis.set(xlabel="epoch")
  axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
  axis.grid(alpha=0.3)


def _legend(figure, axis) -> None:
  """Below everything, in as many columns as its names leave room for; makes the figure higher."""
  handles, names = axis.get_legend_handles_labels()
  if not handles:
    return
  letters = 12 * figure.get_figwidth()  # about what a line holds
  columns = min(len(names), max(1, int(letters / (max(map(len, names)) + 8))))
  figure.legend(handles, names, loc="outside lower center", ncols=columns)
  figure.set_figheight(figure.get_figheight() + 0.25 * -(-len(names) // columns))
