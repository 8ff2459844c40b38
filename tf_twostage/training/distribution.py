"""Workers: which processes and devices train the generator, and who of them does what.

`Job` says, from the settings and TF_CONFIG, what this process is; `Job.join` makes it one of the
`Workers`. Synchronous training is TensorFlow's MirroredStrategy or MultiWorkerMirroredStrategy:
every replica has an equal slice of each batch. Asynchronous training is its ParameterServerStrategy
with a ClusterCoordinator. docs/workers.md tells how to run them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_twostage.config import Config
from tf_twostage.data.rows import Slices, TrainingRows
from tf_twostage.errors import InputError, RunError

if TYPE_CHECKING:
  import tensorflow as tf

_log = logging.getLogger(__name__)

# The tasks of a job: those that there may be, and those without which there is none.
_TASKS = {
  "multi_worker": ({"chief", "worker"}, {"worker"}),
  "parameter_server": ({"chief", "worker", "ps"}, {"chief", "worker", "ps"}),
}
_EXAMPLES = {
  "multi_worker": {"worker": ["host1:2222", "host2:2222"]},
  "parameter_server": {"chief": ["host1:2222"], "worker": ["host2:2222"], "ps": ["host3:2222"]},
}
_LOOK = 1.0  # seconds between two looks at whether the chief is there
_GONE = 3  # looks in a row that did not find it


@dataclasses.dataclass(frozen=True)
class Job:
  """What this process is among those that train together.

  Attributes:
    kind: none, mirrored, multi_worker or parameter_server.
    replicas: mirrored: devices of this machine; 0: all GPUs.
    cluster: addresses of the tasks by type; empty where this process is the job.
    task: type and index of this process.
  """

  kind: str = "none"
  replicas: int = 0
  cluster: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  task: tuple[str, int] = ("worker", 0)

  @classmethod
  def of(cls, config: Config) -> Job:
    """The job that the settings and TF_CONFIG describe; TensorFlow is not loaded.

    Raises:
      InputError: TF_CONFIG is missing or does not fit, or its workers cannot share a batch.
    """
    settings = config.distribution
    if settings.distribution not in _TASKS:
      job = cls(settings.distribution, settings.replicas)
    else:
      job = cls(settings.distribution, 0, *_tf_config(settings.distribution))
    together = settings.replicas
    if job.kind == "multi_worker":
      together = sum(map(len, job.cluster.values()))
    _check_batch(config.generator.batch_size, max(1, together))
    return job

  @property
  def is_chief(self) -> bool:
    """Whether this process evaluates, saves and exports."""
    return self.task == ("chief" if "chief" in self.cluster else "worker", 0)

  @property
  def rank(self) -> int:
    """A number of its own for every task that runs the program; the chief's is 0."""
    kind, index = self.task
    return index + (len(self.cluster.get("chief", ())) if kind == "worker" else 0)

  @property
  def serves(self) -> bool:
    """Whether this process does nothing but what the chief asks of it."""
    return self.kind == "parameter_server" and not self.is_chief

  @property
  def name(self) -> str:
    """Such as "worker 1"."""
    return f"{self.task[0]} {self.task[1]}"

  def join(self, batch_size: int) -> Workers:
    """Meets the other workers, before anything else is done with TensorFlow.

    Args:
      batch_size: rows that all replicas get in a step.

    Raises:
      InputError: this machine has other devices than asked for, or they cannot share a batch.
    """
    if self.kind == "none":
      return Workers()
    if self.cluster:
      others = {n: a for n, a in self.cluster.items() if a}
      _log.info("%s: waiting for all of %s", self.name, json.dumps(others))
    makers: dict[str, Callable[[Job], Workers]] = {
      "mirrored": _mirrored,
      "multi_worker": _Peers,
      "parameter_server": _Coordinator,
    }
    workers = makers[self.kind](self)
    _check_batch(batch_size, workers.replicas)
    shares = (
      f"{batch_size // workers.replicas} rows of each batch"
      if self.kind != "parameter_server"
      else f"{batch_size} rows a step"
    )
    _log.info("%s: %d replica(s) with %s", self.name, workers.replicas, shares)
    return workers

  def serve(self, results: pathlib.Path) -> str:
    """Does what the chief asks until it has left, and says so.

    Args:
      results: a file that the chief writes when everything is done.

    Raises:
      RunError: it left before that.
    """
    import tensorflow as tf

    kind, index = self.task
    server = tf.distribute.Server(tf.train.ClusterSpec(dict(self.cluster)), kind, index, "grpc")
    (chief,) = self.cluster["chief"]
    _log.info("%s: serving at %s, waiting for the chief at %s", self.name, server.target, chief)
    while not _answers(chief):
      time.sleep(_LOOK)
    before, missed = _modified(results), 0
    while missed < _GONE:
      time.sleep(_LOOK)
      missed = 0 if _answers(chief) else missed + 1
    if _modified(results) == before:
      raise RunError(
        f"{self.name}: the chief at {chief} left before it was done (no new {results}); start all"
        " tasks of the job again, and it goes on from its last checkpoint"
      )
    return f"{self.name}: the chief is done"


