"""MovieLens-1M as GroupLens publishes it: a directory or a zip of three text files."""

from __future__ import annotations

import pathlib
import zipfile
import zlib
from typing import NamedTuple

from tf_twostage.data.sets.raw_table import RawTable, parse
from tf_twostage.errors import InputError

ARCHIVE = "ml-1m.zip"
ARCHIVE_URL = f"https://files.grouplens.org/datasets/movielens/{ARCHIVE}"
DOWNLOAD = f"download {ARCHIVE} from {ARCHIVE_URL} and pass --data_dir=DIR, where DIR holds it"
_FRESH = f"use the files of {ARCHIVE_URL} as they are"

COLUMNS: dict[str, dict[str, type]] = {
  "users.dat": {"user_id": int, "gender": str, "age": int, "occupation": int, "zip_code": str},
  "movies.dat": {"movie_id": int, "title": str, "genres": str},
  "ratings.dat": {"user_id": int, "movie_id": int, "rating": int, "timestamp": int},
}

AGES = {
  1: "Under 18",
  18: "18-24",
  25: "25-34",
  35: "35-44",
  45: "45-49",
  50: "50-55",
  56: "56+",
}
OCCUPATIONS = (
  "other/not specified",
  "academic/educator",
  "artist",
  "clerical/admin",
  "college/grad student",
  "customer service",
  "doctor/health care",
  "executive/managerial",
  "farmer",
  "homemaker",
  "K-12 student",
  "lawyer",
  "programmer",
  "retired",
  "sales/marketing",
  "scientist",
  "self-employed",
  "technician/engineer",
  "tradesman/craftsman",
  "unemployed",
  "writer",
)
_OCCUPATION_CODES = dict(enumerate(OCCUPATIONS))


class Tables(NamedTuple):
  """The three tables, whichever source they come from.

  Attributes:
    users: int `user_id`, str `gender` ("F"/"M"), `age` (one of `AGES`'s labels), `occupation`
      (one of `OCCUPATIONS`), `zip_code`.
    movies: int `movie_id`, str `title`, `genres` (separated by "|").
    ratings: numbers `user_id`, `movie_id`, `rating`, `timestamp` (seconds).
  """

  users: RawTable
  movies: RawTable
  ratings: RawTable


def read_tables(source: pathlib.Path) -> Tables:
  """Reads the three files and checks their form (not yet what the values mean).

  Args:
    source: a directory that holds the files, a subdirectory `ml-1m` with them, or `ml-1m.zip`;
      or the path of such a zip.

  Raises:
    InputError: a file is missing, damaged or malformed.
  """
  try:
    files = _read_source(source)
  except OSError as error:
    place = error.filename or source
    raise InputError(f"{place}: cannot be read ({error.strerror}); {DOWNLOAD}") from error
  tables = Tables(
    *(parse(data, COLUMNS[name], place, _FRESH) for name, (place, data) in files.items())
  )
  # A code without a label stays as it is, for the check of the values to name it.
  users = tables.users.frame
  users["age"] = [AGES.get(code, str(code)) for code in users["age"]]
  users["occupation"] = [_OCCUPATION_CODES.get(code, str(code)) for code in users["occupation"]]
  return tables


def _read_source(source: pathlib.Path) -> dict[str, tuple[str, bytes]]:
  """Returns where each file stands and what it holds, by name in the order of `COLUMNS`."""
  if source.is_dir():
    for folder in (source, source / "ml-1m"):
      if any((folder / name).exists() for name in COLUMNS):
        return _read_directory(folder)
    if not (source / ARCHIVE).exists():
      raise InputError(f"{source}: holds no {', '.join(COLUMNS)} and no {ARCHIVE}; {DOWNLOAD}")
    return _read_zip(source / ARCHIVE)
  if not source.exists():
    raise InputError(f"{source}: no such file or directory; {DOWNLOAD}")
  return _read_zip(source)


def _read_directory(folder: pathlib.Path) -> dict[str, tuple[str, bytes]]:
  _require_all({path.name for path in folder.iterdir()}, str(folder))
  return {name: (str(folder / name), (folder / name).read_bytes()) for name in COLUMNS}


def _read_zip(path: pathlib.Path) -> dict[str, tuple[str, bytes]]:
  try:
    with zipfile.ZipFile(path) as archive:
      members = set(archive.namelist())
      folder = "ml-1m/" if any(name.startswith("ml-1m/") for name in members) else ""
      _require_all({name.removeprefix(folder) for name in members}, str(path))
      return {name: (f"{path}/{folder}{name}", archive.read(folder + name)) for name in COLUMNS}
  # RuntimeError: an encrypted member; NotImplementedError, a kind of it: an exotic compression.
  except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
    raise InputError(f"{path}: not an intact zip file ({error}); {DOWNLOAD}") from error


def _require_all(found: set[str], place: str) -> None:
  missing = [name for name in COLUMNS if name not in found]
  if missing:
    raise InputError(f"{place}: missing {', '.join(missing)}; {DOWNLOAD}")
