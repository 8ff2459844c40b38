"""Arrays of .npz files, read with checks."""

from __future__ import annotations

import pathlib
import zipfile
import zlib

import numpy as np

from tf_twostage.errors import InputError, require


def read_array(
  path: pathlib.Path, name: str, shape: tuple[int | None, ...], dtype: type
) -> np.ndarray:
  """Reads an array of an .npz, with finite values and the given shape (None: any size).

  Raises:
    InputError: the file is damaged or has no such array, or the array has another shape or kind.
  """
  try:
    if not zipfile.is_zipfile(path):  # NumPy would also read a single array
      raise zipfile.BadZipFile("File is not a zip file")
    with np.load(path) as stored:
      found, array = sorted(stored), stored.get(name)
  except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
    raise InputError(f"{path}: not a readable .npz ({error}); copy the file again") from error
  if array is None:
    raise InputError(f"{path}: no array {name!r}, found {found}; make the file again")
  sizes = zip(shape, array.shape, strict=False)
  if len(shape) != array.ndim or any(want not in (None, size) for want, size in sizes):
    raise InputError(
      f"{path}: {name} has shape {array.shape}, expected {shape}; it belongs to another data set"
      " than the one that is loaded"
    )
  if not np.can_cast(array.dtype, dtype, "same_kind"):
    raise InputError(
      f"{path}: {name} is {array.dtype}, expected {np.dtype(dtype)}; make the file again"
    )
  with np.errstate(over="ignore"):  # the next check refuses values beyond the type
    array = array.astype(dtype)
  finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
  require(finite, f"{path}: {name}", "must be finite", "make the file again")
  return array