class Workers:
  """All that train together, seen from one process; by itself that process, on one device.

  Attributes:
    is_chief: whether this process evaluates, saves and exports.
    rank: a number of its own for every process that trains; the chief's is 0.
    alone: whether nothing is distributed.
  """

  is_chief = True
  rank = 0

  def __init__(self, strategy: tf.distribute.Strategy | None = None):
    """Args:
    strategy: what takes the steps; None: nothing is distributed.
    """
    import tensorflow as tf

    self.alone = strategy is None
    self._strategy = strategy or tf.distribute.get_strategy()

  @property
  def replicas(self) -> int:
    """How many take a step together."""
    return self._strategy.num_replicas_in_sync

  def scope(self) -> contextlib.AbstractContextManager[Any]:
    """In which the model and its optimizer are made."""
    return self._strategy.scope()

  def batches(
    self,
    log: TrainingRows,
    user_features: Mapping[str, Any],
    *,
    batch_size: int,
    seed: int,
    start_step: int,
  ) -> Iterator[Any]:
    """What this process's replicas get of each batch; arguments as of `LogRows.batches`."""

    def of_process(context: tf.distribute.InputContext) -> tf.data.Dataset:
      each = self.replicas // context.num_input_pipelines
      begin = context.input_pipeline_id * each
      return log.batches(
        user_features,
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        slices=Slices(begin, begin + each, self.replicas),
      )

    return iter(self._strategy.distribute_datasets_from_function(of_process))

  def step(self, model: tf.keras.Model) -> Callable[[Iterator[Any]], float | None]:
    """A function that takes a step and tells the loss of the global batch, or None: not yet known.

    Args:
      model: compiled, made in the scope.
    """
    with self.scope():
      train = model.make_train_function()
    return lambda batches: float(train(batches)["total_loss"])

  def settle(self) -> None:
    """Waits until all steps that were asked for have been taken."""

  def any(self, wish: bool) -> bool:
    """Whether any worker wishes so; all of them must ask at the same step."""
    return wish

  def differing(self, values: Mapping[str, Any]) -> list[str]:
    """The names of the values that are not the same at all workers; all of them must ask."""
    return []

  def wait(self) -> None:
    """Until all workers have come here."""
    self.any(False)

  def lost(self, error: Exception) -> bool:
    """Whether an error says that another task is gone."""
    return False

  @contextlib.contextmanager
  def together(self) -> Iterator[None]:
    """Another task that is gone ends this one in one message.

    Raises:
      RunError: it is.
    """
    try:
      yield
    except Exception as error:
      if not self.lost(error):
        raise
      from tf_twostage.errors import reason

      said = re.search("aborted by: (.*)", str(error))
      raise RunError(
        f"another task of the job is gone ({said[1] if said else reason(error)}); start all of them"
        " again, and the job goes on from its last checkpoint"
      ) from error


class _Cluster(Workers):
  """Workers in several processes."""

  def lost(self, error: Exception) -> bool:
    from tensorflow import errors

    return isinstance(
      error,
      errors.UnavailableError
      | errors.AbortedError
      | errors.CancelledError
      | errors.DeadlineExceededError
      | errors.FailedPreconditionError,
    )


class _Peers(_Cluster):
  """Processes that all run the same program and take every step together."""

  def __init__(self, job: Job):
    import tensorflow as tf

    super().__init__(tf.distribute.MultiWorkerMirroredStrategy())
    self.is_chief = job.is_chief
    self.rank = job.rank
    self._tasks = sum(map(len, job.cluster.values()))

  def differing(self, values: Mapping[str, Any]) -> list[str]:
    import tensorflow as tf

    # One row for each worker, filled in by adding up; 24 bits are whole numbers of float32.
    sums = np.zeros([self._tasks, len(values)], np.float32)
    sums[self.rank] = [zlib.crc32(repr(v).encode()) & 0xFFFFFF for v in values.values()]
    table = self._strategy.reduce("SUM", tf.constant(sums), axis=None).numpy()
    return [name for name, same in zip(values, (table == table[0]).all(0), strict=True) if not same]

  def any(self, wish: bool) -> bool:
    import tensorflow as tf

    return bool(self._strategy.reduce("SUM", tf.constant(float(wish)), axis=None) > 0)


