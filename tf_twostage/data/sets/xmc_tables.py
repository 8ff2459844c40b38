"""Documents and labels as the users and items that towers read."""

from __future__ import annotations

import numpy as np

from tf_twostage.data.schema import FeatureTable, Id, Schema, SparseVector
from tf_twostage.data.sets.xmc_data import XmcData


def document_tables(data: XmcData, max_features: int) -> tuple[Schema, FeatureTable, FeatureTable]:
  """Makes documents users with a sparse vector of words, and labels items with nothing but an id.

  A document's id names it in a log and is not embedded: documents to come are other ones.

  Args:
    data: D documents, with N labels to choose from.
    max_features: of a document with more features, these many with the largest values are kept.

  Returns:
    The schema, the documents [D] and the labels [N].
  """
  words, values = padded_rows(
    data.feature_splits, data.feature_ids, data.feature_values, max_features
  )
  schema = Schema(
    user=(
      Id("document", _names(data.num_documents), embedded=False),
      SparseVector("words", data.num_features, words.shape[1]),
    ),
    item=(Id("label", _names(data.num_labels)),),
  )
  documents = {
    "document": np.array(schema.user_id.vocabulary),
    "words_ids": words,
    "words_weights": values,
  }
  return schema, documents, {"label": np.array(schema.item_id.vocabulary)}


def padded_rows(
  splits: np.ndarray, ids: np.ndarray, values: np.ndarray, max_width: int
) -> tuple[np.ndarray, np.ndarray]:
  """Lays compressed rows side by side.

  Args:
    splits: where rows begin and end, [R + 1] int64.
    ids: the ids of all rows, [V] int32.
    values: their values, [V] float32.
    max_width: of longer rows, the entries with the largest absolute values are kept, largest
      first; at least 1.

  Returns:
    Ids [R, W] int64, padded with -1, and values [R, W] float32, padded with 0; W is the length of
    the longest row, at least 1 and at most `max_width`.
  """
  lengths = np.diff(splits)
  width = min(max_width, max(1, lengths.max(initial=1)))
  row = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
  place = (np.arange(len(ids)) - np.repeat(splits[:-1], lengths)).astype(np.int32)
  cut = np.flatnonzero(lengths[row] > width)
  if cut.size:  # sorted within their rows; a row's entries stay where the row is
    order = cut[np.lexsort((-np.abs(values[cut]), row[cut]))]
    ids, values = ids.copy(), values.copy()
    ids[cut], values[cut] = ids[order], values[order]
  kept = place < width
  row, place = row[kept], place[kept]
  padded_ids = np.full((len(lengths), width), -1, np.int64)
  padded_values = np.zeros((len(lengths), width), np.float32)
  padded_ids[row, place] = ids[kept]
  padded_values[row, place] = values[kept]
  return padded_ids, padded_values


def _names(count: int) -> tuple[str, ...]:
  return tuple(map(str, range(count)))
