"""TensorBoard: learning curves, the health of off-policy training, hyper-parameters."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.hparams import api as hparams

from tf_twostage.metrics import FULL_INFORMATION, Metrics

# Metrics of `models.health.PolicyHealth`, each with one chart, and how to read them.
HEALTH = {
  "effective_sample_share": "Effective sample size of the weighted log, as a share of its rows."
  " Healthy: above 0.1. Near 0, a few rows determine the gradient.",
  "weight_mean": "Mean ratio of policy to propensity, before clipping. It is 1 if the policy covers"
  " what the log covers; a large mean shows that the policy leaves the support of the log.",
  "weight_max": "Largest ratio of the epoch, before clipping.",
  "share_capped": "Share of rows whose weight was cut to the cap. Healthy: below 0.2.",
  "share_floored": "Share of rows whose weight was raised to the floor: the policy has almost"
  " excluded their items.",
  "policy_entropy": "Of one candidate, in nats; log(catalogue size) for the uniform policy. A fall"
  " towards 0 shows a collapse to one item. Of distinct candidates it is at least log(slate_size).",
  "ranker_probability": "Mean probability with which the ranker chooses the logged item from a"
  " slate; 1/slate_size for a constant ranker. Near 0, there is no learning signal.",
}

_GUIDE = "\n".join(
  ["| chart | how to read it |", "|---|---|", *(f"| {k} | {v} |" for k, v in HEALTH.items())]
)


class Monitor:
  """Writes the events of one training run; a context manager, which opens the file."""

  def __init__(
    self,
    directory: pathlib.Path,
    hyper_parameters: Mapping[str, Any],
    metrics: Metrics = FULL_INFORMATION,
    notes: Sequence[str] = (),
  ):
    self._directory = directory
    self._hyper_parameters = dict(hyper_parameters)
    self._metrics = metrics
    self._notes = notes

  def __enter__(self) -> Monitor:
    self._writer = tf.summary.create_file_writer(str(self._directory))
    with self._writer.as_default(step=0):
      hparams.hparams_config(
        hparams=[hparams.HParam(name) for name in self._hyper_parameters],
        metrics=[
          hparams.Metric(f"validation_{stage}/{self._metrics.headline}")
          for stage in ("two_stage", "one_stage")
        ],
      )
      hparams.hparams(self._hyper_parameters)
      tf.summary.text("how_to_read_health", _GUIDE)
      if self._notes:
        tf.summary.text("notes", "\n".join(f"- {note}" for note in self._notes))
      layout = _layout(self._metrics).SerializeToString()
      tf.summary.experimental.write_raw_pb(layout, step=0)
    return self

  def __exit__(self, *_: Any) -> None:
    self._writer.close()

  def write(self, entry: Mapping[str, Any]) -> None:
    """Adds an entry of the training history: loss, health, scores on validation data."""
    with self._writer.as_default(step=entry["epoch"]):
      for name, value in entry["training"].items():
        group = "health" if name in HEALTH else "loss"
        tf.summary.scalar(f"{group}/{name}", value)
      if "input_wait_share" in entry:
        tf.summary.scalar("input/wait_share", entry["input_wait_share"])
      for stage, scores in entry.get("scores", {}).get("validation", {}).items():
        for metric, value in scores.items():
          tf.summary.scalar(f"validation_{stage}/{metric}", value)
    self._writer.flush()


def _layout(metrics: Metrics):
  def chart(title, *tags):
    return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=tags))

  health = [chart(name.replace("_", " "), f"^health/{name}$") for name in HEALTH]
  quality = [
    *(
      chart(f"{metric}, {title}", f"^validation_{stage}/{metric}$")
      for metric in dict.fromkeys((metrics.headline, *metrics.printed))
      for stage, title in (("one_stage", "generator alone"), ("two_stage", "+ ranker"))
    ),
    chart("mean loss", "^loss/mean_loss$"),
  ]
  return custom_scalar.pb(
    layout_pb2.Layout(
      category=[
        layout_pb2.Category(title=f"Quality on validation {metrics.population}", chart=quality),
        layout_pb2.Category(title="Health of off-policy training", chart=health),
      ]
    )
  )
