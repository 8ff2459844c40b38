"""Training: one loop for every model, with optional evaluation, checkpoints and workers.

docs/training.md describes what a checkpoint holds, and how a resumed run compares with an
uninterrupted one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import pathlib
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tf_twostage.config import CheckpointConfig, FitConfig
from tf_twostage.data.rows import WHOLE
from tf_twostage.errors import RunError, reason
from tf_twostage.metrics import Scores
from tf_twostage.training.checkpoints import Checkpoints
from tf_twostage.training.distribution import Batches, Workers
from tf_twostage.training.progress import InputWait, progress_bar
from tf_twostage.training.signals import Stopped, deferred
from tf_twostage.workspace import LOCK, locked, write_json

if TYPE_CHECKING:
  from tf_twostage.training.tensorboard import Monitor

_log = logging.getLogger(__name__)

_HISTORY, _LAST, _BEST = "history.json", "checkpoints", "best"
_CHECKPOINTS = CheckpointConfig()
_SEEDS_APART = 1_000_003  # more than the number of steps of a worker
# Metrics of a generator, and the first cause of a loss that is not finite if this metric is not.
_CAUSES = {
  "policy_entropy": "the logits",
  "weight_mean": "the importance weights (logits are finite)",
  "ranker_probability": "the ranker's scores, or the loss's function of them (logits are finite)",
  "mean_loss": "the loss (logits and importance weights are finite)",
}

# One entry an epoch: {"epoch": 1.., "training": {metric: value}}; with evaluation also "scores" and
# "selected", the number that chooses the best epoch; on one device also "input_wait_share", the
# share of step time spent waiting for input. Interruptions change nothing else.
History = list[dict[str, Any]]


def make_optimizer(settings: FitConfig) -> tf.keras.optimizers.Optimizer:
  """Returns Adagrad with the settings' learning rate and initial accumulator."""
  return tf.keras.optimizers.Adagrad(
    learning_rate=settings.learning_rate, initial_accumulator_value=settings.adagrad_accumulator
  )


def best_epoch(history: History) -> dict[str, Any]:
  """Returns the earliest of the entries with the highest "selected"."""
  return max(history, key=lambda entry: entry["selected"])


def finished_history(directory: pathlib.Path, epochs: int) -> History | None:
  """The history of a run in this directory, if it has finished and its best epoch is intact."""
  last = Checkpoints(directory / _LAST, keep=2).newest()
  history = last[1] if last else []
  finished = len(history) >= epochs and _best(directory).has(best_epoch(history)["epoch"])
  return history if finished else None


def restore_best(weights: tf.Module, directory: pathlib.Path, history: History) -> None:
  """Gives `weights` the values of the best epoch of a run in this directory."""
  _best(directory, weights=weights).load(best_epoch(history)["epoch"])


def _best(directory: pathlib.Path, writes: bool = True, **state: Any) -> Checkpoints:
  # The best epochs of both checkpoints, and of an epoch that ended before its checkpoint.
  return Checkpoints(directory / _BEST, keep=3, writes=writes, **state)


def fit(
  model: tf.keras.Model,
  batches: tf.data.Dataset | Batches,
  settings: FitConfig,
  *,
  rows: int,
  name: str,
  evaluate: Callable[[], Scores] | None = None,
  select: Callable[[Scores], float] | None = None,
  directory: pathlib.Path | None = None,
  weights: tf.Module | None = None,
  checkpoints: CheckpointConfig = _CHECKPOINTS,
  monitor: Monitor | None = None,
  workers: Workers | None = None,
) -> History:
  """Fits a model to the rows of a log; returns one entry for each epoch, none unless the chief.

  With a `directory`, the run is saved there, and the same call resumes an interrupted run. All
  workers call this function at the same time; only the chief evaluates and writes.

  Args:
    model: created in the workers' scope, with all variables; has a metric "mean_loss".
    batches: a dataset of endless batches; or a function that makes one from any step on, which
      resuming and workers need.
    settings, checkpoints: how to train, and when to save.
    rows: number of rows; an epoch has as many steps as there are full batches, at least one.
    name: what the progress bar is called; `progress.bars` hides it.
    evaluate, select: score the model after each epoch, and reduce scores to one number.
    directory: gets checkpoints/, best/ and history.json; all workers see it.
    weights: the part of the model that is saved for the best epoch, and restored at the end.
    monitor: gets each entry.

  Raises:
    Stopped: a worker received SIGTERM or SIGINT. The current step was finished and saved.
    RunError: the loss or the weights are not finite, memory is short, or saving failed.
  """
  workers = workers or Workers()
  with workers.scope():
    if model.optimizer is None:
      model.compile(optimizer=make_optimizer(settings))
    model.optimizer.build(model.trainable_variables)
  run = _Run(
    model,
    settings,
    rows,
    name,
    workers,
    directory,
    weights,
    evaluate,
    select,
    checkpoints,
    monitor,
  )
  lock = locked(directory / LOCK) if directory and workers.is_chief else contextlib.nullcontext()
  with lock:
    run.restore()
    if run.step < run.last_step:
      source = batches if callable(batches) else lambda **_: batches
      run.train(source)
    if not workers.is_chief:
      return []
    if directory is not None:
      write_json(directory / _HISTORY, run.history)
      if weights is not None:
        restore_best(weights, directory, run.history)
  return run.history


