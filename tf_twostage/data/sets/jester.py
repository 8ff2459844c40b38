"""Jester: jokes rated by people, some of whom rated all of them.

Ten jokes, the gauge set, are shown to everybody first. Their ratings are what is known of a person,
and the other jokes are recommended.

References: Goldberg, Roeder, Gupta, Perkins. Eigentaste: A Constant Time Collaborative Filtering
Algorithm. Information Retrieval 4(2), 2001. doi:10.1023/A:1011419012209
"""

from __future__ import annotations

import pathlib

import numpy as np

from tf_twostage.data.npz import read_array
from tf_twostage.data.schema import Id, Numeric, Schema
from tf_twostage.data.sets.ratings import RatingsData
from tf_twostage.errors import InputError, require

_JOKES, _LARGEST = 100, 10.0
_GAUGE = np.array([5, 7, 8, 13, 15, 16, 17, 18, 19, 20])  # counted from 1, as in the paper
_FULL, _OTHER = "full_ratings.npz", "other_ratings.npz"
_REMEDY = (
  f"data_dir holds {_FULL} (`ratings`, a row of {_JOKES} for each person who rated all jokes) and"
  f" {_OTHER} (`user`, `item` and `rating` of other people)"
)


def load_jester(data_dir: str | None = None) -> RatingsData:
  """Loads the files of a directory; users are people, those who rated every joke last.

  Features of a person are the ratings of the gauge set, 0 where there is none; they are neither
  items nor rows. A person's id is not embedded, since other people fit the ranker. Items are the
  90 other jokes, named by their numbers from 1.

  Raises:
    InputError: a file is missing, damaged, or not what it should be.
  """
  if data_dir is None:
    raise InputError(f"data set 'jester' is read from files, and data_dir is not set; {_REMEDY}")
  folder = pathlib.Path(data_dir).expanduser()
  missing = [name for name in (_FULL, _OTHER) if not (folder / name).is_file()]
  if missing:
    raise InputError(f"{folder}: missing {', '.join(missing)}; {_REMEDY}")
  full = read_array(folder / _FULL, "ratings", (None, _JOKES), np.float32)
  others, person, joke, rating = _others(folder / _OTHER)
  for path, values in ((_FULL, full.ravel()), (_OTHER, rating)):
    rule = f"must be in [-{_LARGEST:g}, {_LARGEST:g}]"
    require(np.abs(values) <= _LARGEST, f"{folder / path}: ratings", rule, _REMEDY, values)

  ratings = np.full((len(others) + len(full), _JOKES), np.nan, np.float32)
  ratings[person, joke] = rating
  ratings[len(others) :] = full
  gauge = np.nan_to_num(ratings[:, _GAUGE - 1].astype(np.float64))
  jokes = np.setdiff1d(np.arange(1, _JOKES + 1), _GAUGE).astype(str)
  ratings = np.delete(ratings, _GAUGE - 1, axis=1)
  rows, items = np.nonzero(~np.isnan(ratings))
  people = [f"other_{number}" for number in others] + [f"full_{row}" for row in range(len(full))]
  names = [f"joke_{number}" for number in _GAUGE]
  return RatingsData(
    name="jester",
    schema=Schema(
      user=(
        Id("person", tuple(people), embedded=False),
        *(Numeric(name, scale=_LARGEST) for name in names),
      ),
      item=(Id("joke", tuple(jokes.tolist())),),
    ),
    users={"person": np.array(people), **dict(zip(names, gauge.T, strict=True))},
    items={"joke": jokes},
    titles=np.char.add("Joke ", jokes),
    user_index=rows.astype(np.int32),
    item_index=items.astype(np.int32),
    rating=ratings[rows, items],
    context={},
    complete_users=len(full),
  )


def _others(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """The people [P] of a file, and of each rating its row in them, the joke from 0 and the value."""
  user, joke = (read_array(path, name, (None,), np.int64) for name in ("user", "item"))
  rating = read_array(path, "rating", (None,), np.float32)
  if not len(user) == len(joke) == len(rating):
    raise InputError(
      f"{path}: user, item and rating have {len(user)}, {len(joke)} and {len(rating)} values; they"
      f" must be one of each for a rating; {_REMEDY}"
    )
  inside = (joke >= 0) & (joke < _JOKES)
  require(inside, f"{path}: item", f"must be in [0, {_JOKES})", _REMEDY, joke)
  people, person = np.unique(user, return_inverse=True)
  pairs = person * _JOKES + joke
  first = np.zeros(len(pairs), bool)
  first[np.unique(pairs, return_index=True)[1]] = True
  require(first, f"{path}: item", "must be rated once by a person", _REMEDY, joke)
  return people, person, joke, rating
