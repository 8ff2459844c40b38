"""Documents with many labels each: the arrays that extreme multi-label data become."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from tf_twostage.errors import InputError, require

_ARRAYS = {
  "feature_splits": np.int64,
  "feature_ids": np.int32,
  "feature_values": np.float32,
  "label_splits": np.int64,
  "label_ids": np.int32,
}


@dataclasses.dataclass(frozen=True, eq=False)
class XmcData:
  """Documents (the users) with sparse features and complete labels (the items).

  Rows are compressed: document d has the features `feature_ids[feature_splits[d]:
  feature_splits[d + 1]]` with the values beside them, and its labels likewise. D documents,
  V feature values and L labels in all.

  Attributes:
    name: the data set's name.
    num_features: ids of features lie in [0, num_features).
    num_labels: ids of labels lie in [0, num_labels).
    num_train: the first so many documents are for training, the others for testing.
    feature_splits: where a document's features begin and end, [D + 1] int64.
    feature_ids: [V] int32; a feature that stands twice in a document counts twice.
    feature_values: [V] float32, finite.
    label_splits: where a document's labels begin and end, [D + 1] int64.
    label_ids: [L] int32, different within a document.

  Raises:
    InputError: a shape or type differs from the above, splits do not rise from 0 to the number of
      entries, an id is outside its range, a value is not finite, a label stands twice in a
      document, or there are fewer documents than `num_train`.
  """

  name: str
  num_features: int
  num_labels: int
  num_train: int
  feature_splits: np.ndarray
  feature_ids: np.ndarray
  feature_values: np.ndarray
  label_splits: np.ndarray
  label_ids: np.ndarray

  def __post_init__(self):
    for column, dtype in _ARRAYS.items():
      values = getattr(self, column)
      if values.ndim != 1 or values.dtype != dtype:
        raise InputError(
          f"{self.name}: {column} must be {np.dtype(dtype)} of rank 1, got"
          f" {values.dtype} {values.shape}"
        )
    if len(self.feature_values) != len(self.feature_ids):
      raise InputError(
        f"{self.name}: {len(self.feature_values)} feature values for {len(self.feature_ids)}"
        " feature ids; every id needs one value"
      )
    if len(self.feature_splits) != len(self.label_splits):
      raise InputError(
        f"{self.name}: {len(self.feature_splits)} feature splits and {len(self.label_splits)}"
        " label splits; both need one more than there are documents"
      )
    for side, limit in (("feature", self.num_features), ("label", self.num_labels)):
      splits, ids = getattr(self, f"{side}_splits"), getattr(self, f"{side}_ids")
      if not len(splits) or splits[0] or splits[-1] != len(ids) or np.any(np.diff(splits) < 0):
        raise InputError(
          f"{self.name}: {side}_splits must rise from 0 to the number of entries, {len(ids)}"
        )
      rule, remedy = f"must be in [0, {limit})", "drop them, or correct the size"
      inside = (ids >= 0) & (ids < limit)
      require(inside, f"{self.name}: {side}_ids", rule, remedy, ids, unit="id")
    finite, values = np.isfinite(self.feature_values), self.feature_values
    subject = f"{self.name}: feature_values"
    require(finite, subject, "must be finite", "drop them", values, unit="value")
    distinct = ~rows_with_repeats(self.label_splits, self.label_ids)
    rule, remedy = "must differ within a document", "keep one of each"
    require(distinct, f"{self.name}: labels", rule, remedy, unit="document")
    if not 0 <= self.num_train <= self.num_documents:
      raise InputError(
        f"{self.name}: num_train must be in [0, {self.num_documents}], the number of documents,"
        f" got {self.num_train}"
      )

  @property
  def num_documents(self) -> int:
    return len(self.label_splits) - 1

  @property
  def train(self) -> XmcData:
    """The training documents; its arrays are views."""
    return self.part(0, self.num_train)

  @property
  def test(self) -> XmcData:
    """The test documents; its arrays are views."""
    return self.part(self.num_train, self.num_documents)

  def part(self, start: int, stop: int) -> XmcData:
    """Returns the documents of [start, stop), with views of the arrays.

    Args:
      start: the first document, in [0, D].
      stop: one after the last, in [start, D].

    Raises:
      InputError: there are no such documents.
    """
    if not 0 <= start <= stop <= self.num_documents:
      raise InputError(
        f"{self.name}: there are no documents [{start}, {stop}); it holds {self.num_documents}"
      )
    features = slice(self.feature_splits[start], self.feature_splits[stop])
    labels = slice(self.label_splits[start], self.label_splits[stop])
    return dataclasses.replace(
      self,
      num_train=max(0, min(stop, self.num_train) - start),
      feature_splits=self.feature_splits[start : stop + 1] - self.feature_splits[start],
      feature_ids=self.feature_ids[features],
      feature_values=self.feature_values[features],
      label_splits=self.label_splits[start : stop + 1] - self.label_splits[start],
      label_ids=self.label_ids[labels],
    )

  def relevance(self) -> np.ndarray:
    """Returns which document has which label, [D, num_labels] bool."""
    relevance = np.zeros((self.num_documents, self.num_labels), bool)
    relevance[self._label_rows(), self.label_ids] = True
    return relevance

  def has_label(self, documents: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns whether documents[i] has the label labels[i], [n] bool; less memory, more time."""
    known = np.sort(self._label_rows() * self.num_labels + self.label_ids)
    asked = np.asarray(documents, np.int64) * self.num_labels + labels
    place = np.searchsorted(known, asked)
    found = place < len(known)
    found[found] = known[place[found]] == asked[found]
    return found

  def _label_rows(self) -> np.ndarray:
    return np.repeat(np.arange(self.num_documents), np.diff(self.label_splits))

  def fingerprint(self) -> str:
    """Returns the SHA-256 of the sizes and of every array, as 64 hex digits."""
    sizes = (self.num_documents, self.num_train, self.num_features, self.num_labels)
    digest = hashlib.sha256(repr(sizes).encode())
    for column in _ARRAYS:
      values = getattr(self, column)
      # The header keeps arrays apart whose bytes alone would run together.
      digest.update(f"{column} {values.dtype.str} {values.shape}".encode())
      digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def rows_with_repeats(splits: np.ndarray, ids: np.ndarray) -> np.ndarray:
  """Returns whether a row holds the same id twice, [rows] bool.

  Args:
    splits: where rows begin and end, [rows + 1] int64.
    ids: the ids of all rows, at least 0 and below 2**31, [splits[-1]].
  """
  rows = np.repeat(np.arange(len(splits) - 1), np.diff(splits))
  pairs = np.sort(rows << 31 | ids.astype(np.int64))
  repeats = np.zeros(len(splits) - 1, dtype=bool)
  repeats[pairs[1:][pairs[1:] == pairs[:-1]] >> 31] = True
  return repeats
