"""The text format of the Extreme Classification Repository.

The first line counts documents, features and labels; then comes one document a line, its labels
before its features::

  2 500 983
  77,91,315 60:1 248:0.25
   16:1

A document without labels starts with a space. Ids count from 0.

References: Bhatia, Dahiya, Jain, Kar, Mittal, Prabhu, Varma. The Extreme Classification
Repository: Multi-label Datasets and Code. 2016.
"""

from __future__ import annotations

import collections
import gzip
import os
import pathlib
import re
import warnings
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from tf_twostage.data.sets.xmc_data import XmcData, rows_with_repeats
from tf_twostage.errors import InputError
from tf_twostage.workspace import atomic_write

_FORMAT = (
  "the format is 'documents features labels' in line 1 and 'label,label feature:value"
  " feature:value' in every other, ids counted from 0"
)
_AGAIN = "download or unpack the file again"
_MEND = f"mend those lines or {_AGAIN}; {_FORMAT}"

_BLOCK_BYTES = 1 << 22  # twenty-fold in working memory: under 100 MB
_WRITE_DOCUMENTS = 500

# Classes of bytes; every separator ends a token.
_DIGIT, _SIGN, _SPACE, _NEWLINE, _COMMA, _COLON, _FOREIGN = range(7)
_SEPARATORS = 4
_CLASSES = bytearray([_FOREIGN] * 256)
for _class, _symbols in enumerate([b"0123456789", b"+-.eE", b" ", b"\n", b",", b":"]):
  for _symbol in _symbols:
    _CLASSES[_symbol] = _class
_TO_SPACES = bytes.maketrans(b"\n,:", b"   ")

# What a token is follows from the separators around it and from whether it is empty.
_WRONG, _NOTHING, _LABEL, _FEATURE, _VALUE = range(5)
_KINDS = np.full((2, _SEPARATORS, _SEPARATORS), _WRONG, dtype=np.uint8)
for _filled, _left, _right, _kind in (
  (0, _NEWLINE, _SPACE, _NOTHING),  # a document without labels
  (0, _SPACE, _SPACE, _NOTHING),
  (0, _SPACE, _NEWLINE, _NOTHING),
  (1, _NEWLINE, _COMMA, _LABEL),
  (1, _NEWLINE, _SPACE, _LABEL),
  (1, _NEWLINE, _NEWLINE, _LABEL),
  (1, _COMMA, _COMMA, _LABEL),
  (1, _COMMA, _SPACE, _LABEL),
  (1, _COMMA, _NEWLINE, _LABEL),
  (1, _SPACE, _COLON, _FEATURE),
  (1, _COLON, _SPACE, _VALUE),
  (1, _COLON, _NEWLINE, _VALUE),
):
  _KINDS[_filled, _left - _SPACE, _right - _SPACE] = _kind

_HEADER = re.compile(rb"\s*(\d{1,18})\s+(\d{1,18})\s+(\d{1,18})\s*")
_BEYOND_FLOAT32 = 2.0**128 - 2.0**103  # from here on, the nearest float32 is infinite
_ID = re.compile(r"[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf(?:inity)?)", re.IGNORECASE)


class _Header(NamedTuple):
  documents: int
  features: int
  labels: int


class _Block(NamedTuple):
  """Some documents: counts [documents] int64, ids int32 and values float32."""

  feature_counts: np.ndarray
  feature_ids: np.ndarray
  feature_values: np.ndarray
  label_counts: np.ndarray
  label_ids: np.ndarray


def read_xmc(path: str | os.PathLike, name: str | None = None) -> XmcData:
  """Reads a file of documents, plain or packed by gzip (its content tells which).

  Lines may end in Windows's way, spaces may repeat, and the last line needs no newline. The file
  is read in blocks: beyond the result, memory does not grow with it (except for one array's
  second copy).

  Args:
    path: the file.
    name: the data set's name; by default the file's name.

  Returns:
    The documents in the file's order, all of them for training.

  Raises:
    InputError: the file cannot be read, is empty, damaged or not text; line 1 is wrong; there are
      more or fewer documents than it says; or a document is malformed, repeats a label, has an id
      outside its range or a value that float32 cannot hold. The message names the first such
      line, says how many there are, and what to do.
  """
  path = pathlib.Path(path)
  try:
    with path.open("rb") as raw:
      packed = raw.read(2) == b"\x1f\x8b"
      raw.seek(0)
      header, blocks = _read(gzip.GzipFile(fileobj=raw) if packed else raw, path)
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise InputError(f"{path}: not an intact gzip file ({error}); {_AGAIN}") from error
  except OSError as error:
    raise InputError(
      f"{path}: cannot be read ({error.strerror}); pass the path of a readable file"
    ) from error
  columns = {}
  for column, parts in blocks.items():
    columns[column] = np.concatenate(parts)
    parts.clear()  # at no time is there a second copy of more than one column
  return XmcData(
    name=name or path.name,
    num_features=header.features,
    num_labels=header.labels,
    num_train=header.documents,
    feature_splits=_splits(columns["feature_counts"]),
    feature_ids=columns["feature_ids"],
    feature_values=columns["feature_values"],
    label_splits=_splits(columns["label_counts"]),
    label_ids=columns["label_ids"],
  )


