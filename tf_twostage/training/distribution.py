"""Workers: the processes and devices that train the generator together.

`Job` describes this process, from the settings and TF_CONFIG; `Job.join` connects it to the others
and returns the `Workers`. Training is synchronous, with TensorFlow's MirroredStrategy or
MultiWorkerMirroredStrategy: every replica gets an equal slice of each batch. See docs/workers.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tf_twostage.config import Config
from tf_twostage.data.rows import Slices
from tf_twostage.errors import InputError, RunError, reason

if TYPE_CHECKING:
  import tensorflow as tf

_log = logging.getLogger(__name__)

_EXAMPLE = {
  "cluster": {"worker": ["host1:2222", "host2:2222"]},
  "task": {"type": "worker", "index": 0},
}


class Batches(Protocol):
  """Makes a dataset of endless batches, as `LogRows.batches` with its other arguments bound."""

  def __call__(self, *, batch_size: int, start_step: int, slices: Slices) -> tf.data.Dataset: ...


@dataclasses.dataclass(frozen=True)
class Job:
  """The part of this process in training."""

  kind: str = "none"  # or mirrored, multi_worker
  replicas: int = 0  # mirrored: number of devices of this machine; 0: all GPUs
  # multi_worker: addresses by type of task, and the type and index of this process
  cluster: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
  task: tuple[str, int] = ("worker", 0)

  @classmethod
  def of(cls, config: Config) -> Job:
    """The job that the settings and TF_CONFIG describe; does not load TensorFlow."""
    settings = config.distribution
    tasks = _tf_config() if settings.distribution == "multi_worker" else ()
    job = cls(settings.distribution, settings.replicas, *tasks)
    _check_batch(config.generator.batch_size, max(1, settings.replicas, job.num_tasks))
    return job

  @property
  def num_tasks(self) -> int:
    """Number of processes in the cluster; 0 if there is none."""
    return sum(map(len, self.cluster.values()))

  @property
  def is_chief(self) -> bool:
    """Whether this process evaluates, saves and exports."""
    return self.task == ("chief" if "chief" in self.cluster else "worker", 0)

  @property
  def rank(self) -> int:
    """Unique number of this process; 0 for the chief."""
    kind, index = self.task
    return index + (len(self.cluster.get("chief", ())) if kind == "worker" else 0)

  @property
  def name(self) -> str:
    """Such as "worker 1"."""
    return f"{self.task[0]} {self.task[1]}"

  def join(self, batch_size: int) -> Workers:
    """Connects to the other workers. Must come before any other use of TensorFlow."""
    if self.kind == "none":
      return Workers()
    import tensorflow as tf

    if self.kind == "mirrored":
      workers = Workers(tf.distribute.MirroredStrategy(_devices(self.replicas)))
    else:
      _log.info("%s: waiting for all of %s", self.name, json.dumps(self.cluster))
      strategy = tf.distribute.MultiWorkerMirroredStrategy()
      workers = Workers(strategy, rank=self.rank, num_tasks=self.num_tasks)
    _check_batch(batch_size, workers.replicas)
    rows = batch_size // workers.replicas
    _log.info("%s: %d replica(s), %d rows of each batch", self.name, workers.replicas, rows)
    return workers


class Workers:
  """The processes and devices that train together; by default this process on one device."""

  def __init__(
    self, strategy: tf.distribute.Strategy | None = None, *, rank: int = 0, num_tasks: int = 1
  ):
    import tensorflow as tf

    self.alone = strategy is None
    self.is_chief = rank == 0  # whether this process evaluates, saves and exports
    self.rank = rank  # unique number of this process
    self._num_tasks = num_tasks
    self._strategy = strategy or tf.distribute.get_strategy()

  @property
  def replicas(self) -> int:
    """Number of devices that take a step together."""
    return self._strategy.num_replicas_in_sync

  def scope(self) -> contextlib.AbstractContextManager[Any]:
    """Context in which the model and its optimizer must be created."""
    return self._strategy.scope()

  def batches(self, source: Batches, *, batch_size: int, start_step: int) -> Iterator[Any]:
    """Returns this process's slices of every batch, for its replicas."""

    def of_process(context: tf.distribute.InputContext) -> tf.data.Dataset:
      each = self.replicas // context.num_input_pipelines
      begin = context.input_pipeline_id * each
      slices = Slices(begin, begin + each, self.replicas)
      return source(batch_size=batch_size, start_step=start_step, slices=slices)

    return iter(self._strategy.distribute_datasets_from_function(of_process))

  def step(self, model: tf.keras.Model) -> Callable[[Iterator[Any]], float]:
    """A function that takes a step of a model compiled in `scope`, and returns the global loss."""
    with self.scope():
      train = model.make_train_function()
    return lambda batches: float(train(batches)["total_loss"])

  def any(self, value: bool) -> bool:
    """Collective OR; all workers must call it."""
    return bool(self._sum(np.float32(value)) > 0)

  def wait(self) -> None:
    """Blocks until all workers have called it."""
    self.any(False)

  def differing(self, values: Mapping[str, Any]) -> list[str]:
    """Returns the names of values on which workers disagree; all workers must call it."""
    # Each worker fills one row; the sum is the whole table. Float32 holds 24 bits exactly.
    table = np.zeros([self._num_tasks, len(values)], np.float32)
    table[self.rank] = [zlib.crc32(repr(v).encode()) & 0xFFFFFF for v in values.values()]
    table = self._sum(table)
    return [name for name, same in zip(values, (table == table[0]).all(0), strict=True) if not same]

  def _sum(self, values: Any) -> Any:
    if self._num_tasks == 1:
      return values
    import tensorflow as tf

    return self._strategy.reduce("SUM", tf.constant(values), axis=None).numpy()

  def lost(self, error: Exception) -> bool:
    """Whether an error means that another process has died."""
    from tensorflow import errors

    return self._num_tasks > 1 and isinstance(
      error,
      errors.UnavailableError
      | errors.AbortedError
      | errors.CancelledError
      | errors.DeadlineExceededError
      | errors.FailedPreconditionError,
    )

  @contextlib.contextmanager
  def together(self) -> Iterator[None]:
    """Turns the error that follows another process's death into one RunError."""
    try:
      yield
    except Exception as error:
      if not self.lost(error):
        raise
      cause = re.search("aborted by: (.*)", str(error))
      raise RunError(
        f"another worker has stopped ({cause[1] if cause else reason(error)}); start all workers"
        " again, and training resumes from its last checkpoint"
      ) from error


