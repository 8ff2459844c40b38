"""A policy given as a file of probabilities, as an evaluation log sees it."""

from __future__ import annotations

import pathlib

import numpy as np

from tf_twostage.data import policy_table
from tf_twostage.errors import InputError, reason
from tf_twostage.evaluation.evaluation_log import EvaluationLog
from tf_twostage.evaluation.rows import check_distribution
from tf_twostage.evaluation.values import TargetPolicy

KIND = "given in a file"
_ARRAYS = (".npy", ".npz")


def read(path: pathlib.Path, evaluation: EvaluationLog, item_ids: np.ndarray) -> TargetPolicy:
  """The policy of a file, under the file's name.

  Args:
    path: CSV or Parquet as `policy_table.read` takes it, for a policy that does not look at the
      user. Or .npy, or .npz with one array: [n, N], a distribution for each row of the evaluation
      log, in its order, over the items of the catalogue, in its order.
    evaluation: the log.
    item_ids: [N] raw ids of the catalogue.
  """
  if path.suffix in _ARRAYS:
    table = _array(path, (len(evaluation), len(item_ids)))
    return TargetPolicy(path.name, KIND, lambda rows: np.asarray(table[rows]), by_row=True)
  listed = policy_table.read(path, item_ids)
  by_position = listed.positions is not None
  try:
    place = listed.rows(evaluation.rows.position if by_position else np.zeros(len(evaluation)))
  except InputError as error:
    raise InputError(f"{path}: {error}") from error
  return TargetPolicy(
    path.name, KIND, lambda rows: listed.probabilities[place[rows]], by_row=by_position
  )


def _array(path: pathlib.Path, shape: tuple[int, int]) -> np.ndarray:
  """[n, N] of distributions; an .npy stays on disk."""
  try:
    loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(loaded, np.ndarray):
      with loaded:
        names = sorted(loaded)
        if len(names) != 1:
          raise InputError(f"{path}: holds the arrays {names}; keep one, the probabilities [n, N]")
        loaded = loaded[names[0]]
  except InputError:
    raise
  except Exception as error:  # a damaged header fails as Python text, or asks for endless memory
    raise InputError(f"{path}: not a readable array ({reason(error)}); write it again") from error
  if loaded.dtype.kind != "f" or loaded.shape != shape:
    raise InputError(
      f"{path}: holds {loaded.dtype} of shape {loaded.shape}, expected floats of shape {shape}: a"
      " probability for each row of the evaluation log and each item of the catalogue"
    )
  if loaded.itemsize < 4:
    raise InputError(
      f"{path}: {loaded.dtype} holds three digits of a probability; write float32, normalised again"
    )
  check_distribution(str(path), loaded)
  return loaded
