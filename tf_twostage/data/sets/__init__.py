"""Data sets by name.

To add one, write a loader that returns `RatingsData` (or `XmcData`) and enter it in `DATASETS`.
Code outside the package may do the same with `DATASETS["name"] = loader`, or hand its data to
`tf_twostage.environment.make` without a name.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable

from tf_twostage.config import RATINGS
from tf_twostage.data.sets import layouts
from tf_twostage.data.sets.jester import load_jester
from tf_twostage.data.sets.movielens import load_movielens_1m
from tf_twostage.data.sets.ratings import RatingsData
from tf_twostage.data.sets.slates_synthetic import SlateWorld, make_slates
from tf_twostage.data.sets.synthetic import make_synthetic
from tf_twostage.data.sets.xmc import XmcData, load_xmc
from tf_twostage.data.sets.xmc_synthetic import make_xmc
from tf_twostage.errors import InputError

__all__ = [
  "DATASETS",
  "RatingsData",
  "SlateWorld",
  "XmcData",
  "load",
  "load_jester",
  "load_movielens_1m",
  "load_ratings",
  "load_xmc",
  "make_slates",
  "make_synthetic",
  "make_xmc",
]

Data = RatingsData | XmcData


def load_ratings(data_dir: str | None) -> RatingsData:
  """Reads the ratings in a directory; see `layouts.find`."""
  if data_dir is None:
    raise InputError(
      f"data set {RATINGS!r} reads files: set data_dir to their directory, or name them in the"
      " settings log, items and users"
    )
  return RatingsData.from_files(layouts.find(pathlib.Path(data_dir).expanduser()))


def _invented(name: str, make: Callable[[], Data]) -> Callable[[str | None], Data]:
  def load(data_dir: str | None) -> Data:
    if data_dir is not None:
      raise InputError(f"data set {name!r} reads no files; leave data_dir={data_dir} out")
    return make()

  return load


# A loader takes the directory of the files, or None.
DATASETS: dict[str, Callable[[str | None], Data]] = {
  "delicious": functools.partial(load_xmc, "delicious"),
  "jester": load_jester,
  "movielens_1m": load_movielens_1m,
  RATINGS: load_ratings,
  "synthetic": _invented("synthetic", make_synthetic),
  "wiki10": functools.partial(load_xmc, "wiki10"),
  "wiki10_shape": _invented("wiki10_shape", make_xmc),  # as large as Wiki10-31K
}


def load(name: str, data_dir: str | None = None) -> Data:
  """Loads a data set of `DATASETS`; `data_dir` holds its files, if it is read from files."""
  if name not in DATASETS:
    raise InputError(f"unknown data set {name!r}; choose one of {', '.join(sorted(DATASETS))}")
  return DATASETS[name](data_dir)
