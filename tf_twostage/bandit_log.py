"""The bandit log: what an older policy showed, how likely it was to, and what came of it.

One row is one shown item. `COLUMNS` is the contract on disk, where ids are raw strings; in memory
a `BanditLog` holds catalogue indices. `write` and `read` go between the two, and nothing leaves
`read` unchecked. `train_dataset` turns a log into batches. docs/bandit_log.md tells the contract
to those who write logs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import tensorflow as tf
from google.protobuf.message import DecodeError

from tf_twostage.errors import InputError
from tf_twostage.schema import Id, Numeric, Schema

COLUMNS = {
  "user_id": ("string", "raw id of the user, as in the users' table"),
  "item_id": ("string", "raw id of the item shown, as in the items' table"),
  "propensity": ("float32", "probability that the behavior policy gave the item, in (0, 1]"),
  "reward": ("float32", "what came of it, >= 0; usually 0 or 1"),
  "position": ("int32", "optional: 0-based draw or slot of the item on its slate"),
}
_CONTEXT = ("float64", "context feature of the schema")
_OPTIONAL = "position"
_SHARD = re.compile(r"log-\d{5}-of-\d{5}\.tfrecord")
_VIEW = re.compile(r"log\.(csv|parquet|json)")


@dataclasses.dataclass(frozen=True, eq=False)
class BanditLog:
  """Logged actions with their propensities and rewards; n rows.

  Attributes:
    user_index: [n] int32, row of the user in the users' table.
    action: [n] int32, catalogue index of the item shown.
    propensity: [n] float32 in (0, 1], probability the behavior policy gave the action; None where
      the log does not say, and someone has yet to estimate it.
    reward: [n] float32, >= 0.
    context: raw context features by name, each [n] float64.
    position: [n] int32, 0-based draw or slot; None where the log does not say.

  Raises:
    InputError: a column has the wrong type, shape or length, or holds a value out of range.
  """

  user_index: np.ndarray
  action: np.ndarray
  propensity: np.ndarray | None
  reward: np.ndarray
  context: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  position: np.ndarray | None = None

  def __post_init__(self):
    columns = {name: _cast(name, value, _DTYPES[name]) for name, value in self.columns().items()}
    context = {name: _cast(name, value, "float64") for name, value in self.context.items()}
    shapes = {name: value.shape for name, value in (columns | context).items()}
    if set(shapes.values()) != {(columns["action"].size,)}:
      raise InputError(f"bandit log: columns must be vectors of one length, got {shapes}")
    _check_values(columns)
    _check_values(context)
    for name, value in {**columns, "context": context}.items():
      object.__setattr__(self, name, value)

  def columns(self) -> dict[str, np.ndarray]:
    """What the log has of its own columns by name, [n] each; the context is apart."""
    return {name: getattr(self, name) for name in _DTYPES if getattr(self, name) is not None}

  def __len__(self) -> int:
    return len(self.action)

  def select(self, rows: np.ndarray | slice) -> BanditLog:
    """The rows of a boolean mask [n], of indices, or of a slice."""
    columns = {name: value[rows] for name, value in self.columns().items()}
    context = {name: value[rows] for name, value in self.context.items()}
    return dataclasses.replace(self, **columns, context=context)

  def positives(self) -> BanditLog:
    """The rows with reward > 0."""
    return self.select(self.reward > 0)


def write(
  log: BanditLog,
  directory: str | os.PathLike,
  schema: Schema,
  *,
  num_shards: int = 4,
  parquet: bool = False,
) -> None:
  """Writes a log as TFRecord shards, with a CSV view and a description beside them.

  The files are written aside and renamed, so they appear together. An earlier log in the same
  directory is replaced; a directory that holds anything else is left alone.

  Args:
    log: the rows, kept in order.
    directory: where `log-00000-of-00004.tfrecord`, ..., `log.csv` and `log.json` go.
    schema: names the ids and the context features of the log.
    num_shards: number of TFRecord files, of nearly equal length.
    parquet: whether to write `log.parquet` as well; needs the extra `[parquet]`.

  Raises:
    InputError: the log is empty or does not fit the schema, or the directory is in other use.
  """
  if num_shards < 1:
    raise InputError(f"num_shards must be at least 1, got {num_shards}")
  columns = _raw_columns(log, schema)
  with _written_aside(pathlib.Path(directory).resolve()) as aside:
    for shard, rows in zip(
      _shard_names(num_shards), np.array_split(np.arange(len(log)), num_shards), strict=True
    ):
      with tf.io.TFRecordWriter(str(aside / shard)) as writer:
        for record in _serialize({name: value[rows] for name, value in columns.items()}):
          writer.write(record)
    frame = pd.DataFrame(columns)
    frame.to_csv(aside / "log.csv", index=False)
    if parquet:
      with _pyarrow():
        frame.to_parquet(aside / "log.parquet", engine="pyarrow", index=False)
    meanings = {name: COLUMNS.get(name, _CONTEXT) for name in columns}
    description = {
      "rows": len(log),
      "columns": {name: {"dtype": d, "meaning": m} for name, (d, m) in meanings.items()},
    }
    (aside / "log.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def read(path: str | os.PathLike, schema: Schema) -> BanditLog:
  """Reads and checks a log.

  Args:
    path: a directory of shards as `write` leaves it, a `.csv` or a `.parquet` file.
    schema: gives the catalogue indices of the raw ids, and the context features to expect.

  Returns:
    The log; rows of shards stand in the order of the shards.

  Raises:
    InputError: files are missing, damaged or empty, a column is missing, an id is unknown, or a
      value is out of range. The message names the file, the column, how many rows are bad, the
      first of them (counted from 0 in that file), and the remedy.
  """
  path = pathlib.Path(path)
  names = [*COLUMNS, *_context_names(schema)]
  kind = "directory" if path.is_dir() else path.suffix
  if not path.exists() or kind not in _READERS:
    raise InputError(f"{path}: no bandit log; give a directory of shards, a .csv or a .parquet")
  frame, locate = _READERS[kind](path, names)
  missing = [name for name in names if name not in frame and name != _OPTIONAL]
  if missing:
    raise InputError(
      f"{path}: missing column(s) {missing} in a log of {len(frame)} rows; found"
      f" {list(map(str, frame))}; add them, or mend the header"
    )
  if frame.empty:
    raise InputError(f"{path}: the log has no rows; log some traffic first")
  numbers = {name: _numbers(frame[name], locate) for name in names[2:] if name in frame}
  with np.errstate(over="ignore", under="ignore"):  # the check sees what float32 cannot hold
    numbers |= {name: numbers[name].astype(np.float32) for name in ("propensity", "reward")}
  _check_values(numbers, locate)
  position = numbers.pop(_OPTIONAL, None)
  return BanditLog(
    user_index=_catalogue_index(frame["user_id"], schema.user_id, "user", locate),
    action=_catalogue_index(frame["item_id"], schema.item_id, "item", locate),
    propensity=numbers.pop("propensity"),
    reward=numbers.pop("reward"),
    context=numbers,
    position=None if position is None else position.astype(np.int32),
  )


def train_dataset(
  log: BanditLog,
  user_features: Mapping[str, tf.Tensor | np.ndarray],
  *,
  batch_size: int,
  seed: int,
  shuffle: bool = True,
  start_step: int = 0,
) -> tf.data.Dataset:
  """Endless batches of a log; a batch is a pure function of the seed and its step.

  Place p of the stream belongs to pass p // n over the log. Each pass holds every row once, in an
  order of its own, and passes join without a gap: a batch may hold the end of one and the start
  of the next, and a batch larger than the log holds several. A run resumed at `start_step` sees
  what an uninterrupted run would.

  Args:
    log: n rows.
    user_features: encoded features of all users by name, each [U, ...].
    batch_size: rows in a batch, B.
    seed: fixes the order of every pass.
    shuffle: whether to shuffle each pass; if not, rows come in the order of the log.
    start_step: number of batches already taken.

  Returns:
    A dataset of dicts: "user" {name: [B, ...]}, "context" {name: [B] float64}, "user_index" and
    "action" [B] int32, "propensity" (where the log has it) and "reward" [B] float32. All shapes
    are static.

  Raises:
    InputError: the log is empty, `user_features` lacks users of the log, or a number is too small.
  """
  n = len(log)
  if not n:
    raise InputError("bandit log: no rows to train on; were there any with reward > 0?")
  if batch_size < 1 or start_step < 0:
    raise InputError(
      f"batch_size must be >= 1 and start_step >= 0, got {batch_size} and {start_step}"
    )
  users = {name: tf.convert_to_tensor(table) for name, table in user_features.items()}
  last = int(log.user_index.max())
  short = {name: len(table) for name, table in users.items() if len(table) <= last}
  if short:
    raise InputError(
      f"user features: tables of {short} rows end before user {last} of the log; encode every"
      " user of the schema"
    )
  columns = {**log.columns(), "context": dict(log.context)}
  columns.pop("position", None)
  columns = tf.nest.map_structure(tf.convert_to_tensor, columns)

  def example(rows):
    batch = tf.nest.map_structure(lambda column: tf.gather(column, rows), columns)
    batch["user"] = {k: tf.gather(table, batch["user_index"]) for k, table in users.items()}
    return batch

  rows = shuffled_rows(n, batch_size, seed=seed, shuffle=shuffle, start_step=start_step)
  return rows.map(example, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def shuffled_rows(
  num_rows: int, batch_size: int, *, seed: int, shuffle: bool = True, start_step: int = 0
) -> tf.data.Dataset:
  """Endless batches of row numbers, [B] int64; see `train_dataset`, whose order this is."""

  def batch(step):
    place = step * batch_size + tf.range(batch_size, dtype=tf.int64)
    index, epoch = place % num_rows, place // num_rows
    return _shuffled(index, epoch, num_rows, seed) if shuffle else index

  options = tf.data.Options()
  options.deterministic = True
  return tf.data.Dataset.counter(start_step).map(batch).with_options(options)


def _shuffled(index: tf.Tensor, epoch: tf.Tensor, n: int, seed: int) -> tf.Tensor:
  """The rows at `index` [B] of the shuffled passes `epoch` [B] over n rows."""
  # The raw op, because tf.random.experimental.index_shuffle takes no seed per row and its four
  # rounds leave the orders of successive passes alike: their correlation is 0.4 at 30,000 rows
  # and 0.95 at a million.
  key = tf.stack([tf.fill(epoch.shape, tf.constant(seed, tf.int64)), epoch, epoch], axis=1)
  return tf.raw_ops.RandomIndexShuffle(
    index=index, seed=key, max_index=tf.constant(n - 1, tf.int64), rounds=16
  )


# Checks. `_Locate` takes a row of the log to its file and the row in it, for messages.

_Locate = Callable[[int], tuple[object, int]]
_DTYPES = {
  "user_index": "int32",
  "action": "int32",
  "propensity": "float32",
  "reward": "float32",
  "position": "int32",
}
_INT_MAX = np.iinfo(np.int32).max
_INDEX = (lambda x: (x >= 0) & (x <= _INT_MAX) & (x % 1 == 0), "must be a whole number >= 0")
_FINITE = (np.isfinite, "must be finite")
_VALID: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
  "user_index": _INDEX,
  "action": _INDEX,
  # Kernels flush float32 subnormals to zero, and a weight divides by the propensity.
  "propensity": (lambda x: (x >= np.finfo(np.float32).tiny) & (x <= 1), "must lie in (0, 1]"),
  "reward": (lambda x: np.isfinite(x) & (x >= 0), "must be finite and >= 0"),
  "position": _INDEX,
}


def _cast(name: str, values: np.ndarray, dtype: str) -> np.ndarray:
  values = np.asarray(values)
  try:
    with np.errstate(over="ignore", under="ignore"):
      return values.astype(dtype, casting="same_kind")
  except TypeError:
    raise InputError(
      f"bandit log: column {name!r} must be {dtype}, got {values.dtype}; convert it first"
    ) from None


def _in_memory(row: int) -> tuple[object, int]:
  return "bandit log", row


def _require(
  ok: np.ndarray,
  column: object,
  rule: str,
  values: np.ndarray | pd.Series,
  locate: _Locate = _in_memory,
  remedy: str = "mend or drop these rows",
) -> None:
  bad = np.flatnonzero(~ok)
  if bad.size:
    file, row = locate(int(bad[0]))
    value = str(np.asarray(values)[bad[0]])
    raise InputError(
      f"{file}: column {column!r} {rule}; {bad.size} of {len(ok)} rows break this"
      f" (first: row {row}, value {value!r}); {remedy}"
    )


def _check_values(columns: Mapping[str, np.ndarray], locate: _Locate = _in_memory) -> None:
  for name, values in columns.items():
    valid, rule = _VALID.get(name, _FINITE)
    _require(valid(values), name, rule, values, locate)


def _numbers(values: pd.Series, locate: _Locate) -> np.ndarray:
  try:
    if values.dtype.kind in "mM":
      raise TypeError("a date has no unit")
    return np.asarray(values).astype(np.float64)
  except (TypeError, ValueError):
    numbers = pd.to_numeric(values.astype(str), errors="coerce").to_numpy(np.float64)
    remedy = "write plain numbers, dates as seconds"
    _require(~np.isnan(numbers), values.name, "must hold numbers", values, locate, remedy)
    return numbers


def _catalogue_index(values: pd.Series, feature: Id, side: str, locate: _Locate) -> np.ndarray:
  vocabulary = pd.Index(feature.vocabulary, dtype=object)
  index = vocabulary.get_indexer(pd.Index(values.astype(str), dtype=object))
  rule = f"must name a known {side} ({feature.name!r} of the schema)"
  remedy = f"add them to the {side}s' table or drop these rows"
  known = (index >= 0) & values.notna().to_numpy()  # a missing id is not the user "nan"
  _require(known, values.name, rule, values, locate, remedy)
  return index.astype(np.int32)


def _context_names(schema: Schema) -> list[str]:
  taken = {*COLUMNS, *_DTYPES}
  odd = [f.name for f in schema.context if not isinstance(f, Numeric) or f.name in taken]
  if odd:
    raise InputError(
      f"schema: context features of a log must be Numeric and not be called one of"
      f" {sorted(taken)}; got {odd}"
    )
  return [f.name for f in schema.context]


# Writing.


def _shard_names(num_shards: int) -> list[str]:
  return [f"log-{shard:05d}-of-{num_shards:05d}.tfrecord" for shard in range(num_shards)]


def _raw_columns(log: BanditLog, schema: Schema) -> dict[str, np.ndarray]:
  """The columns on disk, in order; refuses what `read` would refuse."""
  names = _context_names(schema)
  if set(log.context) != set(names):
    raise InputError(
      f"bandit log: context features {sorted(log.context)} are not the schema's {sorted(names)}"
    )
  if not len(log):
    raise InputError("bandit log: no rows to write")
  if log.propensity is None:
    raise InputError("bandit log: it has no propensities; estimate them before you write it")
  sizes = {"user_index": schema.num_users, "action": schema.num_items}
  for name, size in sizes.items():
    index = getattr(log, name)
    _require(index < size, name, f"must be below {size}, the size of the vocabulary", index)
  columns = {
    "user_id": np.array(schema.user_id.vocabulary, dtype=object)[log.user_index],
    "item_id": np.array(schema.item_id.vocabulary, dtype=object)[log.action],
    "propensity": log.propensity,
    "reward": log.reward,
  }
  if log.position is not None:
    columns[_OPTIONAL] = log.position
  return columns | {name: log.context[name] for name in names}


_TEXT = ("bytes_list", "BytesList", object)
_EXAMPLE_LISTS = {  # by the kind of a NumPy dtype
  "O": _TEXT,
  "U": _TEXT,
  "f": ("float_list", "FloatList", np.float32),
  "i": ("int64_list", "Int64List", np.int64),
}


def _serialize(columns: Mapping[str, np.ndarray]) -> np.ndarray:
  """The rows as serialized tf.train.Example, [n] bytes: whole columns, from the inside out."""
  n = len(columns["user_id"])

  def encode(message, **fields):
    sizes = tf.ones([n, len(fields)], tf.int32)
    values = [value[:, None] for value in fields.values()]
    return tf.io.encode_proto(sizes, values, list(fields), f"tensorflow.{message}")

  def entry(name, values):
    if values.dtype == np.float64:  # an Example has no float64; decimal text keeps every digit
      values = values.astype(str)
    kind, message, dtype = _EXAMPLE_LISTS[values.dtype.kind]
    feature = encode("Feature", **{kind: encode(message, value=values.astype(dtype))})
    return encode("Features.FeatureEntry", key=tf.fill([n], name), value=feature)

  entries = tf.stack([entry(name, values) for name, values in columns.items()], axis=1)
  sizes = tf.fill([n, 1], len(columns))
  features = tf.io.encode_proto(sizes, [entries], ["feature"], "tensorflow.Features")
  return encode("Example", features=features).numpy()


@contextlib.contextmanager
def _written_aside(directory: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a new sibling of `directory` that takes its place once it is complete."""
  replaces = directory.exists()
  if replaces and not all(
    _SHARD.fullmatch(name) or _VIEW.fullmatch(name) for name in os.listdir(directory)
  ):
    raise InputError(f"{directory}: holds something other than a bandit log; name a new directory")
  aside = directory.with_name(f".{directory.name}.new-{os.getpid()}")
  old = directory.with_name(f".{directory.name}.old-{os.getpid()}")
  shutil.rmtree(aside, ignore_errors=True)
  aside.mkdir(parents=True)
  try:
    yield aside
    if replaces:
      directory.rename(old)
    aside.rename(directory)
  finally:
    shutil.rmtree(aside, ignore_errors=True)
  shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _pyarrow() -> Iterator[None]:
  try:
    yield
  except ImportError:
    raise InputError(
      'Parquet needs pyarrow: pip install "tf_twostage[parquet]", or use CSV or shards'
    ) from None


