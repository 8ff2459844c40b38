"""Files of ratings: MovieLens's layouts, RecBole's atomic files, and tables of one's own.

References: Harper, Konstan. The MovieLens Datasets: History and Context. ACM TiiS 5(4), 2015.
Zhao et al. RecBole: Towards a Unified, Comprehensive and Efficient Framework for Recommendation
Algorithms. CIKM 2021.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml
from pyarrow import csv

from tf_twostage.data import draft
from tf_twostage.data.files.bad_rows import Broken, Chunk
from tf_twostage.data.files.locate import Format, LogFiles, locate
from tf_twostage.data.log_schema import SIDES, FeatureColumn, LogSchema
from tf_twostage.errors import InputError

_log = logging.getLogger(__name__)

# "::" is two characters, and CSV readers split at one. This control character occurs in no text.
_DELIMITER = "\x1f"
YEAR = r"\((\d{4})\)\s*$"
AGES = {1: "Under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56+"}
_OCCUPATION = (
  "other/not specified|academic/educator|artist|clerical/admin|college/grad student|"
  "customer service|doctor/health care|executive/managerial|farmer|homemaker|K-12 student|lawyer|"
  "programmer|retired|sales/marketing|scientist|self-employed|technician/engineer|"
  "tradesman/craftsman|unemployed|writer"
)
OCCUPATIONS = tuple(_OCCUPATION.split("|"))
_GENRE = (
  "Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|"
  "Musical|Mystery|Romance|Sci-Fi|Thriller|War|Western"
)
GENRES = tuple(_GENRE.split("|"))

# Rows of text columns by name; the index is the line.
Derive = Callable[[pd.DataFrame], pd.DataFrame]


class RatingsFiles(NamedTuple):
  """The files of a data set of ratings, and the roles of their columns.

  `schema.reward` is the column of ratings; None: every row is an order.
  """

  ratings: LogFiles
  items: LogFiles | None
  users: LogFiles | None
  schema: LogSchema


class Table(NamedTuple):
  """A file of a layout: how it is split, if it has no header, and what is made of its rows."""

  file: str
  columns: str = ""
  separator: str = ""
  encoding: str = "utf8"
  derive: Derive | None = None

  def locate(self, directory: pathlib.Path) -> LogFiles:
    """The file in a directory, or in what looks like one."""
    path = directory / self.file
    read = (
      Format(lambda _: self.columns.split(), self._read) if self.columns else locate(path).format
    )
    return LogFiles(str(path), (path,), _derived(read, self.derive) if self.derive else read)

  def _read(self, path: pathlib.Path, columns: Sequence[str]) -> Iterator[Chunk]:
    table, broken = parse(
      path.read_bytes(),
      self.columns.split(),
      self.separator,
      self.encoding,
      str(path),
      "unpack it again",
    )
    rows = np.delete(np.arange(len(table) + len(broken)), [row.row for row in broken])
    yield Chunk(path, table.select([*columns]), rows, broken, lambda row: row + 1)


def parse(
  data: bytes, columns: Sequence[str], separator: str, encoding: str, place: str, remedy: str
) -> tuple[pa.Table, list[Broken]]:
  """Splits lines without a header or quotes: bytes of UTF-8 by column, and lines of other lengths.

  Raises:
    InputError: there are no lines, or the last is cut off.
  """
  if not data.strip():
    raise InputError(f"{place}: the file is empty; {remedy}")
  if not data.endswith(b"\n"):
    last = data.count(b"\n") + 1
    raise InputError(f"{place}: cut off in line {last}, which has no newline; {remedy}")
  rule = f"every line needs {len(columns)} fields separated by {separator!r}"
  broken: list[Broken] = []

  def skip(row: csv.InvalidRow) -> str:
    broken.append(Broken(row.number - 1, None, rule, f"{row.actual_columns} fields"))
    return "skip"

  delimiter = separator if len(separator) == 1 else _DELIMITER
  table = csv.read_csv(
    pa.BufferReader(data.replace(separator.encode(), delimiter.encode())),
    # Rows are numbered only without threads.
    csv.ReadOptions(use_threads=False, column_names=[*columns], encoding=encoding),
    csv.ParseOptions(
      delimiter=delimiter, quote_char=False, ignore_empty_lines=False, invalid_row_handler=skip
    ),
    csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.binary())),
  )
  return table, broken


class Layout(NamedTuple):
  """A layout of MovieLens."""

  name: str
  ratings: Table
  items: Table
  users: Table | None
  schema: LogSchema

  def fits(self, directory: pathlib.Path) -> bool:
    """Whether the directory holds these files, and a header names these columns."""
    if not all((directory / file).exists() for file in self.names()):
      return False
    if self.ratings.columns:
      return True
    files = self.ratings.locate(directory)
    return {self.schema.user_id, self.schema.item_id} <= {*files.format.column_names(*files.paths)}

  def names(self) -> list[str]:
    """The names of its files."""
    return [t.file for t in (self.ratings, self.items, self.users) if t is not None]

  def files(self, directory: pathlib.Path) -> RatingsFiles:
    users = None if self.users is None else self.users.locate(directory)
    return RatingsFiles(
      self.ratings.locate(directory), self.items.locate(directory), users, self.schema
    )


def _derived(source: Format, derive: Derive) -> Format:
  """A format whose columns are made of those in the file."""

  def made(table: pa.Table, rows: np.ndarray) -> pd.DataFrame:
    texts = {
      name: [(cell or b"").decode("utf-8", "replace") for cell in column.to_pylist()]
      for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return derive(pd.DataFrame(texts, index=rows, dtype=str))

  def column_names(path: pathlib.Path) -> list[str]:
    names = source.column_names(path)
    empty = pa.table({name: pa.array([], pa.binary()) for name in names})
    return [*made(empty, np.arange(0))]

  def read(path: pathlib.Path, columns: Sequence[str]) -> Iterator[Chunk]:
    for chunk in source.read(path, source.column_names(path)):
      frame = made(chunk.table, chunk.rows)[[*columns]]
      table = pa.Table.from_pandas(frame, preserve_index=False)
      yield dataclasses.replace(chunk, table=table)

  return Format(column_names, read)


def _movies(frame: pd.DataFrame) -> pd.DataFrame:
  """Adds the year, which titles end in."""
  title = frame["title"]
  genres = frame["genres"].replace("(no genres listed)", "")
  return frame.assign(year=title.str.extract(YEAR, expand=False).fillna(""), genres=genres)


def _movies_100k(frame: pd.DataFrame) -> pd.DataFrame:
  """Joins the genres that have a flag of 1."""
  flags = (frame[[*GENRES]] == "1").to_numpy()
  genres = ["|".join(np.array(GENRES)[row]) for row in flags]
  return _movies(frame[["item_id", "title"]].assign(genres=genres))


def _users_1m(frame: pd.DataFrame) -> pd.DataFrame:
  """Writes out codes; one without a label stays as it is."""
  ages = {str(code): label for code, label in AGES.items()}
  names = {str(code): name for code, name in enumerate(OCCUPATIONS)}
  return frame.assign(
    age=[ages.get(code, code) for code in frame["age"]],
    occupation=[names.get(code, code) for code in frame["occupation"]],
  )


def _schema(user_id: str = "user_id", item_id: str = "item_id", age: str = "") -> LogSchema:
  features = {"gender": "categorical", "age": age, "occupation": "categorical"}
  features["zip_code"] = "categorical"
  return LogSchema(
    user_id=user_id,
    item_id=item_id,
    propensity=None,
    reward="rating",
    position=None,
    time="timestamp",
    title="title",
    user_features=tuple(FeatureColumn(n, kind) for n, kind in features.items() if age),
    item_features=(FeatureColumn("year", "categorical"), FeatureColumn("genres", "bag")),
  )


_RATING = "user_id item_id rating timestamp"
_MOVIE = "item_id title genres"
ML_1M = Layout(
  "MovieLens 1M",
  Table("ratings.dat", _RATING, "::"),
  Table("movies.dat", _MOVIE, "::", "latin-1", _movies),
  Table("users.dat", "user_id gender age occupation zip_code", "::", "latin-1", _users_1m),
  _schema(age="categorical"),
)
# The first that fits counts: that of 10M has files of 1M.
_LAYOUTS = (
  Layout(
    "MovieLens 100K",
    Table("u.data", _RATING, "\t"),
    Table(
      "u.item",
      f"item_id title released on_video url unknown {' '.join(GENRES)}",
      "|",
      "latin-1",
      _movies_100k,
    ),
    Table("u.user", "user_id age gender occupation zip_code", "|", "latin-1"),
    _schema(age="numeric"),
  ),
  ML_1M,
  Layout(
    "MovieLens 10M",
    Table("ratings.dat", _RATING, "::"),
    Table("movies.dat", _MOVIE, "::", derive=_movies),
    None,
    _schema(),
  ),
  Layout(
    "MovieLens 20M to 32M",
    Table("ratings.csv"),
    Table("movies.csv", derive=_movies),
    None,
    _schema("userId", "movieId"),
  ),
)
_OWN = ("ratings", "orders")
_ROLES = ("user_id", "item_id", "user_key", "item_key", "reward", "time", "title", *SIDES[:2])


def find(directory: pathlib.Path, schema: LogSchema | None = None) -> RatingsFiles:
  """The files of ratings or orders in a directory, with users and items beside them.

  Args:
    directory: holds files of MovieLens as they are; or NAME.inter, NAME.item and NAME.user of
      RecBole; or ratings (or orders), items and users as .csv, .tsv or .parquet.
    schema: names the columns, `reward` that of the ratings; None: it is that of the layout, or
      drafted from names and values.

  Raises:
    InputError: there are no ratings, several files could be meant, or columns are not recognised.
  """
  if not directory.is_dir():
    raise InputError(
      f"{directory}: no such directory; set data_dir to one that holds files of ratings, unpacked"
    )
  for layout in _LAYOUTS:
    if layout.fits(directory):
      _log.info("%s: the files of %s", directory, layout.name)
      files = layout.files(directory)
      return files if schema is None else files._replace(schema=schema)
  names = sorted(path.name for path in directory.iterdir() if path.is_file())
  found = [name for name in names if name.endswith(".inter") or name.split(".")[0] in _OWN]
  if found in ([], [ML_1M.ratings.file]) and (lacking := _lacking(names)):
    raise InputError(f"{directory}: {lacking}; unpack the files again")
  if len(found) != 1:
    raise InputError(
      f"{directory}: {'several files: ' + ', '.join(found) if found else 'no ratings'}; it should"
      " hold the files of MovieLens as they are, one RecBole file NAME.inter, or one file ratings"
      " or orders, as .csv, .tsv or .parquet; or name the files in the settings log, items, users"
    )
  (ratings,) = found
  atomic = ratings.removesuffix("inter") if ratings.endswith(".inter") else ""

  def beside(side: str) -> pathlib.Path | None:
    start = atomic + side if atomic else f"{side}s."
    return next((directory / name for name in names if name.startswith(start)), None)

  orders = bool(atomic) or ratings.startswith("orders")
  return named(directory / ratings, beside("item"), beside("user"), schema, orders=orders)


def _lacking(names: Sequence[str]) -> str:
  """The layout that most of the files have, and what is missing of it; "" if they have none."""
  options = [(layout.name, layout.names()) for layout in _LAYOUTS]
  for atomic in [name for name in names if name.endswith((".item", ".user"))]:
    options.append(("RecBole", [f"{atomic.rpartition('.')[0]}.inter", atomic]))
  layout, files = max(options, key=lambda o: (len({*o[1]} & {*names}), -len(o[1])))
  there, missing = ([f for f in files if (f in names) == is_there] for is_there in (True, False))
  if not there:
    return ""
  return f"{', '.join(missing)} of {layout} is missing beside {', '.join(there)}"


def named(
  ratings: pathlib.Path | str,
  items: pathlib.Path | str | None,
  users: pathlib.Path | str | None,
  schema: LogSchema | None = None,
  *,
  orders: bool = False,
) -> RatingsFiles:
  """Files of ratings or orders.

  Args:
    ratings, items, users: the files.
    schema: see `find`.
    orders: whether a file without a column of ratings is one of orders; else it is refused.
  """
  schema = schema or _drafted(ratings, items, users, orders)
  of_items, of_users = (None if path is None else locate(path) for path in (items, users))
  return RatingsFiles(locate(ratings), of_items, of_users, schema)


def _drafted(
  ratings: pathlib.Path | str,
  items: pathlib.Path | str | None,
  users: pathlib.Path | str | None,
  orders: bool,
) -> LogSchema:
  content = yaml.safe_load(draft.draft(ratings, items, users))
  kept = {role: content[role] for role in _ROLES if content.get(role)}
  files = locate(ratings)
  names = files.format.column_names(files.paths[0])
  if "reward" not in kept:  # rewards are at least 0, and ratings need not be
    found = [name for name in names if name.split(":")[0].lower() == "rating"]
    kept |= {"reward": found[0]} if found else {}
  needed = ("user_id", "item_id") if orders else ("user_id", "item_id", "reward")
  missing = [role for role in needed if role not in kept]
  if missing:
    raise InputError(
      f"{ratings}: no column of {', '.join(map(repr, names[:20]))} looks like"
      f" {' or '.join(missing)}; write a schema with a line `{missing[0]}: COLUMN` (`reward: null`"
      " if rows are orders) and give it in the setting schema"
    )
  roles = ", ".join(f"{role} {column!r}" for role, column in kept.items() if role not in SIDES)
  _log.info("%s: recognised %s", ratings, roles)
  return LogSchema.from_dict({"reward": None, **kept, "propensity": None, "position": None})
