"""Fitting any model of the package: optimizer, progress, Keras `fit`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import tensorflow as tf
from tqdm import tqdm

from tf_twostage.config import FitConfig


def make_optimizer(config: FitConfig) -> tf.keras.optimizers.Optimizer:
  return tf.keras.optimizers.Adagrad(
    learning_rate=config.learning_rate, initial_accumulator_value=config.adagrad_accumulator
  )


def steps_per_epoch(rows: int, config: FitConfig) -> int:
  """Full batches in `rows`; at least one."""
  return max(1, rows // config.batch_size)


class Progress(tf.keras.callbacks.Callback):
  """One bar over all steps of a fit, with time left and the epoch's mean loss.

  Away from a terminal it prints a line every ten seconds at most.
  """

  def __init__(self, description: str, initial_epoch: int = 0):
    super().__init__()
    self._description = description
    self._initial_epoch = initial_epoch

  def on_train_begin(self, logs=None):
    steps = self.params["steps"]
    self._bar = tqdm(
      desc=self._description,
      total=self.params["epochs"] * steps,
      initial=self._initial_epoch * steps,
      unit="step",
      mininterval=0.2 if sys.stderr.isatty() else 10,
      dynamic_ncols=True,
    )

  def on_train_batch_end(self, batch, logs=None):
    self._bar.update(1)

  def on_epoch_end(self, epoch, logs=None):
    self._bar.set_postfix_str(f"epoch {epoch + 1}, loss {logs['mean_loss']:.4f}", refresh=False)

  def on_train_end(self, logs=None):
    self._bar.close()


def fit(
  model: tf.keras.Model,
  dataset: tf.data.Dataset,
  config: FitConfig,
  rows: int,
  description: str,
  *,
  callbacks: Sequence[tf.keras.callbacks.Callback] = (),
  initial_epoch: int = 0,
  progress: bool = True,
) -> dict[str, list[float]]:
  """Fits `model` and returns Keras's history, a list by metric.

  Args:
    model: compiled or not; an uncompiled model gets `make_optimizer(config)`.
    dataset: endless batches, as of `bandit_log.train_dataset`.
    config: epochs, optimizer.
    rows: rows of the data, which set the steps of an epoch.
    description: what the progress bar says.
    callbacks: run after the progress bar's.
    initial_epoch: epochs already done, when resuming.
    progress: whether to show a bar.
  """
  if model.optimizer is None:
    model.compile(optimizer=make_optimizer(config))
  history = model.fit(
    dataset,
    epochs=config.epochs,
    initial_epoch=initial_epoch,
    steps_per_epoch=steps_per_epoch(rows, config),
    verbose=0,
    callbacks=[Progress(description, initial_epoch), *callbacks] if progress else callbacks,
  )
  return history.history
