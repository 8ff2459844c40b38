"""Training rows on disk: a log larger than memory, read in an order that the seed fixes.

`write` shuffles the rows, some hundred thousand at a time, and cuts them into blocks: files of
fixed-width records. A pass over the log takes the blocks in a random order, `WINDOW` of them at a
time, and shuffles the rows of each window. Rewarded rows are also written as blocks of their own,
for generators that learn from these alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from tf_twostage.data.rows import (
  WHOLE,
  LogRows,
  Rewards,
  Slices,
  checked_users,
  shuffled,
  with_users,
)
from tf_twostage.errors import InputError, RunError

if TYPE_CHECKING:
  import tensorflow as tf

BLOCK = 1 << 14  # rows of a block
WINDOW = 48  # blocks that are in memory and shuffled together
_ALL, _REWARDED = "all", "rewarded"
_DESCRIPTION = "rows.json"
_ITEMS = "{kind}-items.npy"  # rows and rewards of each item, [2, N]
_CONTEXT = "context/"
_HASHES = 1 << 62  # of TensorFlow's fingerprint of a file
_BLOCKS_ORDER = -1  # takes the place of a window in the key of the order of blocks
_SERVED_ROWS = 256  # that a data service sends at a time
_TIMEOUT = 5.0  # seconds for a data service to answer


class Block(NamedTuple):
  """A file of records: how many it has, and the fingerprint of its content."""

  rows: int
  fingerprint: int


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedRows:
  """Rows in files. `write` makes them and `load` opens them."""

  directory: pathlib.Path  # holds the files
  kind: str  # "all" rows or the "rewarded" ones
  blocks: tuple[Block, ...]  # the files, in order
  columns: Mapping[str, str]  # name -> dtype, in the order of a record
  last_user: int  # the highest user index
  sums: Rewards  # of the rewards
  # address of a tf.data service that reads the files, such as "grpc://host:5000". None: this
  # process reads them
  service: str | None = None
  catalogues: ClassVar[None] = None  # every row could show every item

  def __len__(self) -> int:
    return sum(block.rows for block in self.blocks)

  def positives(self) -> StreamedRows:
    """The rows with reward > 0."""
    return dataclasses.replace(load(self.directory, kind=_REWARDED), service=self.service)

  def rewards(self) -> Rewards:
    """The sum and the largest of all rewards."""
    return self.sums

  def shown(self, num_items: int) -> np.ndarray:
    """How many rows show each item of a catalogue, [N] int."""
    return self._items(num_items)[0].astype(np.int64)

  def earned(self, num_items: int) -> np.ndarray:
    """The sum of the rewards of each item of a catalogue, [N]."""
    return self._items(num_items)[1]

  def _items(self, num_items: int) -> np.ndarray:
    found = np.load(self.directory / _ITEMS.format(kind=self.kind))
    return np.pad(found, ((0, 0), (0, num_items - found.shape[1])))

  def batches(
    self,
    user_features: Mapping[str, tf.Tensor | np.ndarray],
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    slices: Slices = WHOLE,
  ) -> tf.data.Dataset:
    """Endless batches; each is a function of the seed and its step. See `LogRows.batches`.

    Passes, resuming, slices, elements and errors are those of `LogRows.batches`; the order differs.
    A data service gives each row once a pass in no fixed order, and a resumed run begins a pass.
    """
    import tensorflow as tf

    users = checked_users(
      user_features, rows=len(self), last_user=self.last_user, start_step=start_step
    )
    size = slices.rows(batch_size)
    if self.service is None:
      rows = self._in_order(batch_size, seed, start_step, slices).rebatch(size, drop_remainder=True)
    else:
      rows = self._served(slices).unbatch().batch(size, drop_remainder=True)
    return rows.map(
      lambda batch: with_users(batch, users), num_parallel_calls=tf.data.AUTOTUNE
    ).prefetch(tf.data.AUTOTUNE)

  @contextlib.contextmanager
  def reading(self) -> Iterator[None]:
    """Surrounds whatever draws batches: names the file that is damaged, if one is."""
    import tensorflow as tf

    try:
      yield
    except (tf.errors.InvalidArgumentError, tf.errors.NotFoundError) as error:
      damage = next(filter(None, map(self._damage, range(len(self.blocks)))), None)
      if damage is None:
        raise
      raise RunError(
        f"{damage}; run the same command again: it writes the log anew and resumes from the last"
        " checkpoint"
      ) from error

  def _in_order(
    self, batch_size: int, seed: int, start_step: int, slices: Slices
  ) -> tf.data.Dataset:
    """The rows of these slices from the first batch on, a window at a time."""
    import tensorflow as tf

    size, start = slices.rows(batch_size), start_step * batch_size
    num_blocks, windows = len(self.blocks), -(-len(self.blocks) // WINDOW)
    sizes = tf.constant([block.rows for block in self.blocks], tf.int64)

    def key(passed, window):
      return tf.stack([tf.cast(part, tf.int64) for part in (seed, passed, window)])

    def order_of_blocks(passed):
      blocks = tf.range(num_blocks, dtype=tf.int64)
      return shuffled(blocks, key(passed, _BLOCKS_ORDER), num_blocks)

    def read(turn):
      passed, window = turn // windows, turn % windows
      blocks = order_of_blocks(passed)
      records = self._records(blocks[window * WINDOW : (window + 1) * WINDOW])
      rows = tf.range(tf.shape(records, tf.int64)[0])
      earlier = tf.reduce_sum(tf.gather(sizes, blocks[: window * WINDOW]))
      place = passed * len(self) + earlier + rows  # in the stream of all batches
      slice_of_row = place % batch_size // size
      own = (place >= start) & (slice_of_row >= slices.begin) & (slice_of_row < slices.end)
      order = shuffled(rows, key(passed, window), tf.size(rows))
      return self._columns(tf.gather(records, order[own]))

    passed, rest = divmod(start, len(self))
    ends = np.cumsum(tf.gather(sizes, order_of_blocks(passed)))[WINDOW - 1 :: WINDOW]
    first = passed * windows + int(np.searchsorted(ends, rest, side="right"))
    options = tf.data.Options()
    options.deterministic = True
    return tf.data.Dataset.counter(first).map(read, num_parallel_calls=2).with_options(options)

  def _served(self, slices: Slices) -> tf.data.Dataset:
    """The rows in any order, from the service, which deals out the blocks."""
    import tensorflow as tf

    if slices != WHOLE:
      raise InputError(
        f"data_service {self.service} gives whole batches to one reader; leave it out where several"
        " workers train: each of them reads the files"
      )
    _check_service(str(self.service))

    def read(block):
      records = self._records(block[None])
      # Other operations would repeat one order in each pass where TensorFlow's global seed is set.
      now = tf.cast(1e6 * tf.timestamp(), tf.int64)
      rows = tf.range(tf.shape(records, tf.int64)[0])
      order = shuffled(rows, tf.stack([now, block, 0]), tf.size(rows))
      rows = self._columns(tf.gather(records, order))
      return tf.data.Dataset.from_tensors(rows).rebatch(_SERVED_ROWS)

    service = tf.data.experimental.service
    return (
      tf.data.Dataset.range(len(self.blocks))
      .shuffle(len(self.blocks))
      .interleave(read, cycle_length=WINDOW, num_parallel_calls=tf.data.AUTOTUNE)
      .apply(service.distribute(service.ShardingPolicy.DYNAMIC, self.service))
      .repeat()
    )

  def _records(self, blocks: tf.Tensor) -> tf.Tensor:
    """The records of some blocks, [rows, words] int32; fails unless they are as written."""
    import tensorflow as tf

    paths = tf.constant([str(self._path(number)) for number in range(len(self.blocks))])
    contents = tf.map_fn(tf.io.read_file, tf.gather(paths, blocks), parallel_iterations=WINDOW)
    fingerprints = tf.constant([block.fingerprint for block in self.blocks], tf.int64)
    tf.debugging.assert_equal(
      tf.strings.to_hash_bucket_fast(contents, _HASHES), tf.gather(fingerprints, blocks)
    )
    words = tf.io.decode_raw(tf.strings.reduce_join(contents), tf.int32)
    return tf.reshape(words, [-1, sum(map(_words, self.columns.values()))])

  def _columns(self, records: tf.Tensor) -> dict[str, Any]:
    import tensorflow as tf

    columns: dict[str, Any] = {"context": {}}
    start = 0
    for name, dtype in self.columns.items():
      end = start + _words(dtype)
      words = records[:, start] if end == start + 1 else records[:, start:end]
      values = tf.bitcast(words, dtype)
      start = end
      if name.startswith(_CONTEXT):
        columns["context"][name.removeprefix(_CONTEXT)] = values
      else:
        columns[name] = values
    return columns

  def _path(self, number: int) -> pathlib.Path:
    return self.directory / f"{self.kind}-{number:05d}.rows"

  def _damage(self, number: int) -> str | None:
    path = self._path(number)
    try:
      content = path.read_bytes()
    except OSError as error:
      return f"{path}: cannot be read ({error.strerror})"
    if _fingerprint(content) != self.blocks[number].fingerprint:
      return f"{path}: was cut or changed after it was written"
    return None


TrainingRows = LogRows | StreamedRows


def write(
  parts: Iterable[LogRows], directory: pathlib.Path, *, seed: int = 0, block: int = BLOCK
) -> StreamedRows:
  """Writes the rows of all parts but positions; the seed fixes which row goes where."""
  directory.mkdir(parents=True, exist_ok=True)
  writers = {
    kind: _Writer(directory, kind, block, np.random.default_rng([seed, place]))
    for place, kind in enumerate((_ALL, _REWARDED))
  }
  total, largest, last_user = 0.0, 0.0, -1
  columns: dict[str, str] = {}
  for part in parts:
    if not len(part):
      continue
    columns = {name: str(values.dtype) for name, values in _stored(part).items()}
    writers[_ALL].add(part)
    writers[_REWARDED].add(part.positives())
    total += float(part.reward.sum(dtype=np.float64))
    largest = max(largest, float(part.reward.max()))
    last_user = max(last_user, int(part.user_index.max()))
  if last_user < 0:
    raise InputError(f"{directory}: no rows to write")
  for writer in writers.values():
    writer.finish()
  description = {
    "blocks": {kind: writer.blocks for kind, writer in writers.items()},
    "columns": columns,
    "last_user": last_user,
    "sums": [total, largest],
  }
  (directory / _DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")
  return load(directory)


def load(directory: pathlib.Path, *, kind: str = _ALL) -> StreamedRows:
  """Opens the rows that `write` left in a directory."""
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
    blocks=tuple(Block(*block) for block in found["blocks"][kind]),
    columns=found["columns"],
    last_user=found["last_user"],
    sums=Rewards(*found["sums"]),
  )


class _Writer:
  """Gathers rows, shuffles as many as a window holds, and cuts them into blocks."""

  def __init__(self, directory: pathlib.Path, kind: str, block: int, rng: np.random.Generator):
    self.blocks: list[Block] = []
    self._directory, self._kind, self._block, self._rng = directory, kind, block, rng
    self._items = np.zeros((2, 0))
    self._waiting: list[np.ndarray] = []

  def add(self, log: LogRows) -> None:
    before = self._items.shape[1]
    items = np.stack([log.shown(before), log.earned(before)]).astype(np.float64)
    items[:, :before] += self._items
    self._items = items
    words = [
      np.ascontiguousarray(values).view("<i4").reshape(len(log), values.itemsize // 4)
      for values in _stored(log).values()
    ]
    self._waiting.append(np.concatenate(words, axis=1))
    window = self._block * WINDOW
    if sum(map(len, self._waiting)) < window:
      return
    held = np.concatenate(self._waiting)
    full = len(held) // window * window
    for start in range(0, full, window):
      self._write(held[start : start + window])
    self._waiting = [held[full:].copy()]

  def finish(self) -> None:
    if self._waiting:
      self._write(np.concatenate(self._waiting))
    np.save(self._directory / _ITEMS.format(kind=self._kind), self._items)

  def _write(self, records: np.ndarray) -> None:
    records = records[self._rng.permutation(len(records))]
    for start in range(0, len(records), self._block):
      content = records[start : start + self._block].tobytes()
      path = self._directory / f"{self._kind}-{len(self.blocks):05d}.rows"
      path.write_bytes(content)
      rows = min(self._block, len(records) - start)
      self.blocks.append(Block(rows, _fingerprint(content)))


def _stored(log: LogRows) -> dict[str, np.ndarray]:
  """The columns of a record; where a row stands on a slate is left out."""
  columns = {name: values for name, values in log.columns().items() if name != "position"}
  return columns | {_CONTEXT + name: values for name, values in log.context.items()}


def _words(dtype: str) -> int:
  return np.dtype(dtype).itemsize // 4


def _fingerprint(content: bytes) -> int:
  import tensorflow as tf

  return int(tf.strings.to_hash_bucket_fast(content, _HASHES))


def _check_service(address: str) -> None:
  protocol, _, place = address.partition("://")
  host, _, port = place.rpartition(":")
  if protocol != "grpc" or not host or not port.isdecimal():
    raise InputError(f"data_service {address}: write grpc://HOST:PORT, of the dispatcher")
  try:
    socket.create_connection((host, int(port)), timeout=_TIMEOUT).close()
  except OSError as error:
    raise InputError(
      f"data_service {address}: nothing answers there ({error}); start a tf.data dispatcher and"
      " workers, or leave it out"
    ) from None