# Reading: each reader returns a frame of raw columns and what locates its rows.


def _read_csv(path: pathlib.Path, names: Sequence[str]) -> tuple[pd.DataFrame, _Locate]:
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
      # As text: an id may read "NA", and `_numbers` keeps every digit in any pandas.
      frame = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
  except pd.errors.EmptyDataError:
    raise InputError(f"{path}: the file is empty; it needs a header and rows") from None
  except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeDecodeError) as error:
    raise InputError(f"{path}: not a readable CSV ({error}); write it again as UTF-8") from None
  return frame, lambda row: (path, row)


def _read_parquet(path: pathlib.Path, names: Sequence[str]) -> tuple[pd.DataFrame, _Locate]:
  try:
    with _pyarrow():
      frame = pd.read_parquet(path, engine="pyarrow")
  except InputError:
    raise
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: not a readable Parquet file ({error}); write it again") from None
  return frame, lambda row: (path, row)


def _read_shards(directory: pathlib.Path, names: Sequence[str]) -> tuple[pd.DataFrame, _Locate]:
  absent = np.iinfo(np.int64).min
  spec = {name: tf.io.FixedLenFeature([], tf.string) for name in names}
  spec |= {name: tf.io.FixedLenFeature([], tf.float32) for name in ("propensity", "reward")}
  spec[_OPTIONAL] = tf.io.FixedLenFeature([], tf.int64, default_value=absent)

  def parse(records):
    columns = {name: value.numpy() for name, value in tf.io.parse_example(records, spec).items()}
    for name in ("user_id", "item_id"):
      columns[name] = pd.Series(columns[name]).str.decode("utf-8", errors="replace")
    return pd.DataFrame(columns)

  shards = _shards(directory)
  frames: list[pd.DataFrame] = []
  starts = [0]
  try:
    for shard in shards:
      records = tf.data.TFRecordDataset(str(shard)).batch(1 << 16)
      frames += map(parse, records)
      starts.append(sum(len(frame) for frame in frames))
  except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, UnicodeDecodeError) as error:
    # TensorFlow quotes a record it cannot parse, and stumbles over its bytes.
    raise _explain(shards, spec, error) from None
  _check_row_count(directory, starts[-1])
  frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(names))
  if (frame[_OPTIONAL] == absent).all():
    del frame[_OPTIONAL]

  def locate(row):
    shard = int(np.searchsorted(starts, row, side="right")) - 1
    return shards[shard], row - starts[shard]

  return frame, locate