@dataclasses.dataclass
class _Run:
  """One call of `fit`; the fields are its arguments."""

  model: tf.keras.Model
  settings: FitConfig
  rows: int
  name: str
  workers: Workers
  directory: pathlib.Path | None
  weights: tf.Module | None
  evaluate: Callable[[], Scores] | None
  select: Callable[[Scores], float] | None
  checkpoints: CheckpointConfig
  monitor: Monitor | None

  def __post_init__(self):
    self.steps = max(1, self.rows // self.settings.batch_size)  # of an epoch
    self.last_step = self.settings.epochs * self.steps
    self.step = 0  # number of steps done
    self.history: History = []
    self._last = self._best = None
    if self.directory is not None:
      self._last = Checkpoints(
        self.directory / _LAST,
        keep=2,
        writes=self.workers.is_chief,
        model=self.model,
        optimizer=self.model.optimizer,
      )
      if self.weights is not None:
        self._best = _best(self.directory, self.workers.is_chief, weights=self.weights)

  @property
  def where(self) -> str:
    """The last step, in words."""
    return f"step {self.step} (epoch {-(-self.step // self.steps)} of {self.settings.epochs})"

  def restore(self) -> None:
    """Continues at the last checkpoint, if there is one."""
    found = self._last.newest() if self._last else None
    if found and found[1] and self._best and not self._best.has(best_epoch(found[1])["epoch"]):
      found = None  # the weights to keep are lost
    if found is not None and self._last is not None:
      self.step, self.history = found
      self._last.load(self.step)
    if self.workers.differing({"step": self.step}):
      raise RunError(
        f"workers found different checkpoints; this one resumes after step {self.step} of"
        f" {self.directory}: give all workers the same work directory, on a file system that they"
        " share"
      )
    # Random draws whose state is in no checkpoint must differ from those of the first steps, and
    # between workers.
    if found is not None or self.workers.rank:
      tf.random.set_seed(self.step + _SEEDS_APART * self.workers.rank)
    if found is not None and self.step >= self.last_step:
      _log.info("%s: finished before; delete %s to train it again", self.name, self.directory)
    elif found is not None:
      epochs, steps = divmod(self.step, self.steps)
      more = f" and {steps} of {self.steps} steps of the next" if steps else ""
      _log.info("resuming after epoch %d of %d%s", epochs, self.settings.epochs, more)

  def train(self, source: Batches) -> None:
    """Takes all remaining steps.

    Workers decide together, at each step, whether to save and whether to stop.
    """
    options: dict[str, Any] = {"batch_size": self.settings.batch_size, "start_step": self.step}
    wait = InputWait()
    if self.workers.alone:
      batches = iter(wait.watched(source(**options, slices=WHOLE)))
    else:  # devices buffer their input, which hides the waiting
      batches = self.workers.batches(source, **options)
    take_step = self.workers.step(self.model)
    saved = time.monotonic()
    with contextlib.ExitStack() as stack:
      if self.monitor is not None and self.workers.is_chief:
        with self.saving():
          stack.enter_context(self.monitor)
      bar = progress_bar(self.name, self.last_step, done=self.step, shown=self.workers.is_chief)
      stack.enter_context(bar)
      # Without a directory nothing can be saved: signals act at once.
      received = stack.enter_context(deferred()) if self.directory else lambda: None
      while self.step < self.last_step:
        if self.step % self.steps == 0:
          self.model.reset_metrics()
        self.step += 1
        try:
          loss = take_step(batches)
        except tf.errors.ResourceExhaustedError as error:
          raise self.out_of_memory(error) from error
        if not math.isfinite(loss):
          metrics = self.metrics()
          raise self.diverged(_cause(metrics), metrics)
        bar.update()
        ends_epoch = self.step % self.steps == 0
        due = self.due(time.monotonic() - saved)
        if not ends_epoch and not self.workers.any(due or bool(received())):
          continue
        self.require_finite()
        if ends_epoch:
          metrics = self.metrics()
          bar.set_postfix_str(
            f"epoch {self.step // self.steps}, loss {metrics['mean_loss']:.4f}", refresh=False
          )
          self.finish_epoch(metrics, wait)
        else:
          with self.saving():
            self.save()
        saved = time.monotonic()
        if self.workers.any(bool(received())):
          number = received() or signal.SIGTERM  # received by another worker
          raise Stopped(number, f"after {self.where}, which is saved")

  def metrics(self) -> dict[str, float]:
    """Returns the metrics of the epoch so far, over all replicas; all workers must call it."""
    return {name: float(value) for name, value in self.model.get_metrics_result().items()}

  def due(self, seconds: float) -> bool:
    """Whether to save within an epoch, so many seconds after the last checkpoint."""
    every = self.checkpoints.checkpoint_every_steps
    minutes = self.checkpoints.checkpoint_every_minutes
    by_steps = every and self.step % every == 0
    return self.directory is not None and bool(by_steps or (minutes and seconds >= 60 * minutes))

  @contextlib.contextmanager
  def saving(self) -> Iterator[None]:
    """Turns write failures into RunError."""
    try:
      yield
    except (OSError, tf.errors.OpError) as error:
      if self.workers.lost(error):
        raise
      saved = self._last.numbers() if self._last else []
      raise RunError(
        f"cannot save to {self.directory} after {self.where}: {reason(error)}. Earlier checkpoints"
        " are unchanged: free some space, or make the directory writable, and the same command"
        f" resumes {f'after step {saved[-1]}' if saved else 'from the start'}"
      ) from error

  def require_finite(self) -> None:
    """Raises RunError if weights, products of weights or the optimizer's state are not finite."""
    weights = [v * v for v in self.model.trainable_variables]
    numbers = [*weights, *self.model.optimizer.variables]
    if not all(bool(tf.reduce_all(tf.math.is_finite(v))) for v in numbers if v.dtype.is_floating):
      raise self.diverged("the weights, their products or the optimizer's state", {})

  def save(self) -> None:
    """Saves a checkpoint, if there is a directory."""
    if self._last is not None:
      self._last.save(self.step, self.history)

  def finish_epoch(self, metrics: dict[str, float], wait: InputWait) -> None:
    """Evaluates and saves. Only the checkpoint, which comes last, makes an epoch count."""
    if not self.workers.is_chief:
      self.save()
      return
    entry: dict[str, Any] = {"epoch": self.step // self.steps, "training": metrics}
    if self.workers.alone:
      entry["input_wait_share"] = wait.share()
    if self.evaluate is not None and self.select is not None:
      entry["scores"] = self.evaluate()
      entry["selected"] = self.select(entry["scores"])
    with self.saving():
      if self.monitor is not None:
        self.monitor.write(entry)
      self.history.append(entry)
      if self._best is not None and best_epoch(self.history) is entry:
        self._best.save(len(self.history))
      if self.directory is not None:
        write_json(self.directory / _HISTORY, self.history)
      self.save()
    wait.reset()

  def diverged(self, culprit: str, metrics: Mapping[str, float]) -> RunError:
    """Returns an error with the usual causes."""
    ratio = metrics.get("weight_max", math.nan)
    largest = f"; largest ratio of policy to propensity in this epoch {ratio:.3g}"
    saved = self._last.numbers() if self._last else []
    last = f" The last checkpoint, of step {saved[-1]}, is finite." if saved else ""
    return RunError(
      f"{self.name}: training diverged at {self.where}: not finite are {culprit}"
      f"{largest if math.isfinite(ratio) else ''}; learning rate"
      f" {float(self.model.optimizer.learning_rate):g}. Try a smaller learning_rate, a larger l2,"
      f" adagrad_accumulator 0.1 or a smaller weight_cap.{last}"
    )

  def out_of_memory(self, error: tf.errors.ResourceExhaustedError) -> RunError:
    """Returns an error with the tensor that did not fit."""
    found = re.search(r"OOM when allocating tensor with shape ?\[[\d,]*\]", error.message)
    return RunError(
      f"out of memory at {self.where}: {found.group() if found else error.message}; lower"
      " batch_size, or, with a large catalogue, set or lower support_size"
    )


def _cause(metrics: Mapping[str, float]) -> str:
  """Returns what made the loss not finite; all metrics were finite a step before."""
  found = (name for name in _CAUSES if not math.isfinite(metrics.get(name, 0.0)))
  return _CAUSES.get(next(found, ""), "the L2 penalty")
