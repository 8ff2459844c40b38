"""Extreme multi-label data: documents are users, and their labels are the items they like.

Labels are complete, so nothing is simulated: an item is relevant to a user exactly when it is one
of the document's labels. The text format of the Extreme Classification Repository counts
documents, features and labels in line 1; then comes one document per line, its labels before its
features::

  2 500 983
  77,91,315 60:1 248:0.25
   16:1

A document without labels starts with a space. Ids count from 0.

References: Bhatia, Dahiya, Jain, Kar, Mittal, Prabhu, Varma. The Extreme Classification
Repository: Multi-label Datasets and Code. 2016.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import itertools
import os
import pathlib
import re
import zlib
from typing import BinaryIO

import numpy as np
from scipy.sparse import csr_array, vstack

from tf_twostage.data.schema import FeatureTable, Id, Schema, SparseVector, fingerprint_arrays
from tf_twostage.errors import InputError

# What archives call a data set besides the name used here.
_TITLES = {"wiki10": "Wiki10-31K", "delicious": "Delicious"}
_AGAIN = "download or unpack the file again"
_FORMAT = (
  "the format is 'documents features labels' in line 1 and 'label,label feature:value"
  " feature:value' in every other line, ids counted from 0"
)


@dataclasses.dataclass(frozen=True, eq=False)
class XmcData:
  """D documents with sparse features and complete labels.

  Attributes:
    name: the data set's name.
    features: the features of each document, sparse [D, F] float32.
    labels: which labels each document has, sparse [D, N] bool.
    num_train: the first documents, this many, are for training; the others are for testing.

  Raises:
    InputError: a matrix has another type or shape, ids that do not rise within a document, or
      values that are not finite; or there are fewer documents than `num_train`.
  """

  name: str
  features: csr_array
  labels: csr_array
  num_train: int

  def __post_init__(self):
    for side, dtype in (("features", np.float32), ("labels", np.bool_)):
      matrix = getattr(self, side)
      if matrix.dtype != dtype or matrix.shape[0] != self.num_documents:
        raise InputError(
          f"{self.name}: {side} must be {np.dtype(dtype)} with {self.num_documents} rows, got"
          f" {matrix.dtype} {matrix.shape}"
        )
      try:
        matrix.check_format(full_check=True)
      except ValueError as error:
        raise InputError(f"{self.name}: {side} are not a valid sparse array ({error})") from error
      if not matrix.has_canonical_format:
        raise InputError(
          f"{self.name}: {side} of a document must differ and rise; call sum_duplicates() first"
        )
    if not np.isfinite(self.features.data).all():
      raise InputError(f"{self.name}: features hold values that are not finite; drop them")
    if not 0 <= self.num_train <= self.num_documents:
      raise InputError(
        f"{self.name}: num_train must be in [0, {self.num_documents}], the number of documents,"
        f" got {self.num_train}"
      )

  @property
  def num_documents(self) -> int:
    return self.features.shape[0]

  @property
  def num_labels(self) -> int:
    return self.labels.shape[1]

  @property
  def train(self) -> XmcData:
    """The training documents."""
    return self.part(0, self.num_train)

  @property
  def test(self) -> XmcData:
    """The test documents."""
    return self.part(self.num_train, self.num_documents)

  def part(self, start: int, stop: int) -> XmcData:
    """Returns the documents of [start, stop)."""
    return dataclasses.replace(
      self,
      features=self.features[start:stop],
      labels=self.labels[start:stop],
      num_train=max(0, min(stop, self.num_train) - start),
    )

  def relevance(self) -> np.ndarray:
    """Returns which document has which label, [D, N] bool."""
    return self.labels.toarray()

  def has_label(self, documents: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns whether documents[i] has the label labels[i], [n] bool, without a [D, N] array."""
    row, column = self.labels.nonzero()
    pairs = row.astype(np.int64) * self.num_labels + column
    return np.isin(np.asarray(documents, np.int64) * self.num_labels + labels, pairs)

  def fingerprint(self) -> str:
    """Returns the SHA-256 of the sizes and of every array, as 64 hex digits."""
    arrays = {"values": self.features.data}
    for side, matrix in (("features", self.features), ("labels", self.labels)):
      # SciPy chooses the integers' width.
      arrays[f"{side}.ids"] = matrix.indices.astype(np.int64)
      arrays[f"{side}.splits"] = matrix.indptr.astype(np.int64)
    sizes = (self.features.shape, self.labels.shape, self.num_train)
    return fingerprint_arrays(repr(sizes), arrays)


