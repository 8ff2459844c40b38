"""Damaged files are refused, and values that no column can hold are bad rows of theirs."""

import gzip

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from pyarrow import parquet

from tests.data.files import small_log
from tf_twostage.data import draft
from tf_twostage.data.files import csv_format, tfrecord_format
from tf_twostage.data.log_schema import LogSchema
from tf_twostage.errors import InputError

RECORDS = [b"x" * (i % 7) + bytes([i]) for i in range(50)]
STARTS = np.cumsum([0, *(len(record) + 16 for record in RECORDS)])
HEAD = b"user_id,item_id,propensity,reward\n"
GOOD = b"u1,i1,0.5,1\n"


def write_records(path, records=RECORDS):
  options = tf.io.TFRecordOptions("GZIP" if path.suffix == ".gz" else "")
  with tf.io.TFRecordWriter(str(path), options) as writer:
    for record in records:
      writer.write(record)
  return path.read_bytes()


def count(path):
  return sum(len(chunk.rows) + len(chunk.broken) for chunk in tfrecord_format.read(path, ["x"]))


def read_csv(tmp_path, content, **options):
  (tmp_path / "log.csv").write_bytes(content)
  return small_log.read(tmp_path / "log.csv", None, "native", **options)


@pytest.mark.parametrize("name", ["a.tfrecord", "a.tfrecord.gz"])
def test_sound_records_are_counted(tmp_path, name):
  write_records(tmp_path / name)
  assert count(tmp_path / name) == 50


@pytest.mark.parametrize("place", [0, 9, 12, -1], ids=["length", "its sum", "payload", "its sum"])
def test_the_damaged_record_is_named(tmp_path, place):
  content = bytearray(write_records(tmp_path / "a.tfrecord"))
  content[STARTS[9 + (place < 0)] + place] ^= 0x10
  (tmp_path / "a.tfrecord").write_bytes(content)
  with pytest.raises(InputError, match=r"a.tfrecord: truncated or corrupt at row 9 \(.* record at"):
    count(tmp_path / "a.tfrecord")


@pytest.mark.parametrize("extra", [1, 11, 12, 15])
def test_a_file_that_ends_within_a_record_is_refused(tmp_path, extra):
  content = write_records(tmp_path / "a.tfrecord")
  (tmp_path / "a.tfrecord").write_bytes(content[: STARTS[30] + extra])
  with pytest.raises(InputError, match="truncated or corrupt at row 30 "):
    count(tmp_path / "a.tfrecord")


def test_a_gzip_file_is_refused_wherever_it_is_cut(tmp_path):
  content = write_records(tmp_path / "a.tfrecord.gz", RECORDS[:8])
  for size in range(1, len(content)):
    (tmp_path / "a.tfrecord.gz").write_bytes(content[:size])
    with pytest.raises(InputError, match="truncated or corrupt at row"):
      count(tmp_path / "a.tfrecord.gz")
  (tmp_path / "a.tfrecord.gz").write_bytes(content + content)  # two members
  assert count(tmp_path / "a.tfrecord.gz") == 16
  text = gzip.compress(b"".join(b"%d,%d\n" % (i, i * i) for i in range(20)))
  for size in range(1, len(text)):
    (tmp_path / "a.csv.gz").write_bytes(text[:size])
    with pytest.raises(InputError, match=r"(truncated or corrupt gzip|the file is empty)"):
      list(csv_format.read(tmp_path / "a.csv.gz", ["0"]))


def test_a_carriage_return_ends_a_line(tmp_path):
  data = read_csv(tmp_path, (HEAD + GOOD + b"u2,i2,0.5,0\n").replace(b"\n", b"\r"))
  assert data.schema.item_id.vocabulary == ("i1", "i2")


def test_long_cells_and_unclosed_quotes_in_the_header(tmp_path):
  note = HEAD[:-1] + b",note\n"
  row, long = GOOD[:-1] + b",a\n", b'u1,i1,0.5,1,"' + b"y" * 200_000 + b'"\n'
  with pytest.raises(InputError, match=r"must have 5 fields.*1 of 3 .*line 3, row 1"):
    read_csv(tmp_path, note + long + GOOD + row)
  with pytest.raises(InputError, match=r"log.csv: the file is empty, or its header has a quote"):
    read_csv(tmp_path, HEAD[:-1] + b',"note\n' + row * 12_000)
  assert len(read_csv(tmp_path, HEAD[:-1] + b"," + b"x" * 200_000 + b"\n" + row)) == 1


@pytest.mark.parametrize(
  ("cell", "rule"), [(b"i1\0", "must not contain the character NUL"), (b"\xff", "must be text in")]
)
def test_text_that_arrays_cannot_hold_is_a_bad_row(tmp_path, cell, rule):
  content = HEAD + GOOD + GOOD.replace(b"i1", cell)
  with pytest.raises(InputError, match=rf"column 'item_id' {rule}.*; 1 of 2 .*line 3, row 1"):
    read_csv(tmp_path, content)
  assert len(read_csv(tmp_path, content, on_bad_rows="skip")) == 1


def test_lists_are_bags_and_nothing_else(tmp_path):
  def write(name, **columns):
    parquet.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    return tmp_path / f"{name}.parquet"

  columns = {"propensity": [0.5, 0.5], "reward": [1, 0], "user_id": ["u1", "u2"]}
  log = write("log", item_id=["i0", "i1"], **columns)
  tags = pa.array([["a", "b"], None, ["c", None, "a"]])
  items = write("items", item_id=["i0", "i1", "i2"], tags=tags)
  schema = LogSchema.from_dict({"item_features": {"tags": "bag"}})
  data = small_log.read(log, items, schema)
  assert data.items["tags"].tolist() == [["a", "b"], ["", ""], ["c", "a"]]
  assert "tags: {kind: bag, separator: '|'}" in draft.draft(log, items)
  schema = LogSchema.from_dict({"item_features": {"tags": "categorical"}})
  with pytest.raises(InputError, match="'tags' must hold one value a row, not lists; 2 of 3"):
    small_log.read(log, items, schema)
  bad = write("bad", item_id=pa.array([["x"], None]), **columns)
  with pytest.raises(InputError, match=r"'item_id' must hold one value a row.*1 of 2 .*\n.*blank"):
    small_log.read(bad, None, "native")


def test_quotes_that_are_not_closed_are_not_skipped(tmp_path):
  content = HEAD + GOOD + b'"u2,i1,0.5,1\n' + GOOD * 3
  with pytest.raises(InputError, match=r"log.csv: line 3 cannot be split into fields .*close its"):
    read_csv(tmp_path, content, on_bad_rows="skip")


def test_rows_of_later_blocks_are_numbered_past_broken_ones(tmp_path, monkeypatch):
  monkeypatch.setattr(csv_format, "_BLOCK", 128)
  rows = [b"broken\n" if i % 3 == 0 else b"u%d,i1,0.5,1\n" % i for i in range(60)]
  (tmp_path / "log.csv").write_bytes(HEAD + b"".join(rows) + b"broken\n")
  chunks = list(csv_format.read(tmp_path / "log.csv", ["user_id"]))
  assert len(chunks) > 3
  numbers = [row for c in chunks for row in c.rows]
  users = [user for c in chunks for user in c.table["user_id"].to_pylist()]
  assert numbers == [i for i in range(60) if i % 3]
  assert users == [b"u%d" % i for i in numbers]
  assert [row.row for c in chunks for row in c.broken] == [*range(0, 60, 3), 60]
  assert csv_format.line_of(tmp_path / "log.csv", 59) == 61
