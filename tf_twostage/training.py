"""Training a candidate generator: evaluation by epoch, checkpoints, resume, TensorBoard."""

from __future__ import annotations

import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tf_twostage.bandit_log import BanditLog, train_dataset
from tf_twostage.config import FitConfig
from tf_twostage.evaluation.judge import Measures, Scores
from tf_twostage.evaluation.protocol import MEASURES
from tf_twostage.fitting import fit, make_optimizer, steps_per_epoch
from tf_twostage.models.candidate_generator import CandidateGenerator
from tf_twostage.models.encoders import Codes, TwoTower
from tf_twostage.monitoring import Monitor
from tf_twostage.stages import write_json

_log = logging.getLogger(__name__)

_HISTORY = "history.json"
_BEST = "best"

# One entry an epoch: {"epoch": 1.., "training": {metric: value}, "scores": Scores, "selected":
# what the scores come to when the best epoch is chosen}
History = list[dict[str, Any]]


def best_epoch(history: History) -> dict[str, Any]:
  """The earliest entry that was selected highest."""
  return max(history, key=_selected)


def _selected(epoch: Mapping[str, Any]) -> float:
  return epoch["selected"]


def finished_history(directory: pathlib.Path, epochs: int) -> History | None:
  """What a run in this directory scored, if it got to its last epoch."""
  file = directory / _HISTORY
  history = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
  return history if len(history) >= epochs else None


def restore_best(towers: TwoTower, directory: pathlib.Path, history: History) -> None:
  """Gives `towers` the weights of the best epoch of a run in this directory."""
  path = directory / _BEST / f"ckpt-{best_epoch(history)['epoch']}"
  restored = tf.train.Checkpoint(towers=towers).restore(str(path))
  restored.assert_existing_objects_matched().expect_partial()


def train_generator(
  model: CandidateGenerator,
  log: BanditLog,
  user_codes: Codes,
  evaluate: Callable[[], Scores],
  select: Callable[[Scores], float],
  config: FitConfig,
  directory: pathlib.Path,
  *,
  seed: int,
  hyper_parameters: Mapping[str, Any],
  tensorboard: pathlib.Path,
  measures: Measures = MEASURES,
  notes: Sequence[str] = (),
  progress: bool = True,
) -> History:
  """Fits `model` on the log; leaves it with the weights of its best epoch.

  A run that was cut short goes on from its last finished epoch.

  Args:
    model: fresh; its weights are replaced when resuming.
    log: the rows to fit.
    user_codes: codes of all users, [U, ...].
    evaluate: scores the model as it is.
    select: what the scores come to; the epoch with the most is the best.
    config: epochs and optimizer.
    directory: holds checkpoints/ and history.json.
    seed: fixes the order of rows; the caller seeds the weights.
    hyper_parameters: flat, shown in TensorBoard's HParams tab.
    tensorboard: where event files go.
    measures: what the scores are, for TensorBoard.
    notes: what a reader should know of the data, for TensorBoard's text.
    progress: whether to show a bar.

  Returns:
    one entry an epoch.
  """
  model.compile(optimizer=make_optimizer(config))
  model.optimizer.build(model.trainable_variables)
  run = _Run(model, directory)
  run.restore()
  if run.finished_epochs:
    _log.info("going on after epoch %d of %d", run.finished_epochs, config.epochs)
  start_step = run.finished_epochs * steps_per_epoch(len(log), config)
  dataset = train_dataset(
    log, user_codes, batch_size=config.batch_size, seed=seed, start_step=start_step
  )
  with Monitor(tensorboard, hyper_parameters, measures, notes) as monitor:
    fit(
      model,
      dataset,
      config,
      len(log),
      "generator",
      callbacks=[_EpochEnd(run, evaluate, select, monitor)],
      initial_epoch=run.finished_epochs,
      progress=progress,
    )
  run.restore_best()
  return run.history


class _Run:
  """What a training run keeps on disk: the last epoch, the best epoch, the history."""

  def __init__(self, model: CandidateGenerator, directory: pathlib.Path):
    self._directory = directory
    self._towers = model.towers
    self._history_file = directory / _HISTORY
    last = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    self._last = tf.train.CheckpointManager(last, str(directory / "checkpoints"), max_to_keep=2)
    best = tf.train.Checkpoint(towers=model.towers)
    # Two, so that a kill between the two saves of an epoch still leaves the best finished one.
    self._best = tf.train.CheckpointManager(best, str(directory / _BEST), max_to_keep=2)
    self.history: History = []

  @property
  def finished_epochs(self) -> int:
    return len(self.history)

  def restore(self) -> None:
    if not self._last.latest_checkpoint:
      return
    self._last.checkpoint.restore(self._last.latest_checkpoint).expect_partial()
    epochs = int(self._last.latest_checkpoint.rsplit("-", 1)[-1])
    self.history = json.loads(self._history_file.read_text())[:epochs]

  def restore_best(self) -> None:
    restore_best(self._towers, self._directory, self.history)

  def save(self, epoch: dict[str, Any]) -> None:
    """The checkpoint comes last: it alone makes the epoch count as finished."""
    improved = not self.history or _selected(epoch) > max(map(_selected, self.history))
    self.history.append(epoch)
    if improved:
      self._best.save(self.finished_epochs)
    write_json(self._history_file, self.history)
    self._last.save(self.finished_epochs)


class _EpochEnd(tf.keras.callbacks.Callback):
  def __init__(
    self,
    run: _Run,
    evaluate: Callable[[], Scores],
    select: Callable[[Scores], float],
    monitor: Monitor,
  ):
    super().__init__()
    self._run = run
    self._evaluate = evaluate
    self._select = select
    self._monitor = monitor

  def on_epoch_end(self, epoch, logs=None):
    training = {
      name: float(value)
      for name, value in logs.items()
      if name not in ("loss", "total_loss")  # of the last batch only
    }
    scores = self._evaluate()
    entry = {
      "epoch": epoch + 1,
      "training": training,
      "scores": scores,
      "selected": self._select(scores),
    }
    self._monitor.write(entry)
    self._run.save(entry)
