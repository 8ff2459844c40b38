"""Training a candidate generator: evaluation by epoch, checkpoints, resume, TensorBoard.

What is in a checkpoint, and what a resumed run has in common with an uninterrupted one, is told in
docs/training.md.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import pathlib
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tf_twostage.config import CheckpointConfig, FitConfig
from tf_twostage.data.rows import TrainingRows
from tf_twostage.errors import RunError, reason
from tf_twostage.metrics import FULL_INFORMATION, Metrics, Scores
from tf_twostage.training.checkpoints import Checkpoints
from tf_twostage.training.distribution import Workers
from tf_twostage.training.fitting import (
  InputWait,
  make_optimizer,
  progress_bar,
  show_loss,
  steps_per_epoch,
)
from tf_twostage.training.signals import Stopped, deferred
from tf_twostage.training.tensorboard import Monitor
from tf_twostage.workspace import write_json

if TYPE_CHECKING:
  from tf_twostage.models.encoders import Codes, TwoTower
  from tf_twostage.models.generator import CandidateGenerator

_log = logging.getLogger(__name__)

_HISTORY = "history.json"
_BEST = "best"
_CHECKPOINTS = CheckpointConfig()
_SEEDS_APART = 1_000_003  # more than a worker has steps, most likely

# One entry an epoch: {"epoch": 1.., "training": {metric: value}, "scores": Scores, "selected":
# what the scores come to when the best epoch is chosen, "input_wait_share": how much of the time of
# its steps they waited for their batches}. But for this share, interruptions change nothing.
History = list[dict[str, Any]]


def best_epoch(history: History) -> dict[str, Any]:
  """The earliest entry that was selected highest."""
  return max(history, key=_selected)


def _selected(epoch: Mapping[str, Any]) -> float:
  return epoch["selected"]


def finished_history(directory: pathlib.Path, epochs: int) -> History | None:
  """What a run in this directory scored, if it got to its last epoch."""
  try:
    history = json.loads((directory / _HISTORY).read_text(encoding="utf-8"))
  except (OSError, ValueError):  # there is none, or it is damaged: a checkpoint has it, too
    return None
  return history if len(history) >= epochs else None


def restore_best(towers: TwoTower, directory: pathlib.Path, history: History) -> None:
  """Gives `towers` the weights of the best epoch of a run in this directory."""
  path = directory / _BEST / f"ckpt-{best_epoch(history)['epoch']}"
  restored = tf.train.Checkpoint(towers=towers).read(str(path))
  restored.assert_existing_objects_matched().expect_partial()


def train_generator(
  model: CandidateGenerator,
  log: TrainingRows,
  user_codes: Codes,
  evaluate: Callable[[], Scores],
  select: Callable[[Scores], float],
  config: FitConfig,
  directory: pathlib.Path,
  *,
  seed: int,
  hyper_parameters: Mapping[str, Any],
  tensorboard: pathlib.Path,
  measures: Metrics = FULL_INFORMATION,
  notes: Sequence[str] = (),
  checkpoints: CheckpointConfig = _CHECKPOINTS,
  progress: bool = True,
  workers: Workers | None = None,
) -> History:
  """Fits `model` on the log; leaves it with the weights of its best epoch.

  A run that was cut short goes on from its last checkpoint. Where workers train together, all of
  them call this at the same time; the chief alone evaluates, and writes.

  Args:
    model: fresh, made in the workers' scope; its weights are replaced when resuming.
    log: the rows to fit.
    user_codes: codes of all users, [U, ...].
    evaluate: scores the model as it is.
    select: what the scores come to; the epoch with the most is the best.
    config: epochs and optimizer.
    directory: holds checkpoints/ and history.json; workers share it.
    seed: fixes the order of rows; the caller seeds the weights.
    hyper_parameters: flat, shown in TensorBoard's HParams tab.
    tensorboard: where event files go.
    measures: what the scores are, for TensorBoard.
    notes: what a reader should know of the data, for TensorBoard's text.
    checkpoints: when to save between the ends of epochs.
    progress: whether to show a bar.
    workers: who trains; None: this process.

  Returns:
    one entry an epoch; nothing where another worker is the chief.

  Raises:
    Stopped: SIGTERM or SIGINT came, to any worker; the step at work was finished and saved.
    RunError: the loss or the weights are not finite any more, memory is short, or nothing can be
      saved.
  """
  workers = workers or Workers()
  with workers.scope():
    model.compile(optimizer=make_optimizer(config))
    model.optimizer.build(model.trainable_variables)
  steps = steps_per_epoch(len(log), config)
  run = _Run(model, directory, workers, epochs=config.epochs, steps=steps)
  run.restore()

  wait = InputWait()

  def batches(readers: Workers, start_step: int) -> Iterator[Any]:
    options: dict[str, Any] = {
      "batch_size": config.batch_size,
      "seed": seed,
      "start_step": start_step,
    }
    if readers.alone:  # else devices have buffers, and nobody sees how long they wait for these
      return iter(wait.watched(log.batches(user_codes, **options)))
    return readers.batches(log, user_codes, **options)

  if run.step < run.last_step and not workers.is_chief:
    with log.reading():
      _train(model, batches, lambda metrics: run.save(), run, workers, checkpoints, False)
  elif run.step < run.last_step:
    with run.saving():
      monitor = Monitor(tensorboard, hyper_parameters, measures, notes)

    def finish_epoch(metrics: dict[str, float]) -> None:
      waited = {"input_wait_share": wait.share()} if workers.alone else {}
      scores = evaluate()
      entry = {"epoch": run.step // run.steps, "training": metrics, "scores": scores, **waited}
      entry["selected"] = select(scores)
      with run.saving():
        monitor.write(entry)
        run.finish_epoch(entry)
      wait.reset()

    with monitor, log.reading():
      _train(model, batches, finish_epoch, run, workers, checkpoints, progress)
  if not workers.is_chief:
    return []
  run.restore_best()
  return run.history


class _Run:
  """A training run and what it keeps on disk: the last steps, the best epoch, the history."""

  def __init__(
    self,
    model: CandidateGenerator,
    directory: pathlib.Path,
    workers: Workers,
    *,
    epochs: int,
    steps: int,
  ):
    """Args:
    model: compiled, with the variables of its optimizer.
    directory: of the run.
    workers: the chief of them writes.
    epochs: how many there will be.
    steps: of an epoch.
    """
    self.directory = directory
    self.epochs = epochs
    self.steps = steps
    self.step = 0  # how many are done
    self.history: History = []
    self._model = model
    self._workers = workers
    self._last = Checkpoints(
      directory / "checkpoints",
      keep=2,
      writes=workers.is_chief,
      model=model,
      optimizer=model.optimizer,
    )
    # Three: the best of either checkpoint, and one of an epoch that did not get to its checkpoint.
    self._best = Checkpoints(directory / _BEST, keep=3, towers=model.towers)

  @property
  def last_step(self) -> int:
    return self.epochs * self.steps

  @property
  def where(self) -> str:
    """The last step, in words."""
    return f"step {self.step} (epoch {-(-self.step // self.steps)} of {self.epochs})"

  def restore(self) -> None:
    found = self._last.restore()
    if found is not None:
      self.step, self.history = found
    if self._workers.differing({"step": self.step}):
      raise RunError(
        f"workers found different checkpoints; this one goes on from step {self.step} of"
        f" {self.directory}: give all of them the same --workdir, on a file system that they share"
      )
    # Draws that are counted in no checkpoint shall be neither those of the first steps again, nor
    # another worker's.
    if found is not None or self._workers.rank:
      tf.random.set_seed(self.step + _SEEDS_APART * self._workers.rank)
    if found is not None and self.step < self.last_step:
      epochs, steps = divmod(self.step, self.steps)
      more = f" and {steps} of {self.steps} steps of the next" if steps else ""
      _log.info("going on after epoch %d of %d%s", epochs, self.epochs, more)

  def restore_best(self) -> None:
    restore_best(self._model.towers, self.directory, self.history)

  @contextlib.contextmanager
  def saving(self) -> Iterator[None]:
    """What keeps a run from writing ends it in one message."""
    try:
      yield
    except (OSError, tf.errors.OpError) as error:
      if self._workers.lost(error):
        raise
      saved = self._last.numbers()
      raise RunError(
        f"cannot save to {self.directory} after {self.where}: {reason(error)}. What was saved"
        " before is as it was: once there is room and leave to write, the same command goes on"
        f" {f'after step {saved[-1]}' if saved else 'from the start'}"
      ) from error

  def save(self) -> None:
    variables = [*self._model.trainable_variables, *self._model.optimizer.variables]
    if not all(bool(tf.reduce_all(tf.math.is_finite(v))) for v in variables if v.dtype.is_floating):
      raise self.diverged("the weights or the optimizer's state", {})
    self._last.save(self.step, self.history)

  def finish_epoch(self, epoch: dict[str, Any]) -> None:
    """The checkpoint comes last: it alone makes the epoch count as finished."""
    improved = not self.history or _selected(epoch) > max(map(_selected, self.history))
    self.history.append(epoch)
    if improved:
      self._best.save(len(self.history))
    write_json(self.directory / _HISTORY, self.history)
    self.save()

  def diverged(self, culprit: str, metrics: Mapping[str, float]) -> RunError:
    """Says what is not finite any more, beside what usually makes it so."""
    ratio = metrics.get("weight_max", math.nan)
    largest = f"; largest ratio of policy to propensity in this epoch {ratio:.3g}"
    saved = self._last.numbers()
    return RunError(
      f"training diverged at {self.where}: not finite are {culprit}"
      f"{largest if math.isfinite(ratio) else ''}; learning rate"
      f" {float(self._model.optimizer.learning_rate):g}. Try a smaller --learning_rate, a larger"
      " --l2, --adagrad_accumulator=0.1 or a smaller --weight_cap. The last checkpoint in"
      f" {self.directory} is {f'of step {saved[-1]}, and finite' if saved else 'still to come'}"
    )

  def out_of_memory(self, error: tf.errors.ResourceExhaustedError) -> RunError:
    """Says what there was no room for."""
    found = re.search(r"OOM when allocating tensor with shape ?\[[\d,]*\]", error.message)
    return RunError(
      f"out of memory at {self.where}: {found.group() if found else error.message};"
      " lower --batch_size, or against a large catalogue --support_size"
    )


def _train(
  model: CandidateGenerator,
  batches: Callable[[Workers, int], Iterator[Any]],
  finish_epoch: Callable[[dict[str, float]], None],
  run: _Run,
  workers: Workers,
  checkpoints: CheckpointConfig,
  progress: bool,
) -> None:
  """Keras's own step, in a loop that can begin and end within an epoch.

  Workers stop and save at the same steps: whoever has a reason asks all.
  """
  take_step, given = workers.step(model), batches(workers, run.step)
  saved = time.monotonic()
  bar = progress_bar("generator", run.last_step, done=run.step, shown=progress)
  with bar, deferred() as signaled:
    while run.step < run.last_step:
      if run.step % run.steps == 0:
        model.reset_metrics()
      run.step += 1
      try:
        loss = take_step(given)
      except tf.errors.InvalidArgumentError as error:
        # Draws from logits that are not finite are of no item, which fails before there is a loss.
        batch = next(batches(Workers(), run.step - 1))
        if tf.reduce_all(tf.math.is_finite(model(batch["user"]))):
          raise
        raise run.diverged("the logits", {}) from error
      except tf.errors.ResourceExhaustedError as error:
        raise run.out_of_memory(error) from error
      if loss is not None and not math.isfinite(loss):
        metrics = _metrics(model)
        raise run.diverged(_not_finite(metrics), metrics)
      bar.update()
      ends_epoch = run.step % run.steps == 0
      due = _due(checkpoints, run.step, time.monotonic() - saved)
      if not ends_epoch and not workers.any(due or bool(signaled())):
        continue
      workers.settle()
      if ends_epoch:
        metrics = _metrics(model)
        show_loss(bar, run.step // run.steps, metrics["mean_loss"])
        finish_epoch(metrics)
      else:
        with run.saving():
          run.save()
      saved = time.monotonic()
      if workers.any(bool(signaled())):
        number = signaled() or signal.SIGTERM  # which another worker was sent
        raise Stopped(number, f"after {run.where}, which is saved")


def _due(checkpoints: CheckpointConfig, step: int, seconds: float) -> bool:
  every, minutes = checkpoints.checkpoint_every_steps, checkpoints.checkpoint_every_minutes
  return bool((every and step % every == 0) or (minutes and seconds >= 60 * minutes))


def _metrics(model: tf.keras.Model) -> dict[str, float]:
  """Of the epoch so far, over all replicas: all workers must ask."""
  return {name: float(value) for name, value in model.get_metrics_result().items()}


def _not_finite(metrics: Mapping[str, float]) -> str:
  """What a loss that is not finite owes it to, by metrics that were finite a step before."""
  for metric, culprit in (
    ("policy_entropy", "the logits"),
    ("weight_mean", "the importance weights (logits are finite)"),
    (
      "ranker_probability",
      "the ranker's scores, or what the loss makes of them (logits are finite)",
    ),
    ("mean_loss", "the loss (logits and importance weights are finite)"),
  ):
    if metric in metrics and not math.isfinite(metrics[metric]):
      return culprit
  return "the L2 penalty"
