"""Strings -> numbers, for a vocabulary that is known or grows with the log."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class Vocabulary:
  """Distinct strings in the order in which they came."""

  def __init__(self):
    self._codes: dict[str, int] = {}

  def __len__(self) -> int:
    return len(self._codes)

  @property
  def values(self) -> list[str]:
    return list(self._codes)

  def encode(self, column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Codes of the strings, [k] int32; strings that are new get the next ones."""
    encoded = pc.dictionary_encode(column)
    if isinstance(encoded, pa.ChunkedArray):
      encoded = encoded.combine_chunks()
    codes = self._codes
    known = [codes.setdefault(value, len(codes)) for value in encoded.dictionary.to_pylist()]
    return np.array(known, np.int32)[encoded.indices.to_numpy()]


def natural_order(values: Sequence[str]) -> np.ndarray:
  """Indices that sort strings: as numbers if all are whole numbers, otherwise as text."""
  if all(value.isdecimal() and value.isascii() and len(value) < 19 for value in values):
    return np.lexsort((np.array(values, dtype=str), np.array(values, dtype=np.int64)))
  return np.array(sorted(range(len(values)), key=values.__getitem__))
