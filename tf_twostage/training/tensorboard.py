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

# Metric of `models.health.PolicyHealth` -> its chart and how to read it.
HEALTH = {
  "effective_sample_share": "Share of rows the weighted log is worth. Sound: above 0.1. Near 0, "
  "a few rows carry the gradient.",
  "weight_mean": "Mean raw ratio of policy to propensity. On its own log's distribution it is 1; "
  "far above, the policy leaves the log's support.",
  "weight_max": "Largest raw ratio of the epoch, before clipping.",
  "share_capped": "Rows whose weight was cut to the cap. Sound: below 0.2; above, the cap decides.",
  "share_floored": "Rows whose weight was raised to the floor: items the policy has given up.",
  "policy_entropy": "Nats; log(catalogue size) when uniform. A fall towards 0 is a collapse onto "
  "one item.",
  "ranker_probability": "Mean share q that the ranker gives the logged item in a sampled slate; "
  "1/slate_size when the ranker is indifferent. Towards 0, nothing is learnt.",
}

_GUIDE = "\n".join(
  ["| chart | how to read it |", "|---|---|", *(f"| {k} | {v} |" for k, v in HEALTH.items())]
)


class Monitor:
  """Writes one training run's events; a context manager."""

  def __init__(
    self,
    directory: pathlib.Path,
    hyper_parameters: Mapping[str, Any],
    measures: Metrics = FULL_INFORMATION,
    notes: Sequence[str] = (),
  ):
    """Args:
    directory: where event files go.
    hyper_parameters: flat.
    measures: of the judge whose scores are written.
    notes: what a reader should know of the data; sentences.
    """
    self._writer = tf.summary.create_file_writer(str(directory))
    with self._writer.as_default(step=0):
      hparams.hparams_config(
        hparams=[hparams.HParam(name) for name in hyper_parameters],
        metrics=[
          hparams.Metric(f"validation_{stage}/{measures.headline}")
          for stage in ("two_stage", "one_stage")
        ],
      )
      hparams.hparams(dict(hyper_parameters))
      tf.summary.text("how_to_read_health", _GUIDE)
      if notes:
        tf.summary.text("notes", "\n".join(f"- {note}" for note in notes))
      tf.summary.experimental.write_raw_pb(_layout(measures).SerializeToString(), step=0)

  def __enter__(self) -> Monitor:
    return self

  def __exit__(self, *_: Any) -> None:
    self._writer.close()

  def write(self, entry: Mapping[str, Any]) -> None:
    """Adds an entry of the training history: the loss, its health, scores on validation."""
    with self._writer.as_default(step=entry["epoch"]):
      for name, value in entry["training"].items():
        group = "health" if name in HEALTH else "loss"
        tf.summary.scalar(f"{group}/{name}", value)
      if "input_wait_share" in entry:
        tf.summary.scalar("input/wait_share", entry["input_wait_share"])
      for stage, scores in entry["scores"]["validation"].items():
        for metric, value in scores.items():
          tf.summary.scalar(f"validation_{stage}/{metric}", value)
    self._writer.flush()


def _layout(measures: Metrics):
  def chart(title, *tags):
    return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=tags))

  health = [chart(name.replace("_", " "), f"^health/{name}$") for name in HEALTH]
  quality = [
    *(
      chart(f"{metric}, {title}", f"^validation_{stage}/{metric}$")
      for metric in dict.fromkeys((measures.headline, *measures.printed))
      for stage, title in (("one_stage", "generator alone"), ("two_stage", "+ ranker"))
    ),
    chart("mean loss", "^loss/mean_loss$"),
  ]
  return custom_scalar.pb(
    layout_pb2.Layout(
      category=[
        layout_pb2.Category(title=f"Quality on validation {measures.population}", chart=quality),
        layout_pb2.Category(title="Health of off-policy training", chart=health),
      ]
    )
  )
