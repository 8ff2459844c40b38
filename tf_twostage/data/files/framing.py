"""How TFRecord files are put together, to say where one is damaged and to read around it.

A record is its length (8 bytes, little-endian), a checksum of the length (4), the payload, and a
checksum of the payload (4). Checksums are CRC-32C, masked.
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/lib/io/record_writer.h
"""

from __future__ import annotations

import contextlib
import gzip
import mmap
import pathlib
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

_LENGTH = struct.Struct("<Q")
_HEAD, _TAIL = 12, 4
_ROWS = 1 << 16  # records at a time
_BYTES = 1 << 20


class Damage(NamedTuple):
  """Where a file cannot be read.

  Attributes:
    row: the first record that is damaged, from 0.
    offset: the byte it begins at, in what the file unpacks to if it is gzipped.
    what: is wrong.
    ends: whether nothing behind it can be read.
  """

  row: int
  offset: int
  what: str
  ends: bool

  def __str__(self) -> str:
    return f"damaged at row {self.row}, byte offset {self.offset} ({self.what})"


class Part(NamedTuple):
  """Consecutive records.

  Attributes:
    rows: [k] int64, numbers of the sound ones in the file.
    records: [k] object, their bytes.
    damages: what is wrong with the others.
  """

  rows: np.ndarray
  records: np.ndarray
  damages: list[Damage]


def read(path: pathlib.Path, first_row: int = 0) -> Iterator[Part]:
  """Yields what can be read, with every checksum checked; an undamaged file is read, too.

  Args:
    path: a TFRecord file; gzipped if its name ends in .gz.
    first_row: records before it are passed over unchecked.
  """
  with _unpacked(path) as (data, broken):
    if not len(data):
      if broken:
        yield Part(*_none(), [Damage(0, 0, broken, True)])
      return
    octets = np.frombuffer(data, np.uint8)
    try:
      yield from _parts(data, octets, broken, first_row)
    finally:
      del octets  # the map cannot be closed while an array looks at it


def size(records: Sequence[bytes]) -> int:
  """Bytes that records take in a file."""
  return sum(map(len, records)) + len(records) * (_HEAD + _TAIL)


def first_damage(path: pathlib.Path) -> Damage | None:
  """Where a file is damaged first; None if it is sound."""
  return next((damage for part in read(path) for damage in part.damages), None)


def cut(path: pathlib.Path) -> Damage | None:
  """Where a file ends within a record, by the lengths alone: a look that takes little time."""
  rows = 0
  with _unpacked(path) as (data, _):
    for starts, end in _hops(data):
      rows += len(starts)
      if end > len(data):
        what = "the file ends within the record, or its length is wrong"
        return Damage(rows - 1, int(starts[-1]), what, True)
  return None


def count(path: pathlib.Path) -> int:
  """Number of records that begin in a file, by their lengths alone; nothing is checked."""
  with _unpacked(path) as (data, _):
    rows = 0
    for starts, _ in _hops(data):
      rows += len(starts)
    return rows


def _parts(
  data: mmap.mmap | bytes, octets: np.ndarray, broken: str, first_row: int
) -> Iterator[Part]:
  row, ending = 0, len(octets)
  for starts, end in _hops(data):
    rows = row + np.arange(len(starts))
    row += len(starts)
    if row <= first_row:
      continue
    keep = slice(max(0, first_row - int(rows[0])), None)
    starts, rows, ends = starts[keep], rows[keep], np.append(starts[1:], end)[keep]
    damages: list[Damage] = []
    whole = starts + _HEAD <= ending
    sound = whole.copy()
    sound[whole] = _checked(octets, starts[whole], np.full(whole.sum(), 8), starts[whole] + 8)
    # Where a length is wrong, nobody knows where the next record begins.
    known = len(sound) if sound.all() else int(np.argmin(sound))
    inside = ends[:known] <= ending
    valid = inside.copy()
    first = starts[:known][inside] + _HEAD
    lengths = ends[:known][inside] - _TAIL - first
    valid[inside] = _checked(octets, first, lengths, first + lengths)
    for bad in np.flatnonzero(~valid):
      cut = not inside[bad]
      what = broken or "the file ends within the record" if cut else "checksum of its payload"
      damages.append(Damage(int(rows[bad]), int(starts[bad]), what, bool(cut)))
    if known < len(sound):
      cut = not whole[known]
      what = broken or "the file ends within the record" if cut else "checksum of its length"
      damages.append(Damage(int(rows[known]), int(starts[known]), what, True))
    good = np.flatnonzero(valid)
    bodies = zip(starts[good] + _HEAD, ends[good] - _TAIL, strict=True)
    records = np.empty(len(good), object)
    records[:] = [data[begin:finish] for begin, finish in bodies]
    yield Part(rows[good], records, damages)
    if damages and damages[-1].ends:
      return
  if broken:  # between two records
    yield Part(*_none(), [Damage(row, ending, broken, True)])


def _none() -> tuple[np.ndarray, np.ndarray]:
  return np.empty(0, np.int64), np.empty(0, object)


def _hops(data: mmap.mmap | bytes) -> Iterator[tuple[np.ndarray, int]]:
  """Yields where records begin, by their lengths alone, and where the next would."""
  size, place = len(data), 0
  while place < size:
    starts: list[int] = []
    while place < size and len(starts) < _ROWS:
      starts.append(place)
      if place + _HEAD > size:
        place = size + 1
      else:
        place += _HEAD + _TAIL + _LENGTH.unpack_from(data, place)[0]
    yield np.array(starts, np.int64), min(place, size + 1)


def _checked(
  octets: np.ndarray, starts: np.ndarray, lengths: np.ndarray, sums: np.ndarray
) -> np.ndarray:
  """Whether bytes have the checksums that stand elsewhere, [k] bool."""
  valid = np.empty(len(starts), bool)
  stored = octets[sums[:, np.newaxis] + np.arange(4)].view("<u4")[:, 0]
  for length in np.unique(lengths):  # whole columns of bytes of records that are alike
    some = np.flatnonzero(lengths == length)
    crc = np.full(len(some), 0xFFFFFFFF, np.uint32)
    for byte in range(int(length)):
      crc = _TABLE[(crc ^ octets[starts[some] + byte]) & 0xFF] ^ (crc >> np.uint32(8))
    crc = ~crc
    masked = ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)
    valid[some] = masked == stored[some]
  return valid


def _crc_table() -> np.ndarray:
  table = np.arange(256, dtype=np.uint32)
  for _ in range(8):
    table = np.where(table & 1, (table >> np.uint32(1)) ^ np.uint32(0x82F63B78), table >> 1)
  return table.astype(np.uint32)


_TABLE = _crc_table()


@contextlib.contextmanager
def _unpacked(path: pathlib.Path) -> Iterator[tuple[mmap.mmap | bytes, str]]:
  """The records' bytes, and what is wrong with the packing ("" if nothing)."""
  if path.suffix != ".gz":
    with path.open("rb") as file, _mapped(file) as data:
      yield data, ""
    return
  with tempfile.TemporaryFile() as unpacked:
    broken = ""
    try:
      with gzip.open(path) as packed:
        while block := packed.read(_BYTES):
          unpacked.write(block)
    except (EOFError, OSError, zlib.error) as error:
      broken = f"gzip: {error}"
    unpacked.flush()
    with _mapped(unpacked) as data:
      yield data, broken


@contextlib.contextmanager
def _mapped(file) -> Iterator[mmap.mmap | bytes]:
  if not file.seek(0, 2):  # nothing to map
    yield b""
    return
  with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
    yield data