def write_xmc(data: XmcData, path: str | os.PathLike) -> None:
  """Writes all documents to one file, packed by gzip if its name ends in .gz.

  The file is written aside and renamed: it appears complete or not at all, in the place of an
  earlier one. `read_xmc` gives the same arrays back. Write `data.train` and `data.test` to keep
  the two apart.

  Args:
    data: the documents.
    path: the file, in a directory that exists.

  Raises:
    InputError: the file cannot be written.
  """
  path = pathlib.Path(path)
  try:
    with atomic_write(path) as aside, aside.open("wb") as raw:
      if path.suffix == ".gz":
        # Without name and time, the same data give the same bytes.
        with gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as file:
          _write(data, file)
      else:
        _write(data, raw)
  except OSError as error:
    raise InputError(
      f"{path}: cannot be written ({error.strerror}); name a file in a directory that exists, with"
      " room for it"
    ) from error


def _splits(counts: np.ndarray) -> np.ndarray:
  return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _read(
  file: BinaryIO | gzip.GzipFile, path: pathlib.Path
) -> tuple[_Header, dict[str, list[np.ndarray]]]:
  """Returns line 1 and, by column, the parts that the documents of every block contribute."""
  header = _read_header(file, path)
  columns = {column: [part] for column, part in _empty()._asdict().items()}
  documents = wrong = 0
  first = ""
  complete = True
  while text := file.read(_BLOCK_BYTES) + file.readline():
    complete = text.endswith(b"\n")
    if not complete:
      text += b"\n"
    text = text.replace(b"\r\n", b"\n")
    block = _parse(text, header)
    if block is None:
      # Line by line and slowly, but this file is refused anyway.
      complaints = [_complaint(line, header) for line in text[:-1].split(b"\n")]
      for number, complaint in enumerate(complaints, start=documents + 2):
        if complaint:
          first = first or f"line {number}, {complaint}"
          wrong += 1
      documents += len(complaints)
    else:
      documents += len(block.label_counts)
      if not wrong:
        for column, part in block._asdict().items():
          columns[column].append(part)
  if documents < header.documents:
    cut = "" if complete else ", which has no newline"
    raise InputError(
      f"{path}: line 1 promises {header.documents} documents, but the file ends with"
      f" {documents}, in line {documents + 1}{cut}; {_AGAIN}, or correct line 1"
    )
  if documents > header.documents:
    raise InputError(
      f"{path}: line 1 promises {header.documents} documents, but {documents} follow (line"
      f" {header.documents + 2} is the first too many); correct line 1 or drop the surplus lines"
    )
  if wrong:
    raise InputError(
      f"{path}: {wrong} of {documents} documents are wrong (first: {first}); {_MEND}"
    )
  return header, columns


def _read_header(file: BinaryIO | gzip.GzipFile, path: pathlib.Path) -> _Header:
  line = file.readline(1_000)
  if not line:
    raise InputError(f"{path}: the file is empty; {_AGAIN}")
  match = _HEADER.fullmatch(line)
  if not match:
    shown = _shown(line.rstrip(b"\r\n").decode("utf-8", "replace"))
    raise InputError(
      f"{path}: line 1 must count documents, features and labels, as in '14146 101938 30938', got"
      f" {shown}; {_FORMAT}"
    )
  header = _Header(*map(int, match.groups()))
  for side, count in (("features", header.features), ("labels", header.labels)):
    if not 1 <= count < 2**31:
      raise InputError(
        f"{path}: line 1 counts {count} {side}; there must be at least 1 and fewer than 2**31"
      )
  return header


def _empty() -> _Block:
  none = np.zeros(0, np.int64)
  ids = np.zeros(0, np.int32)
  return _Block(none, ids, np.zeros(0, np.float32), none, ids)


def _parse(text: bytes, header: _Header) -> _Block | None:
  """Returns the documents of complete lines, or None when anything is wrong with any of them."""
  classes = np.frombuffer(text.translate(_CLASSES), np.uint8)
  if classes.max() == _FOREIGN:
    return None
  ends = np.flatnonzero(classes >= _SPACE)
  right = classes[ends] - _SPACE
  left = np.concatenate([[np.uint8(_NEWLINE - _SPACE)], right[:-1]])
  filled = np.diff(ends, prepend=-1) > 1
  kinds = _KINDS[filled.astype(np.uint8), left, right]
  if (kinds == _WRONG).any():
    return None
  # Separators are no signs: what was counted from one end to the next is inside the token.
  signs = np.diff(np.cumsum(classes == _SIGN, dtype=np.int32)[ends], prepend=0)
  if signs[kinds != _VALUE].any():
    return None
  tokens = kinds[filled]
  numbers = _numbers(text.translate(_TO_SPACES), len(tokens))
  # A token such as 1.2.3 reads as two numbers; none reads as no number.
  if len(numbers) != len(tokens):
    return None
  label_ids, feature_ids = numbers[tokens == _LABEL], numbers[tokens == _FEATURE]
  with np.errstate(over="ignore"):
    feature_values = numbers[tokens == _VALUE].astype(np.float32)
  if (
    (label_ids >= header.labels).any()
    or (feature_ids >= header.features).any()
    or not np.isfinite(feature_values).all()
  ):
    return None
  line_ends = np.flatnonzero(right == _NEWLINE - _SPACE)
  feature_counts, label_counts = (
    np.diff(np.cumsum(kinds == kind, dtype=np.int64)[line_ends], prepend=0)
    for kind in (_FEATURE, _LABEL)
  )
  if rows_with_repeats(_splits(label_counts), label_ids).any():
    return None
  return _Block(
    feature_counts=feature_counts,
    feature_ids=feature_ids.astype(np.int32),
    feature_values=feature_values,
    label_counts=label_counts,
    label_ids=label_ids.astype(np.int32),
  )