def load_xmc(name: str, data_dir: str | None = None) -> XmcData:
  """Loads the training file and the test file of a data set as one set of documents.

  The files are train.txt and test.txt, or carry the data set's name as in wiki10_train.txt, which
  comes first; either may be a .txt.gz. They lie in `data_dir` or in a directory of it named after
  the data set, such as Wiki10/, Wiki10-31K/ or Wiki10.bow/. Case and punctuation do not matter.

  Raises:
    InputError: a file is missing or wrong, or the two files do not belong together.
  """
  title = _TITLES.get(name, name)
  remedy = (
    f"download {title} with bag-of-words features from the Extreme Classification Repository,"
    " unpack it and set data_dir to the directory that holds its train.txt and test.txt"
  )
  if data_dir is None:
    raise InputError(f"data set {name!r} is read from files, and data_dir is not set; {remedy}")
  aliases = sorted({_plain(name), _plain(title)})
  files = _find(pathlib.Path(data_dir).expanduser(), aliases, remedy)
  train, test = (read_xmc(path, name=name) for path in files)
  for side in ("features", "labels"):
    of_train, of_test = (getattr(part, side).shape[1] for part in (train, test))
    if of_train != of_test:
      raise InputError(
        f"{data_dir}: the training file counts {of_train} {side} and the test file {of_test}; take"
        " both from the same archive"
      )
  return XmcData(
    name=name,
    features=vstack([train.features, test.features], format="csr"),
    labels=vstack([train.labels, test.labels], format="csr"),
    num_train=train.num_documents,
  )


def _find(data_dir: pathlib.Path, aliases: list[str], remedy: str) -> list[pathlib.Path]:
  """Returns the training file and the test file."""
  names = {alias + end for alias in aliases for end in ("", "bow")}  # as in Wiki10.bow
  try:
    inside = [p for p in sorted(data_dir.iterdir()) if p.is_dir() and _plain(p.name) in names]
    for folder in (data_dir, *inside):
      files = {}
      for path in sorted(folder.iterdir(), reverse=True):  # x.txt after x.txt.gz, to replace it
        if match := re.fullmatch(r"(.+)\.txt(\.gz)?", path.name, re.IGNORECASE):
          files[_plain(match[1])] = path
      found: dict[str, pathlib.Path] = {}
      for role in ("train", "test"):
        stems = [stem for alias in (*aliases, "") if (stem := alias + role) in files]
        if stems:
          found[role] = files[stems[0]]
      if len(found) == 1:
        missing = "test" if "train" in found else "train"
        raise InputError(f"{folder}: missing {missing}.txt; {remedy}")
      if found:
        return [found["train"], found["test"]]
  except OSError as error:
    raise InputError(f"{data_dir}: cannot be read ({error.strerror}); {remedy}") from error
  raise InputError(f"{data_dir}: holds no train.txt and test.txt; {remedy}")


def _plain(name: str) -> str:
  return re.sub("[^a-z0-9]", "", name.lower())


def read_xmc(path: str | os.PathLike, name: str | None = None) -> XmcData:
  """Reads a text file of documents, plain or compressed by gzip.

  Labels and features of a document may come in any order and are sorted. All documents are for
  training. Malformed, repeated and impossible entries are refused by their lines.
  """
  path = pathlib.Path(path)
  try:
    with path.open("rb") as raw:
      packed = raw.read(2) == b"\x1f\x8b"
      raw.seek(0)
      return _read(gzip.GzipFile(fileobj=raw) if packed else raw, path, name or path.name)
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise InputError(f"{path}: not an intact gzip file ({error}); {_AGAIN}") from error
  except OSError as error:
    raise InputError(
      f"{path}: cannot be read ({error.strerror}); pass the path of a readable file"
    ) from error


class _Documents(io.RawIOBase):
  """The lines after line 1, as scikit-learn reads them; on demand with features sorted."""

  def __init__(self, file: BinaryIO | gzip.GzipFile, *, sort: bool):
    self._file, self.sort = file, sort
    self.filled: list[bool] = []  # whether each line read so far has labels or features
    self.line = b""  # the last one
    file.seek(0)
    file.readline()

  def readline(self, size: int | None = -1) -> bytes:
    self.line = line = self._file.readline()
    if line:
      self.filled.append(bool(line.partition(b"#")[0].strip()))  # the format has comments
    if line and self.sort:
      labels, _, features = line.partition(b" ")
      ordered = sorted(features.split(), key=lambda feature: int(feature.partition(b":")[0]))
      line = b" ".join([labels.strip(), *ordered]) + b"\n"
    return line


