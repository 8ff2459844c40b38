"""Any log -> native shards, streaming."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from tf_twostage.data.files import find, reader, shards
from tf_twostage.data.files.bad_rows import BadRows
from tf_twostage.data.log_schema import LogSchema, load_schema


def convert(
  log: str | os.PathLike | Sequence[str | os.PathLike],
  directory: str | os.PathLike,
  schema: str | os.PathLike | LogSchema,
  *,
  num_shards: int = 4,
  compress: bool = False,
  user_features: bool = True,
  on_bad_rows: str = "fail",
  progress: Callable[[int, int], object] = lambda rows, expected: None,
) -> tuple[int, BadRows]:
  """Checks a log and writes its good rows, in order, beside the schema that reads them.

  The directory appears when it is complete. Rows are in memory a chunk at a time.

  Args:
    log: what `files.find` takes.
    directory: where `log-00000-of-00004.tfrecord`, ..., `log.json` and `schema.yaml` go.
    schema: a `LogSchema`, its file, or the name of a preset.
    num_shards: number of TFRecord files.
    compress: whether to gzip them.
    user_features: whether the log holds them, there being no users file.
    on_bad_rows: "fail", or "skip" to go on without them.
    progress: told, after each part, its rows and how many there will be in all.

  Returns:
    The number of rows written, and what was wrong with the others.

  Raises:
    InputError: files cannot be read, columns are missing, or the directory is in other use.
    BadRowsError: rows are bad and shall not be skipped, or all are.
  """
  schema = load_schema(schema)
  found = find.find(log)
  bad_rows = BadRows()

  def tables() -> Iterator[pa.Table]:
    for part in reader.read(found, schema, bad_rows, user_features=user_features):
      yield part.table
      progress(part.table.num_rows, expected)

  with shards.written_aside(directory) as aside:
    expected = found.count_rows()
    written = shards.write(tables(), aside, rows=expected, num_shards=num_shards, compress=compress)
    bad_rows.settle(on_bad_rows)
    schema.native(user_features=user_features).to_file(aside / shards.SCHEMA)
  return written, bad_rows
