"""Which files a log consists of: one file, a directory, or those that match a pattern."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

from tf_twostage.data.files import csv_format, framing, parquet_format, tfrecord_format
from tf_twostage.data.files.chunk import Chunk
from tf_twostage.errors import InputError

DESCRIPTION = "log.json"
_NATIVE_SHARD = re.compile(r"log-\d{5}-of-\d{5}\.tfrecord(\.gz)?")
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<parts>\d{5})(?P<end>\.[a-z.]+)")


@dataclasses.dataclass(frozen=True)
class Format:
  """How files of a kind are read; see the functions of `csv_format`."""

  column_names: Callable[[pathlib.Path], list[str]]
  count_rows: Callable[[pathlib.Path], int]
  read: Callable[[pathlib.Path, Sequence[str]], Iterator[Chunk]]


_CSV, _PARQUET, _TFRECORD = (
  Format(module.column_names, module.count_rows, module.read)
  for module in (csv_format, parquet_format, tfrecord_format)
)
FORMATS = {
  ".csv": _CSV,
  ".csv.gz": _CSV,
  ".parquet": _PARQUET,
  ".tfrecord": _TFRECORD,
  ".tfrecord.gz": _TFRECORD,
}
_KINDS = ", ".join(FORMATS)


@dataclasses.dataclass(frozen=True)
class LogFiles:
  """The files of a log, in order.

  Attributes:
    place: what was asked for, for messages.
    paths: the files.
    format: how they are read.
    expected_rows: how many rows they hold, where a description beside them says so.
  """

  place: str
  paths: tuple[pathlib.Path, ...]
  format: Format
  expected_rows: int | None = None

  def count_rows(self) -> int:
    """About how many rows there are, never fewer; a fast look at the files."""
    return sum(map(self.format.count_rows, self.paths))

  def check_ends(self) -> None:
    """Refuses TFRecord files that were cut before all of the others have been read.

    Raises:
      InputError: one ends within a record.
    """
    for path in self.paths:
      damage = framing.cut(path) if suffix(path) == ".tfrecord" else None
      if damage is not None:
        raise InputError(
          f"{path}: truncated or corrupt to its end: {damage}; write the file again, or go on with"
          " what can be read (on_bad_rows: skip)"
        )

  def check_rows(self, rows: int) -> None:
    """A shard cut between two records reads without complaint; the description tells.

    Raises:
      InputError: `rows` is not what the description says.
    """
    if self.expected_rows not in (None, rows):
      raise InputError(
        f"{self.place}: the shards hold {rows} rows, but {DESCRIPTION} says {self.expected_rows};"
        " some were cut or replaced: copy or write the log again"
      )


def find(log: str | os.PathLike | Sequence[str | os.PathLike]) -> LogFiles:
  """The files of a log.

  Args:
    log: a file, a directory with files of one format (of a native log, its shards), a pattern
      such as "logs/*.csv", or several of these.

  Raises:
    InputError: nothing is there, of several formats, or of a log in numbered parts not all.
  """
  if not isinstance(log, str | os.PathLike):
    found = [find(part) for part in log]
    if not found:
      raise InputError("no files of a log were named")
    paths = tuple(path for part in found for path in part.paths)
    return LogFiles(", ".join(part.place for part in found), paths, _one_format(str(log[0]), paths))
  place, path = str(log), pathlib.Path(log)
  if path.is_dir():
    return _in_directory(path)
  names = [place] if path.exists() else sorted(glob.glob(place, recursive=True))
  if not names:
    raise InputError(
      f"{place}: no such file, and none matches it; name a file, a directory or a pattern of"
      f" {_KINDS} files"
    )
  paths = tuple(map(pathlib.Path, names))
  return LogFiles(place, paths, _one_format(place, paths))


def suffix(path: pathlib.Path) -> str:
  """The format's key: ".csv", ".csv.gz", ..."""
  name = path.name.lower()
  return next((known for known in FORMATS if name.endswith(known)), "")


def _in_directory(directory: pathlib.Path) -> LogFiles:
  inside = [path for path in sorted(directory.rglob("*")) if _is_data(path.relative_to(directory))]
  shards = tuple(path for path in inside if _NATIVE_SHARD.fullmatch(path.name))
  # Beside the shards of a native log lie views of the same rows.
  paths = shards or tuple(path for path in inside if suffix(path))
  if not paths:
    raise InputError(
      f"{directory}: no log in it, neither shards such as log-00000-of-00004.tfrecord nor {_KINDS}"
      " files"
    )
  _check_parts(directory, [path.name for path in paths])
  expected = _described_rows(directory / DESCRIPTION) if shards else None
  return LogFiles(str(directory), paths, _one_format(str(directory), paths), expected)


def _is_data(path: pathlib.Path) -> bool:
  return not any(part.startswith((".", "_")) for part in path.parts)  # such as Spark's _SUCCESS


def _one_format(place: str, paths: Sequence[pathlib.Path]) -> Format:
  kinds = {suffix(path): path for path in reversed(paths)}
  if "" in kinds:
    raise InputError(f"{kinds['']}: no bandit log; give {_KINDS} files or a directory of them")
  if len({FORMATS[kind] for kind in kinds}) > 1:
    raise InputError(
      f"{place}: files of several formats lie together ({', '.join(sorted(kinds))}); choose one"
      f" with a pattern, such as {place}/*{min(kinds)}"
    )
  return FORMATS[next(iter(kinds))]


def _check_parts(directory: pathlib.Path, names: Sequence[str]) -> None:
  """Of a log in numbered parts, all must be there, and of no other log."""
  found = {name: part for name in names if (part := _PART.fullmatch(name))}
  if not found:
    return
  first = found[max(found)]
  parts = int(first["parts"])
  expected = {f"{first['stem']}-{i:05d}-of-{parts:05d}{first['end']}" for i in range(parts)}
  missing = sorted(expected - set(names))
  if missing:
    raise InputError(
      f"{directory}: {len(missing)} of {parts} shards are missing (first: {missing[0]}); copy the"
      " log again"
    )
  if len(names) != parts:
    raise InputError(
      f"{directory}: shards of several logs lie together (such as"
      f" {min(set(names) - expected, default=min(names))}); keep one log in a directory"
    )


def _described_rows(description: pathlib.Path) -> int | None:
  if not description.exists():
    return None
  try:
    return int(json.loads(description.read_text(encoding="utf-8"))["rows"])
  except (ValueError, KeyError, TypeError):
    raise InputError(f"{description}: not the description of a log; write the log again") from None