_READERS = {"directory": _read_shards, ".csv": _read_csv, ".parquet": _read_parquet}


def _shards(directory: pathlib.Path) -> list[pathlib.Path]:
  """The shards of a log in order, all of them."""
  found = {path.name for path in directory.iterdir() if _SHARD.fullmatch(path.name)}
  if not found:
    raise InputError(f"{directory}: no shards such as log-00000-of-00004.tfrecord in it")
  expected = _shard_names(int(max(found)[-14:-9]))
  missing = sorted(set(expected) - found)
  if missing:
    raise InputError(
      f"{directory}: {len(missing)} of {len(expected)} shards are missing (first: {missing[0]});"
      " copy the log again"
    )
  if found != set(expected):
    raise InputError(
      f"{directory}: shards of several logs lie together (such as {min(found - set(expected))});"
      " keep one log in a directory"
    )
  return [directory / name for name in expected]


def _check_row_count(directory: pathlib.Path, rows: int) -> None:
  """A shard cut between two records reads without complaint; the description tells."""
  description = directory / "log.json"
  if not description.exists():
    return
  try:
    expected = json.loads(description.read_text(encoding="utf-8"))["rows"]
  except (ValueError, KeyError, TypeError):
    raise InputError(f"{description}: not the description of a log; write the log again") from None
  if rows != expected:
    raise InputError(
      f"{directory}: the shards hold {rows} rows, but log.json says {expected}; some were cut or"
      " replaced: copy or write the log again"
    )


