"""Fitting any model of the package: optimizer, progress, Keras `fit`."""

from __future__ import annotations

import sys
import time

import tensorflow as tf
from tqdm import tqdm

from tf_twostage.config import FitConfig


def make_optimizer(config: FitConfig) -> tf.keras.optimizers.Optimizer:
  return tf.keras.optimizers.Adagrad(
    learning_rate=config.learning_rate, initial_accumulator_value=config.adagrad_accumulator
  )


class InputWait:
  """How long those who read a dataset wait for it; they read it from here.

  The clock is read before and after each element, on the way: nothing is added to a step but that.
  """

  def __init__(self):
    self._seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)
    self.reset()

  def reset(self) -> None:
    """Counts from now on."""
    self._seconds.assign(0.0)
    self._since = time.perf_counter()

  def share(self) -> float:
    """Of the time that has passed, the part that was spent waiting."""
    return float(self._seconds) / max(time.perf_counter() - self._since, 1e-9)

  def watched(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same elements."""
    clock = tf.data.Dataset.counter().map(lambda _: tf.timestamp())

    def count(asked, element):
      self._seconds.assign_add(tf.timestamp() - asked)
      return element

    # Elements of a zip are fetched one after the other, and only when they are asked for.
    watched = tf.data.Dataset.zip((clock, dataset)).map(count)
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False  # it would wait for itself
    return watched.with_options(options)


def steps_per_epoch(rows: int, config: FitConfig) -> int:
  """Full batches in `rows`; at least one."""
  return max(1, rows // config.batch_size)


def progress_bar(description: str, steps: int, *, done: int = 0, shown: bool = True) -> tqdm:
  """A bar over all steps of a fit, with time left.

  Away from a terminal it prints a line every ten seconds at most.
  """
  return tqdm(
    desc=description,
    total=steps,
    initial=done,
    unit="step",
    mininterval=0.2 if sys.stderr.isatty() else 10,
    dynamic_ncols=True,
    disable=not shown,
  )


def show_loss(bar: tqdm, epoch: int, mean_loss: float) -> None:
  """Puts an epoch's mean loss behind the bar."""
  bar.set_postfix_str(f"epoch {epoch}, loss {mean_loss:.4f}", refresh=False)


class _Progress(tf.keras.callbacks.Callback):
  def __init__(self, description: str):
    super().__init__()
    self._description = description

  def on_train_begin(self, logs=None):
    self._bar = progress_bar(self._description, self.params["epochs"] * self.params["steps"])

  def on_train_batch_end(self, batch, logs=None):
    self._bar.update(1)

  def on_epoch_end(self, epoch, logs=None):
    show_loss(self._bar, epoch + 1, self.model.get_metrics_result()["mean_loss"])

  def on_train_end(self, logs=None):
    self._bar.close()


def fit(
  model: tf.keras.Model,
  dataset: tf.data.Dataset,
  config: FitConfig,
  rows: int,
  description: str,
) -> dict[str, list[float]]:
  """Fits `model` and returns Keras's history, a list by metric.

  Args:
    model: compiled or not; an uncompiled model gets `make_optimizer(config)`.
    dataset: endless batches, as of `LogRows.batches`.
    config: epochs, optimizer.
    rows: rows of the data, which set the steps of an epoch.
    description: what the progress bar says.
  """
  if model.optimizer is None:
    model.compile(optimizer=make_optimizer(config))
  history = model.fit(
    dataset,
    epochs=config.epochs,
    steps_per_epoch=steps_per_epoch(rows, config),
    verbose=0,
    callbacks=[_Progress(description)],
  )
  return history.history