def only_here(config: Config, command: str) -> None:
  """Refuses workers for a command that cannot use them."""
  if (kind := config.distribution.distribution) != "none":
    raise InputError(
      f"distribution is {kind}, but {command} trains in its own processes; leave the setting out,"
      " or train with launch.train"
    )


def _devices(replicas: int) -> list[str]:
  """Returns the names of so many devices; splits the CPU if there is no GPU."""
  import tensorflow as tf

  gpus = len(tf.config.list_physical_devices("GPU"))
  if replicas > gpus > 0:
    raise InputError(
      f"replicas is {replicas}, but this machine has {gpus} GPU(s): ask for at most {gpus}, or for"
      " 0, which means all"
    )
  count = replicas or max(1, gpus)
  if not gpus and count > 1:
    (cpu,) = tf.config.list_physical_devices("CPU")
    parts = [tf.config.LogicalDeviceConfiguration()] * count
    tf.config.set_logical_device_configuration(cpu, parts)
  return [f"{'GPU' if gpus else 'CPU'}:{i}" for i in range(count)]


def _tf_config() -> tuple[Mapping[str, list[str]], tuple[str, int]]:
  """Returns the cluster and the task of TF_CONFIG."""
  text = os.environ.get("TF_CONFIG", "")
  remedy = f"; set it in each process, with the process's own task, such as {json.dumps(_EXAMPLE)}"
  if not text:
    raise InputError(
      "distribution is multi_worker, but the environment variable TF_CONFIG is not set" + remedy
    )
  try:
    parsed = json.loads(text)
    for kind, addresses in parsed["cluster"].items():
      if isinstance(addresses, str):
        raise TypeError(f"{kind} is one address, not a list of addresses")
    cluster = {kind: list(map(str, found)) for kind, found in parsed["cluster"].items() if found}
    task = str(parsed["task"]["type"]), int(parsed["task"]["index"])
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise InputError(
      f"TF_CONFIG is not JSON with a cluster and a task ({type(error).__name__}: {error}):"
      f" {text}{remedy}"
    ) from error
  problem = None
  if unknown := sorted(set(cluster) - {"chief", "worker"}):
    problem = f"has unknown tasks: {', '.join(unknown)}; only chief and worker exist"
  elif "worker" not in cluster:
    problem = "has no worker"
  elif len(cluster.get("chief", ())) > 1:
    problem = "has more than one chief"
  elif not 0 <= task[1] < len(cluster.get(task[0], ())):
    problem = f"makes this process {task[0]} {task[1]}, which is not in the cluster"
  if problem:
    raise InputError(f"TF_CONFIG {problem}: {text}{remedy}")
  return cluster, task


def _check_batch(batch_size: int, replicas: int) -> None:
  if batch_size % replicas:
    raise InputError(
      f"batch_size is {batch_size}, which {replicas} replicas cannot share evenly: make it a"
      f" multiple of {replicas}, such as {-(-batch_size // replicas) * replicas}"
    )
