"""The kind of feature that a column looks like: one rule for DataFrames and drafts of schemas."""

from __future__ import annotations

import numpy as np
import pandas as pd

FEW = 20  # values of a code; a text column with more rows, all different, identifies its row


def infer(values: pd.Series) -> tuple[str, str]:
  """Kind and, of a bag of text, separator; "" for dates and for text that never repeats.

  Whole numbers with at most `FEW` values that recur are categorical, as codes are; other numbers
  are numeric. Lists are bags, or embeddings if they hold floats and have one length. Text is a bag
  where "|" or ";" separates values, or "," separates values that recur:
  those of prose do not.
  """
  cells = values.dropna()
  if pd.api.types.is_datetime64_any_dtype(values.dtype) or not len(cells):
    return "", ""
  if pd.api.types.is_bool_dtype(values.dtype):
    return "categorical", ""
  if pd.api.types.is_numeric_dtype(values.dtype):
    is_code = not (cells % 1).any() and cells.nunique() <= min(FEW, len(cells) // 2)
    return "categorical" if is_code else "numeric", ""
  if holds_lists(values):
    return "embedding" if _holds_vectors(cells) else "bag", ""
  text = cells.astype(str)
  if not isinstance(values.dtype, pd.CategoricalDtype) and (separator := separates(text)):
    return "bag", separator
  return "" if len(text) > FEW and text.is_unique else "categorical", ""


def separates(text: pd.Series) -> str:
  """The character that separates the values of bags in these cells, or ""."""
  for separator in "|;,":
    if text.str.contains(separator, regex=False).mean() > 0.2:
      parts = text.str.split(separator, regex=False).explode().str.strip()
      if separator != "," or parts.nunique() <= len(parts) / 4:
        return separator
  return ""


def _holds_vectors(cells: pd.Series) -> bool:
  floats = np.asarray(cells.iloc[0]).dtype.kind == "f"
  return floats and len(cells.iloc[0]) > 1 and cells.map(len).nunique() == 1


def holds_lists(values: pd.Series) -> bool:
  """Whether cells are lists or arrays."""
  first = next((v for v in values if not (np.ndim(v) == 0 and pd.isna(v))), None)
  return isinstance(first, list | tuple | np.ndarray)