def _numbers(text: bytes, expected: int) -> np.ndarray:
  """Returns the numbers between spaces, float64; too few or too many if one is malformed."""
  if not expected:
    return np.zeros(0)
  with warnings.catch_warnings():
    # At what is no number, NumPy 2 raises; NumPy 1 warns and returns what came before.
    warnings.simplefilter("error", DeprecationWarning)
    try:
      return np.fromstring(text, np.float64, sep=" ")
    except (ValueError, DeprecationWarning):
      return np.zeros(0)


def _complaint(line: bytes, header: _Header) -> str | None:
  """Returns what is wrong with one document, or None; agrees with `_parse`."""
  if not line:
    return "which is empty: a document without labels starts with a space"
  try:
    labels, *features = line.decode("utf-8").split(" ")
  except UnicodeDecodeError as error:
    return f"which is not UTF-8 text: byte {error.start + 1} is 0x{line[error.start]:02x}"
  known = []
  for token in labels.split(",") if labels else []:
    if ":" in token:
      return f"feature {_shown(token)} among the labels: no labels means a space at the start"
    if not _ID.fullmatch(token):
      return f"label {_shown(token)} is not a whole number"
    if float(token) >= header.labels:
      return f"label {_shown(token)} is not below {header.labels}, the number of labels in line 1"
    known.append(int(float(token)))  # int() alone refuses thousands of leading zeros
  repeated = [label for label, count in collections.Counter(known).items() if count > 1]
  if repeated:
    return f"label {repeated[0]} stands there twice"
  for token in filter(None, features):
    feature, colon, value = token.partition(":")
    if not colon:
      return f"{_shown(token)} is not of the form feature:value"
    if not _ID.fullmatch(feature):
      return f"feature {_shown(feature)} of {_shown(token)} is not a whole number"
    if float(feature) >= header.features:
      return (
        f"feature {_shown(feature)} is not below {header.features}, the number of features in"
        " line 1"
      )
    if _NOT_FINITE.fullmatch(value):
      return f"value {_shown(value)} of feature {feature} is not finite"
    if not _NUMBER.fullmatch(value):
      return f"value {_shown(value)} of feature {feature} is not a number"
    if abs(float(value)) >= _BEYOND_FLOAT32:
      return f"value {_shown(value)} of feature {feature} is beyond float32"
  return None


def _shown(text: str) -> str:
  """Returns a token as a message shows it: quoted, and not a megabyte of it."""
  return repr(text if len(text) <= 40 else text[:40] + "...")


def _write(data: XmcData, file: BinaryIO | gzip.GzipFile) -> None:
  header = f"{data.num_documents} {data.num_features} {data.num_labels}\n"
  file.write(header.encode())
  for start in range(0, data.num_documents, _WRITE_DOCUMENTS):
    part = data.part(start, min(start + _WRITE_DOCUMENTS, data.num_documents))
    file.write("".join(_lines(part)).encode())


def _lines(data: XmcData) -> Iterator[str]:
  # One formatting call for all features of a document: its loop over them is in C.
  entries: list[float] = [0] * (2 * len(data.feature_ids))
  entries[::2] = data.feature_ids.tolist()
  entries[1::2] = _short(data.feature_values).tolist()
  labels = data.label_ids.tolist()
  feature_splits, label_splits = data.feature_splits.tolist(), data.label_splits.tolist()
  for document in range(data.num_documents):
    start, stop = feature_splits[document : document + 2]
    of_document = labels[slice(*label_splits[document : document + 2])]
    features = " %d:%.9g" * (stop - start) % tuple(entries[2 * start : 2 * stop])
    yield f"{','.join(map(str, of_document))}{features}\n" if of_document or features else " \n"


def _short(values: np.ndarray) -> np.ndarray:
  """Returns float64 numbers whose 9 digits read back as the same float32, and are few if possible.

  Nine digits are always enough for float32, but write 0.1 as 0.100000001; where six decimals
  are the same float32, the number with six decimals is returned.
  """
  exact = values.astype(np.float64)
  rounded = np.round(exact, 6)
  # Below 1000, nine digits show all six decimals; beyond, six decimals change the ninth digit at
  # most, and float32 is coarser than that.
  return np.where(rounded.astype(np.float32) == values, rounded, exact)
