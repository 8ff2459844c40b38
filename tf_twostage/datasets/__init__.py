"""Raw files -> arrays: every data set by name."""

from __future__ import annotations

from collections.abc import Callable

from tf_twostage.datasets.movielens import load_movielens_1m
from tf_twostage.datasets.ratings import RatingsData
from tf_twostage.datasets.synthetic import make_synthetic
from tf_twostage.errors import InputError

__all__ = ["DATASETS", "RatingsData", "load", "load_movielens_1m", "make_synthetic"]


def _synthetic(data_dir: str | None) -> RatingsData:
  if data_dir is not None:
    raise InputError(f"data set 'synthetic' reads no files; leave out --data_dir={data_dir}")
  return make_synthetic()


DATASETS: dict[str, Callable[[str | None], RatingsData]] = {
  "movielens_1m": load_movielens_1m,
  "synthetic": _synthetic,
}


def load(name: str, data_dir: str | None = None) -> RatingsData:
  """Loads a data set by its name.

  Args:
    name: a key of `DATASETS`.
    data_dir: where its files are; None lets the data set find or make them itself.

  Raises:
    InputError: there is no such data set, or its data are missing or wrong.
  """
  if name not in DATASETS:
    raise InputError(f"unknown data set {name!r}; choose one of {', '.join(sorted(DATASETS))}")
  return DATASETS[name](data_dir)
