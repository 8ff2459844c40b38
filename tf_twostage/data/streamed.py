"""A log on disk that training reads as it goes: rows beyond memory, in an order fixed by the seed.

`write` deals the rows to `LANES` lanes of TFRecord files, at random and equally. Every lane is read
by itself, forever: each of its passes takes the lane's files in an order of its own and the rows of
a file in an order of their own. A batch is so many rows of each lane; a pass over the log is one
pass of every lane, and whoever needs a part of each batch reads a part of the lanes. Rewarded rows
stand in files of their own as well, since a generator may learn from these alone.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_twostage.data.files import framing, shards
from tf_twostage.data.rows import (
  WHOLE,
  LogRows,
  Rewards,
  Slices,
  checked_users,
  joined,
  shuffled,
  with_users,
)
from tf_twostage.errors import InputError, RunError

if TYPE_CHECKING:
  import tensorflow as tf

LANES = 48  # has many divisors: of batch sizes, and of numbers of workers
_ROWS_PER_FILE = 1 << 14
_DESCRIPTION = "rows.json"
_SHOWN = "{kind}-shown.npy"
_ALL, _REWARDED = "all", "rewarded"
_CONTEXT = "context/"
_TYPES = {"user_index": "int32", "action": "int32", "propensity": "float32", "reward": "float32"}
_BUFFER = 1 << 18  # bytes read at a time
_TIMEOUT = 5.0  # seconds for a data service to answer


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedRows:
  """Rows in files; `write` makes it, `load` finds it.

  Attributes:
    directory: where the files are.
    kind: "all" rows or the "rewarded" ones.
    files: of every lane the rows of its files, in order.
    columns: of the rows, as they are called in records.
    compression: of the files, "GZIP" or "".
    last_user: the highest user index.
    sums: of the rewards.
    service: address of a tf.data service that reads for us, such as "grpc://host:5000"; None: this
      process reads.
  """

  directory: pathlib.Path
  kind: str
  files: tuple[tuple[int, ...], ...]
  columns: tuple[str, ...]
  compression: str
  last_user: int
  sums: Rewards
  service: str | None = None

  def __len__(self) -> int:
    return sum(map(sum, self.files))

  def positives(self) -> StreamedRows:
    """The rows with reward > 0."""
    return dataclasses.replace(load(self.directory, kind=_REWARDED), service=self.service)

  def rewards(self) -> Rewards:
    """The sum and the largest of all rewards."""
    return self.sums

  def shown(self, num_items: int) -> np.ndarray:
    """How many rows show each item of a catalogue, [N] int."""
    counts = np.load(self.directory / _SHOWN.format(kind=self.kind))
    return np.pad(counts, (0, num_items - len(counts)))

  def batches(
    self,
    user_features: Mapping[str, tf.Tensor | np.ndarray],
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    slices: Slices = WHOLE,
  ) -> tf.data.Dataset:
    """Endless batches of the log; a batch is a pure function of the seed and its step.

    A batch holds as many rows of each lane as of the others; see the module. Lanes differ by a row
    at most, so that after a pass of n rows each row came once, but for n % lanes of them where
    lanes are not equal. What a resumed run and who shares batches sees, what is yielded and what is
    refused is as of `LogRows.batches`.

    From a data service each row comes once a pass, whoever reads it first: the order is not fixed,
    and a resumed run begins a pass.

    Raises:
      InputError: as `LogRows.batches`; `slices.of` does not divide the lanes, or the data service
        does not answer or would have to slice.
    """
    import tensorflow as tf

    users = checked_users(
      user_features, rows=len(self), last_user=self.last_user, start_step=start_step
    )
    size = slices.rows(batch_size)
    if self.service is None:
      rows = self._in_order(batch_size, seed, start_step, slices)
    else:
      rows = self._served(slices, size)
    return rows.map(
      lambda batch: with_users(batch, users), num_parallel_calls=tf.data.AUTOTUNE
    ).prefetch(tf.data.AUTOTUNE)

  @contextlib.contextmanager
  def reading(self) -> Iterator[None]:
    """Wherever batches are drawn: names the file that is damaged, if one is.

    Raises:
      RunError: a file is missing, cut or corrupt.
    """
    import tensorflow as tf

    try:
      yield
    except (
      tf.errors.DataLossError,
      tf.errors.InvalidArgumentError,
      tf.errors.NotFoundError,
    ) as error:
      damage = self._damage()
      if damage is None:
        raise
      raise RunError(
        f"{damage}; delete {self.directory.parent} and run the same command again, which writes it"
        " anew and goes on from the last checkpoint"
      ) from error

  def lanes(self, batch_size: int) -> int:
    """How many lanes a batch is put together from: lanes are joined where it is no multiple."""
    shared = math.gcd(LANES, batch_size)
    return max(d for d in range(1, shared + 1) if shared % d == 0 and d <= len(self))

  def _in_order(
    self, batch_size: int, seed: int, start_step: int, slices: Slices
  ) -> tf.data.Dataset:
    """Slices of batches, from a block of each of their lanes."""
    import tensorflow as tf

    lanes = self.lanes(batch_size)
    if lanes % slices.of:
      raise InputError(
        f"{self.directory}: batches of {batch_size} rows come from {lanes} lanes of files, which"
        f" {slices.of} readers cannot share equally; choose a number of readers that divides"
        f" {LANES} and a batch_size that is a multiple of {LANES}"
      )
    first, last = (place * lanes // slices.of for place in (slices.begin, slices.end))
    table = self._table(lanes)
    keys = _Keys(seed)
    starts = [
      _start(table.rows[lane], lane, keys, start_step * batch_size // lanes)
      for lane in range(lanes)
    ]
    numbers, offsets = (tf.constant(values, tf.int64) for values in zip(*starts, strict=True))
    names, sizes, counts, ids = table.tensors()

    def lane(number):
      def read(turn):
        passed, place = turn // counts[number], turn % counts[number]
        file = shuffled(place, keys.of_files(passed, number), counts[number])
        columns = self._read(names[number, file], sizes[number, file])
        rows = tf.range(sizes[number, file])
        order = shuffled(rows, keys.of_rows(passed, ids[number, file]), sizes[number, file])
        taken = tf.where(turn == numbers[number], offsets[number], 0)
        return _gather(columns, order[taken:])

      files = tf.data.Dataset.counter(numbers[number]).map(read)
      return files.prefetch(1).rebatch(batch_size // lanes, drop_remainder=True)

    def joined_blocks(blocks):
      return tf.nest.map_structure(lambda x: tf.reshape(x, [slices.rows(batch_size)]), blocks)

    options = tf.data.Options()
    options.deterministic = True
    return (
      tf.data.Dataset.range(first, last)
      .interleave(
        lane, cycle_length=last - first, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
      )
      .batch(lanes // slices.of, drop_remainder=True)
      .map(joined_blocks)
      .with_options(options)
    )

  def _served(self, slices: Slices, size: int) -> tf.data.Dataset:
    """Batches of rows from the service, which deals out the files."""
    import tensorflow as tf

    assert self.service is not None
    if slices != WHOLE:
      raise InputError(
        f"--data_service={self.service} gives whole batches to one reader; leave it out where"
        " several workers train: each of them reads its own files"
      )
    _check_service(self.service)
    names, sizes, _, _ = self._table(1).tensors()

    def read(name, rows):
      columns = self._read(name, rows)
      blocks = tf.data.Dataset.from_tensors(_gather(columns, tf.random.shuffle(tf.range(rows))))
      return blocks.rebatch(_ROWS_PER_FILE // LANES)

    service = tf.data.experimental.service
    return (
      tf.data.Dataset.from_tensor_slices((names[0], sizes[0]))
      .shuffle(len(names[0]))
      .interleave(read, cycle_length=LANES, num_parallel_calls=tf.data.AUTOTUNE)
      .apply(service.distribute(service.ShardingPolicy.DYNAMIC, self.service))
      .repeat()
      .unbatch()
      .batch(size, drop_remainder=True)
    )

  def _read(self, name: tf.Tensor, rows: tf.Tensor) -> dict[str, Any]:
    """The rows of a file as columns; fails unless it holds that many."""
    import tensorflow as tf

    plain = tf.data.Options()  # a file takes less than making its reader optimal
    plain.experimental_optimization.apply_default_optimizations = False
    plain.autotune.enabled = False
    records = tf.data.TFRecordDataset(name, self.compression, _BUFFER).batch(rows + 1)
    records = records.with_options(plain).get_single_element()
    tf.debugging.assert_equal(tf.size(records, tf.int64), rows, "rows of a file")
    spec = {
      name: tf.io.FixedLenFeature([], tf.float32 if _TYPES.get(name) == "float32" else tf.int64)
      for name in self.columns
    }
    parsed = tf.io.parse_example(records, spec)
    columns = {name: tf.cast(parsed[name], _TYPES[name]) for name in self.columns if name in _TYPES}
    context = {
      name.removeprefix(_CONTEXT): tf.bitcast(parsed[name], tf.float64)
      for name in self.columns
      if name.startswith(_CONTEXT)
    }
    return {**columns, "context": context}

  def _table(self, lanes: int) -> _Table:
    """The files, with lanes joined until there are so many."""
    paths = [
      [(_path(self.directory, self.kind, lane, n, self.compression), rows)
       for n, rows in enumerate(files)]
      for lane, files in enumerate(self.files)
    ]  # fmt: skip
    grouped = [
      [file for lane in range(first, LANES, lanes) for file in paths[lane]]
      for first in range(lanes)
    ]
    return _Table(
      paths=[[str(path) for path, _ in group] for group in grouped],
      rows=[[rows for _, rows in group] for group in grouped],
    )

  def _damage(self) -> str | None:
    """Which file cannot be read, and from where on."""
    table = self._table(1)
    for path, rows in zip(map(pathlib.Path, table.paths[0]), table.rows[0], strict=True):
      if not path.exists():
        return f"{path}: is missing"
      damage = framing.first_damage(path)
      if damage is not None:
        return f"{path}: {damage}"
      if (found := framing.count(path)) != rows:
        return f"{path}: holds {found} rows and not {rows}"
    return None


@dataclasses.dataclass(frozen=True)
class _Table:
  """Files by lane.

  Attributes:
    paths: of every lane.
    rows: that they hold.
  """

  paths: list[list[str]]
  rows: list[list[int]]

  def tensors(self) -> tuple[tf.Tensor, ...]:
    """Paths, rows [lanes, most files], number of files [lanes], and a number of each file."""
    import tensorflow as tf

    counts = [len(paths) for paths in self.paths]
    shape = (len(counts), max(counts))
    paths, rows = np.full(shape, "", object), np.zeros(shape, np.int64)
    for lane, count in enumerate(counts):
      paths[lane, :count], rows[lane, :count] = self.paths[lane], self.rows[lane]
    ids = np.arange(rows.size, dtype=np.int64).reshape(shape)
    return tf.constant(paths), tf.constant(rows), tf.constant(counts, tf.int64), tf.constant(ids)


@dataclasses.dataclass(frozen=True)
class _Keys:
  """Keys of `shuffled`: of the files of a lane, and of the rows of a file, in a pass."""

  seed: int

  def of_files(self, passed: Any, lane: Any) -> tf.Tensor:
    return self._key(passed, -1 - lane)

  def of_rows(self, passed: Any, file: Any) -> tf.Tensor:
    return self._key(passed, file)

  def _key(self, passed: Any, which: Any) -> tf.Tensor:
    import tensorflow as tf

    return tf.stack([tf.cast(part, tf.int64) for part in (self.seed, passed, which)])


def _start(rows: list[int], lane: int, keys: _Keys, taken: int) -> tuple[int, int]:
  """Where a lane goes on after so many of its rows: at which turn of its files, at which row."""
  import tensorflow as tf

  passed, rest = divmod(taken, sum(rows))
  turns = tf.range(len(rows), dtype=tf.int64)
  order = shuffled(turns, keys.of_files(passed, lane), len(rows)).numpy()
  ends = np.cumsum(np.array(rows)[order])
  place = int(np.searchsorted(ends, rest, side="right"))
  return passed * len(rows) + place, rest - (int(ends[place - 1]) if place else 0)


def _gather(columns: Any, rows: tf.Tensor) -> Any:
  import tensorflow as tf

  return tf.nest.map_structure(lambda column: tf.gather(column, rows), columns)


def write(
  parts: Iterable[LogRows],
  directory: str | os.PathLike,
  *,
  seed: int = 0,
  compress: bool = True,
  rows_per_file: int = _ROWS_PER_FILE,
) -> StreamedRows:
  """Writes the rows of all parts, in memory some hundred thousand at a time.

  Args:
    parts: logs with the same columns; where rows stand on a slate is left out.
    directory: an empty directory, or a new one.
    seed: fixes which row goes where.
    compress: whether to gzip the files.
    rows_per_file: at most, in a file. So many of each lane are in memory, and shuffled.

  Raises:
    InputError: there are no rows.
  """
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  compression = "GZIP" if compress else ""
  dealers = {
    kind: _Dealer(directory, kind, compression, rows_per_file, np.random.default_rng([seed, n]))
    for n, kind in enumerate((_ALL, _REWARDED))
  }
  total, largest, last_user = 0.0, 0.0, -1
  for part in parts:
    if not len(part):
      continue
    dealers[_ALL].add(part)
    dealers[_REWARDED].add(part.positives())
    total += float(part.reward.sum(dtype=np.float64))
    largest = max(largest, float(part.reward.max()))
    last_user = max(last_user, int(part.user_index.max()))
  if last_user < 0:
    raise InputError(f"{directory}: no rows to write")
  for kind, dealer in dealers.items():
    dealer.finish()
    np.save(directory / _SHOWN.format(kind=kind), dealer.shown)
  description = {
    "files": {kind: dealer.files for kind, dealer in dealers.items()},
    "columns": dealers[_ALL].columns,
    "compression": compression,
    "last_user": last_user,
    "sums": [total, largest],
  }
  (directory / _DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")
  return load(directory)


def load(directory: str | os.PathLike, *, kind: str = _ALL) -> StreamedRows:
  """The log that `write` left in a directory.

  Args:
    directory: of `write`.
    kind: "all" rows, or the "rewarded" ones.
  """
  directory = pathlib.Path(directory)
  try:
    found = json.loads((directory / _DESCRIPTION).read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise RunError(
      f"{directory / _DESCRIPTION}: cannot be read ({error}); delete {directory.parent} and run the"
      " same command again"
    ) from None
  return StreamedRows(
    directory=directory,
    kind=kind,
    files=tuple(map(tuple, found["files"][kind])),
    columns=tuple(found["columns"]),
    compression=found["compression"],
    last_user=found["last_user"],
    sums=Rewards(*found["sums"]),
  )


class _Dealer:
  """Deals rows to lanes, some files at a time."""

  def __init__(
    self,
    directory: pathlib.Path,
    kind: str,
    compression: str,
    rows_per_file: int,
    rng: np.random.Generator,
  ):
    self.files: list[list[int]] = [[] for _ in range(LANES)]
    self.columns: list[str] = []
    self.shown = np.zeros(0, np.int64)  # by item
    self._directory = directory
    self._kind = kind
    self._compression = compression
    self._round = rows_per_file * LANES
    self._rng = rng
    self._waiting: list[LogRows] = []

  def add(self, log: LogRows) -> None:
    shown = log.shown(len(self.shown))
    shown[: len(self.shown)] += self.shown
    self.shown = shown
    self._waiting.append(log)
    if sum(map(len, self._waiting)) < self._round:
      return
    held = joined(self._waiting)
    ends = [*range(0, len(held) - self._round + 1, self._round)]
    for start in ends:
      self._write(held.select(slice(start, start + self._round)))
    self._waiting = [held.select(slice(ends[-1] + self._round, None))]

  def finish(self) -> None:
    self._write(joined(self._waiting)) if any(map(len, self._waiting)) else None

  def _write(self, log: LogRows) -> None:
    """Only the last round can be short, so that lanes differ by a row at most."""
    import tensorflow as tf

    columns: dict[str, np.ndarray] = {n: v for n, v in log.columns().items() if n in _TYPES}
    # An Example has no float64; its bits fit an integer.
    columns |= {_CONTEXT + name: v.view(np.int64) for name, v in log.context.items()}
    self.columns = list(columns)
    order = self._rng.permutation(len(log))
    records = shards.serialize({name: values[order] for name, values in columns.items()})

    def write_lane(lane: int) -> int:
      own = records[lane::LANES]
      path = _path(self._directory, self._kind, lane, len(self.files[lane]), self._compression)
      if len(own):
        rows = tf.data.experimental.to_variant(tf.data.Dataset.from_tensor_slices(own))
        tf.raw_ops.DatasetToTFRecord(
          input_dataset=rows, filename=str(path), compression_type=self._compression
        )
      return len(own)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      for lane, rows in enumerate(pool.map(write_lane, range(LANES))):
        if rows:
          self.files[lane].append(rows)


def _path(
  directory: pathlib.Path, kind: str, lane: int, number: int, compression: str
) -> pathlib.Path:
  end = ".tfrecord.gz" if compression else ".tfrecord"
  return directory / f"{kind}-lane{lane:02d}-{number:05d}{end}"


def _check_service(address: str) -> None:
  protocol, _, place = address.partition("://")
  host, _, port = place.rpartition(":")
  if protocol != "grpc" or not host or not port.isdecimal():
    raise InputError(f"--data_service={address}: write grpc://HOST:PORT, of the dispatcher")
  try:
    socket.create_connection((host, int(port)), timeout=_TIMEOUT).close()
  except OSError as error:
    raise InputError(
      f"--data_service={address}: nothing answers there ({error}); start a tf.data dispatcher and"
      " workers, or leave the flag out"
    ) from None