def _explain(
  shards: Sequence[pathlib.Path],
  spec: Mapping[str, tf.io.FixedLenFeature],
  error: Exception,
) -> InputError:
  """Goes through failing shards row by row, to say what is wrong, where, and how often."""
  kinds = {tf.string: "bytes_list", tf.float32: "float_list", tf.int64: "int64_list"}
  wanted = {name: kinds[feature.dtype] for name, feature in spec.items()}
  places: dict[str, list[tuple[pathlib.Path, int]]] = {}
  total = 0
  for shard in shards:
    row = 0
    try:
      for record in tf.data.TFRecordDataset(str(shard)).as_numpy_iterator():
        for problem in _problems(record, wanted):
          places.setdefault(problem, []).append((shard, row))
        row += 1
    except tf.errors.DataLossError:
      return InputError(f"{shard}: truncated or corrupt from row {row} on; write the log again")
    total += row
  if not places:
    return InputError(f"{shards[0].parent}: cannot be read ({error})")
  problem, rows = next(iter(places.items()))
  shard, row = rows[0]
  return InputError(
    f"{shard}: {problem}; {len(rows)} of {total} rows break this (first: row {row}); write the log"
    " again as docs/bandit_log.md describes"
  )


def _problems(record: bytes, wanted: Mapping[str, str]) -> Iterator[str]:
  try:
    features = tf.train.Example.FromString(record).features.feature
  except DecodeError:
    yield "records must be tf.train.Example"
    return
  for name, kind in wanted.items():
    found = features[name].WhichOneof("kind") if name in features else None
    if found is None:
      if name != _OPTIONAL:
        yield f"column {name!r} is missing"
    elif found != kind:
      yield f"column {name!r} must be a {kind}, not a {found}"
    elif len(getattr(features[name], kind).value) != 1:
      yield f"column {name!r} must hold one value a row"