def _read(file: BinaryIO | gzip.GzipFile, path: pathlib.Path, name: str) -> XmcData:
  from sklearn.datasets import load_svmlight_file  # takes seconds

  first = file.readline(1_000)
  header = re.fullmatch(rb"\s*(\d{1,9})\s+([1-9]\d{0,8})\s+([1-9]\d{0,8})\s*", first)
  if not header:
    text = first.decode("utf-8", "replace").strip()
    raise InputError(
      f"{path}: line 1 must count documents, features and labels, as in '14146 101938 30938', got"
      f" {text[:40]!r}; {_FORMAT}"
    )
  count, num_features, num_labels = map(int, header.groups())

  wrong: list[str] = []
  documents = _Documents(file, sort=False)
  while True:
    try:
      features, labels = load_svmlight_file(
        documents, dtype=np.float32, multilabel=True, zero_based=True
      )
      break
    except (ValueError, OverflowError) as error:
      if "sorted" in str(error) and not documents.sort:
        documents, wrong = _Documents(file, sort=True), []
      else:  # the next turn goes on after this line
        line = documents.line.decode("utf-8", "replace").strip("\r\n")
        wrong.append(f"line {len(documents.filled) + 1}, {line[:40]!r}: {str(error)[:80]}")
  if wrong:
    raise InputError(
      f"{path}: {len(wrong)} of {len(documents.filled)} documents are malformed (first:"
      f" {wrong[0]}); mend those lines or {_AGAIN}; {_FORMAT}"
    )
  if count != len(documents.filled):
    raise InputError(
      f"{path}: line 1 promises {count} documents, but {len(documents.filled)} follow; {_AGAIN}, or"
      " correct line 1"
    )

  label_ids = np.fromiter(itertools.chain.from_iterable(labels), np.float64)
  # scikit-learn skips documents that have neither labels nor features.
  filled = np.flatnonzero(documents.filled)
  label_row = np.repeat(filled, [len(of_document) for of_document in labels])
  feature_row = np.repeat(filled, np.diff(features.indptr))
  repeated = np.zeros(len(label_ids), bool)
  repeated[1:] = (np.diff(label_ids) == 0) & (np.diff(label_row) == 0)
  in_labels = (label_ids >= 0) & (label_ids < num_labels)
  for rule, row, values, bad in (
    ("label must be a whole number", label_row, label_ids, label_ids != np.floor(label_ids)),
    (f"label must be in [0, {num_labels}), the count in line 1", label_row, label_ids, ~in_labels),
    ("label must not repeat within a document", label_row, label_ids, repeated),
    (
      f"feature must be in [0, {num_features}), the count in line 1",
      feature_row,
      features.indices,
      features.indices >= num_features,
    ),
    ("value must fit into float32", feature_row, features.data, ~np.isfinite(features.data)),
  ):
    lines = np.unique(row[bad]) + 2
    if lines.size:
      raise InputError(
        f"{path}: every {rule}; {lines.size} of {count} documents break this (first: line"
        f" {lines[0]}, {values[bad][0]:.10g}); mend those lines or {_AGAIN}; {_FORMAT}"
      )
  return XmcData(
    name=name,
    features=_csr(features.data, features.indices, feature_row, (count, num_features)),
    labels=_csr(np.ones(len(label_ids), bool), label_ids, label_row, (count, num_labels)),
    num_train=count,
  )


def _csr(data: np.ndarray, ids: np.ndarray, row: np.ndarray, shape: tuple[int, int]) -> csr_array:
  splits = np.searchsorted(row, np.arange(shape[0] + 1))
  return csr_array((data, ids.astype(np.int32), splits), shape=shape)


def document_tables(data: XmcData, max_features: int) -> tuple[Schema, FeatureTable, FeatureTable]:
  """Makes documents users with a sparse vector of words, and labels items with only an id.

  A document's id names it in a log and is not embedded, since future documents are other ones. Of
  a document with more features, the `max_features` with the largest values are kept.
  """
  words, values = padded_rows(data.features, max_features)
  schema = Schema(
    user=(
      Id("document", tuple(map(str, range(data.num_documents))), embedded=False),
      SparseVector("words", data.features.shape[1], words.shape[1]),
    ),
    item=(Id("label", tuple(map(str, range(data.num_labels)))),),
  )
  documents = {
    "document": np.array(schema.user_id.vocabulary),
    "words_ids": words,
    "words_weights": values,
  }
  return schema, documents, {"label": np.array(schema.item_id.vocabulary)}


def padded_rows(matrix: csr_array, max_width: int) -> tuple[np.ndarray, np.ndarray]:
  """Ids [R, W] int64, padded with -1, and values [R, W] float32, padded with 0, of sparse rows.

  W is the length of the longest row, from 1 to `max_width`. Of longer rows, the entries with the
  largest absolute values are kept, largest first.
  """
  lengths = np.diff(matrix.indptr)
  width = min(max_width, max(1, lengths.max(initial=1)))
  row = np.repeat(np.arange(len(lengths)), lengths)
  order = np.arange(matrix.nnz)
  long = np.flatnonzero(lengths[row] > width)
  order[long] = long[np.lexsort((-np.abs(matrix.data[long]), row[long]))]
  place = np.arange(matrix.nnz) - matrix.indptr[row]
  kept = place < width
  row, place, order = row[kept], place[kept], order[kept]
  ids = np.full((len(lengths), width), -1, np.int64)
  values = np.zeros((len(lengths), width), np.float32)
  ids[row, place] = matrix.indices[order]
  values[row, place] = matrix.data[order]
  return ids, values
