"""Ratings in the layouts of MovieLens and RecBole, and as tables of one's own."""

import functools
import pathlib

import pandas as pd

from tests.data.sets import mini_movielens as mini
from tf_twostage.data.sets import layouts

# Fields by line of users.dat, movies.dat and ratings.dat.
Rows = tuple[list[list[str]], list[list[str]], list[list[str]]]


def rows_of(directory: pathlib.Path | None = None) -> Rows:
  """The lines of MovieLens-1M's files in a directory; None: those of the small one."""
  users, movies, ratings = (
    (mini.FILES[name] if directory is None else (directory / name).read_bytes())
    .decode("latin-1")
    .splitlines()
    for name in ("users.dat", "movies.dat", "ratings.dat")
  )
  split = [[line.split("::") for line in lines] for lines in (users, movies, ratings)]
  return split[0], split[1], split[2]


@functools.cache
def small() -> Rows:
  return rows_of()


def _write(path: pathlib.Path, rows, separator: str, encoding: str = "utf8") -> None:
  path.write_text("".join(separator.join(row) + "\n" for row in rows), encoding=encoding)


def ml_100k(directory: pathlib.Path, rows: Rows) -> None:
  users, movies, ratings = rows
  _write(directory / "u.data", ratings, "\t")
  people = [(user, "33", sex, "writer", code) for user, sex, _, _, code in users]
  _write(directory / "u.user", people, "|")
  flags = ["unknown", *layouts.GENRES]
  items = [
    (movie, title, "01-Jan-1995", "", "", *(str(int(g in genres.split("|"))) for g in flags))
    for movie, title, genres in movies
  ]
  _write(directory / "u.item", items, "|", "latin-1")


def ml_1m(directory: pathlib.Path, rows: Rows) -> None:
  for name, lines in zip(("users", "movies", "ratings"), rows, strict=True):
    _write(directory / f"{name}.dat", lines, "::", "latin-1")


def ml_10m(directory: pathlib.Path, rows: Rows) -> None:
  _, movies, ratings = rows
  _write(directory / "ratings.dat", ratings, "::")
  _write(directory / "movies.dat", movies, "::")


def ml_25m(directory: pathlib.Path, rows: Rows) -> None:
  _, movies, ratings = rows
  columns = ["userId", "movieId", "rating", "timestamp"]
  pd.DataFrame(ratings, columns=columns).to_csv(directory / "ratings.csv", index=False)
  columns = ["movieId", "title", "genres"]
  pd.DataFrame(movies, columns=columns).to_csv(directory / "movies.csv", index=False)


def recbole(directory: pathlib.Path, rows: Rows) -> None:
  users, movies, ratings = rows
  for side, columns, lines in (
    ("inter", "user_id:token item_id:token rating:float timestamp:float", ratings),
    (
      "item",
      "item_id:token movie_title:token_seq class:token_seq",
      [(movie, title, genres.replace("|", " ")) for movie, title, genres in movies],
    ),
    ("user", "user_id:token gender:token", [user[:2] for user in users]),
  ):
    _write(directory / f"ml.{side}", [columns.split(), *lines], "\t")


def own(directory: pathlib.Path, rows: Rows) -> None:
  _, movies, ratings = rows
  frame = pd.DataFrame(ratings, columns=["customer_id", "product_id", "rating", "timestamp"])
  frame.astype({"timestamp": int}).to_parquet(directory / "ratings.parquet")
  products = pd.DataFrame(movies, columns=["product_id", "title", "genres"])
  products.to_csv(directory / "items.csv", index=False)
