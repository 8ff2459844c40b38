"""Which files a log consists of: one file, a directory, or all that match a pattern."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from tf_twostage.data.files import csv_format, parquet_format, tfrecord_format
from tf_twostage.data.files.bad_rows import Chunk
from tf_twostage.errors import InputError

DESCRIPTION = "log.json"
_NATIVE_SHARD = re.compile(r"log-\d{5}-of-\d{5}\.tfrecord(\.gz)?")
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<parts>\d{5})(?P<end>\.[a-z.]+)")


@dataclasses.dataclass(frozen=True)
class Format:
  """How files of a format are read; see the functions of `csv_format`."""

  column_names: Callable[[pathlib.Path], list[str]]
  read: Callable[[pathlib.Path, Sequence[str]], Iterator[Chunk]]


_CSV, _PARQUET, _TFRECORD = (
  Format(module.column_names, module.read)
  for module in (csv_format, parquet_format, tfrecord_format)
)
_FORMATS = {
  ".csv": _CSV,
  ".csv.gz": _CSV,
  ".tsv": _CSV,
  ".tsv.gz": _CSV,
  ".parquet": _PARQUET,
  ".tfrecord": _TFRECORD,
  ".tfrecord.gz": _TFRECORD,
}
# Read where they are named; in a directory they may be something else, such as a README.txt.
_NAMED = {end: _CSV for end in (".txt", ".txt.gz", ".inter", ".user", ".item")}
_SUFFIXES = ", ".join(_FORMATS)


@dataclasses.dataclass(frozen=True)
class LogFiles:
  """The files of a log, in order."""

  place: str  # what the user named, for messages
  paths: tuple[pathlib.Path, ...]
  format: Format  # how they are read
  expected_rows: int | None = None  # number of rows, if a description beside the files gives it

  def check_rows(self, rows: int) -> None:
    """Checks the number of rows: a shard that is cut between two records reads without error."""
    if self.expected_rows not in (None, rows):
      raise InputError(
        f"{self.place}: the shards hold {rows} rows, but {DESCRIPTION} says {self.expected_rows};"
        " some were cut or replaced: copy or write the log again"
      )


def locate(log: str | os.PathLike | LogFiles | Sequence[str | os.PathLike]) -> LogFiles:
  """Finds the files of a log: a file, a directory, a pattern such as "logs/*.csv", or several."""
  if isinstance(log, LogFiles):
    return log
  if not isinstance(log, str | os.PathLike):
    found = [locate(part) for part in log]
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
      f" {_SUFFIXES} files"
    )
  paths = tuple(map(pathlib.Path, names))
  return LogFiles(place, paths, _one_format(place, paths))


def _in_directory(directory: pathlib.Path) -> LogFiles:
  files = [path for path in sorted(directory.rglob("*")) if _is_data(path.relative_to(directory))]
  shards = tuple(path for path in files if _NATIVE_SHARD.fullmatch(path.name))
  # The other files of a native log hold the same rows as its shards.
  paths = shards or tuple(path for path in files if _ending(path, _FORMATS))
  if not paths:
    raise InputError(
      f"{directory}: no log in it, neither shards such as log-00000-of-00004.tfrecord nor"
      f" {_SUFFIXES} files"
    )
  _check_parts(directory, [path.name for path in paths])
  expected = _described_rows(directory / DESCRIPTION) if shards else None
  return LogFiles(str(directory), paths, _one_format(str(directory), paths), expected)


def _is_data(path: pathlib.Path) -> bool:
  return not any(part.startswith((".", "_")) for part in path.parts)  # such as Spark's _SUCCESS


def _ending(path: pathlib.Path, known: Iterable[str]) -> str:
  """The one of the known endings that a file has, or ""."""
  return next((end for end in known if path.name.lower().endswith(end)), "")


def _one_format(place: str, paths: Sequence[pathlib.Path]) -> Format:
  formats = _FORMATS | _NAMED
  kinds = {_ending(path, formats): path for path in reversed(paths)}
  if "" in kinds:
    raise InputError(f"{kinds['']}: no bandit log; give {_SUFFIXES} files or a directory of them")
  if len({formats[kind] for kind in kinds}) > 1:
    raise InputError(
      f"{place}: files of several formats lie together ({', '.join(sorted(kinds))}); choose one"
      f" with a pattern, such as {place}/*{min(kinds)}"
    )
  return formats[next(iter(kinds))]


def _check_parts(directory: pathlib.Path, names: Sequence[str]) -> None:
  """Raises InputError unless numbered files are all parts of one log."""
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