class _Coordinator(_Cluster):
  """The chief of a job with parameter servers: it gives out steps, and workers take them when
  they can, each with a batch of its own."""

  def __init__(self, job: Job):
    import tensorflow as tf

    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver(rpc_layer="grpc")
    super().__init__(tf.distribute.ParameterServerStrategy(resolver))
    self._coordinator = tf.distribute.coordinator.ClusterCoordinator(self._strategy)
    self._num_workers = len(job.cluster["worker"])
    # Variables on several machines are saved by a function that is traced at each checkpoint.
    tf.get_logger().addFilter(lambda record: "retracing" not in record.getMessage())

  def batches(self, log, user_features, *, batch_size, seed, start_step):
    import tensorflow as tf

    n = self._num_workers

    def of_worker() -> tf.data.Dataset:
      slices = [
        log.batches(
          user_features,
          batch_size=n * batch_size,
          seed=seed,
          start_step=start_step // n,
          slices=Slices(i, i + 1, n),
        )
        for i in range(n)
      ]
      mine = tf.distribute.coordinator.experimental_get_current_worker_index()
      mine = tf.data.Dataset.from_tensors(tf.cast(mine, tf.int64)).repeat()
      return tf.data.Dataset.choose_from_datasets(slices, mine)

    return iter(self._coordinator.create_per_worker_dataset(of_worker))

  def step(self, model):
    with self.scope():
      train = model.make_train_function()

    def schedule(batches):
      self._coordinator.schedule(train, args=(batches,))

    return schedule

  def settle(self) -> None:
    self._coordinator.join()


def _mirrored(job: Job) -> Workers:
  import tensorflow as tf

  gpus = len(tf.config.list_physical_devices("GPU"))
  if job.replicas > gpus > 0:
    raise InputError(
      f"--replicas={job.replicas}: this machine has {gpus} GPU(s); ask for no more, or for 0: all"
    )
  count = job.replicas or max(1, gpus)
  if not gpus and count > 1:
    (cpu,) = tf.config.list_physical_devices("CPU")
    parts = [tf.config.LogicalDeviceConfiguration()] * count
    tf.config.set_logical_device_configuration(cpu, parts)
  devices = [f"{'GPU' if gpus else 'CPU'}:{i}" for i in range(count)]
  return Workers(tf.distribute.MirroredStrategy(devices))


def only_here(config: Config, command: str) -> None:
  """Refuses settings of workers where a command has none.

  Raises:
    InputError: they ask for some.
  """
  if (kind := config.distribution.distribution) != "none":
    raise InputError(
      f"--distribution={kind}: {command} trains in processes of its own; leave the flag out, or"
      " train with launch.train"
    )


def _tf_config(kind: str) -> tuple[Mapping[str, Sequence[str]], tuple[str, int]]:
  """Cluster and task."""
  may, must = _TASKS[kind]
  text = os.environ.get("TF_CONFIG", "")
  example = {"cluster": _EXAMPLES[kind], "task": {"type": min(must), "index": 0}}
  remedy = (
    f"; --distribution={kind} needs it like {json.dumps(example)}, in each process its own task"
  )
  if not text:
    raise InputError("the environment variable TF_CONFIG is not set" + remedy)
  try:
    given = json.loads(text)
    cluster = {
      str(name): [str(a) for a in addresses] for name, addresses in given["cluster"].items()
    }
    task = str(given["task"]["type"]), int(given["task"]["index"])
    if single := [name for name, addresses in given["cluster"].items() if type(addresses) is str]:
      raise TypeError(f"{single[0]} has an address where a list of them belongs")
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise InputError(
      f"TF_CONFIG is no JSON of a cluster and a task ({type(error).__name__}: {error}): {text}"
      + remedy
    ) from error
  cluster = {name: addresses for name, addresses in cluster.items() if addresses}
  problem = None
  if odd := sorted(set(cluster) - may):
    problem = f"has tasks that there are not: {', '.join(odd)}"
  elif missing := sorted(must - set(cluster)):
    problem = f"lacks: {', '.join(missing)}"
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
      f" multiple of {replicas}, such as --batch_size={-(-batch_size // replicas) * replicas}"
    )


def _answers(address: str) -> bool:
  host, _, port = address.rpartition(":")
  try:
    socket.create_connection((host, int(port)), timeout=5).close()
  except OSError:
    return False
  return True


def _modified(file: pathlib.Path) -> int:
  try:
    return file.stat().st_mtime_ns
  except OSError:
    return 0
