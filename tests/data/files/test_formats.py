"""Damaged files are refused, and values that no column can hold are bad rows of theirs."""

import gzip

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from pyarrow import parquet

from tests.data.files import small_log
from tf_twostage.data import draft
from tf_twostage.data.files import csv_format, reader, tfrecord_format
from tf_twostage.data.files.bad_rows import BadRows
from tf_twostage.data.files.locate import locate
from tf_twostage.data.files.shards import convert
from tf_twostage.data.log_schema import LogSchema, load_schema
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


@pytest.mark.parametrize("separator", [";", "|", "\t"])
def test_the_header_tells_the_separator(tmp_path, separator):
  frame = small_log.frame()
  text = frame.assign(gender=frame["gender"] + ", x").to_csv(sep=separator, index=False).encode()
  found = small_log.read(*small_log.write(tmp_path, text))
  assert found.users["gender"][0].endswith(", x")
  assert len(found.rows) == len(frame)


@pytest.mark.parametrize("name", ["log.tsv", "log.tsv.gz", "log.txt", "log.inter"])
def test_tabs_separate_columns(tmp_path, name):
  frame = small_log.frame()
  text = frame.assign(gender=frame["gender"] + ", x").to_csv(sep="\t", index=False).encode()
  text = gzip.compress(text) if name.endswith(".gz") else text
  path, items, schema = small_log.write(tmp_path / name, text, name=name)
  log = small_log.read(path, items, schema)
  np.testing.assert_array_equal(log.rows.reward, frame["click"])
  assert log.schema.user[1].vocabulary == ("F, x", "M, x")
  path.write_bytes(gzip.compress(text[:-4]) if name.endswith(".gz") else text[:-4])
  if not name.endswith(".gz"):
    with pytest.raises(InputError, match=r"a row must have 8 fields.*line 9, row 7"):
      small_log.read(path, items, schema)


def test_a_text_file_in_a_directory_is_not_part_of_the_log(tmp_path):
  small_log.write(
    tmp_path / "log", name="rows.tsv", log=small_log.frame().to_csv(sep="\t").encode()
  )
  (tmp_path / "log" / "items.csv").unlink()
  (tmp_path / "log" / "readme.txt").write_text("about this log")
  assert [path.name for path in locate(tmp_path / "log").paths] == ["rows.tsv"]


@pytest.mark.parametrize(
  "cells", [["true", "false"], ["TRUE", "False"], ["1", " false"], ["1.0", "0"]]
)
def test_truth_values_are_rewards(tmp_path, cells):
  frame = small_log.frame().assign(click=cells * 4)
  log = small_log.read(*small_log.write(tmp_path, frame))
  np.testing.assert_array_equal(log.rows.reward, [1, 0] * 4)


NOON = 1714564800.0  # 2024-05-01 12:00 UTC
MIDNIGHT = NOON - 43200


@pytest.mark.parametrize(
  ("text", "seconds"),
  [
    ("2024-05-01 12:00:00 UTC", NOON),  # as BigQuery writes
    ("2024-05-01 12:00:00.500000 UTC", NOON + 0.5),
    ("2024-05-01T14:00:00+02:00", NOON),
    ("2024-05-01", MIDNIGHT),
    ("20240501", MIDNIGHT),
    ("20241301", 20241301),  # there is no thirteenth month
    ("1714564800", NOON),
  ],
)
def test_times_are_read_as_they_are_meant(tmp_path, text, seconds):
  frame = small_log.frame().assign(at=text)
  log = small_log.read(*small_log.write(tmp_path, frame))
  np.testing.assert_array_equal(log.time, [seconds] * 8)


@pytest.mark.parametrize(
  ("kind", "number", "seconds"),
  [
    (pa.date32(), 1, 86400),
    (pa.date64(), 86400_000, 86400),
    (pa.timestamp("s"), 5, 5),
    (pa.timestamp("ms", tz="Asia/Tokyo"), 5500, 5.5),
    (pa.timestamp("us"), -(10**6), -1),
    (pa.timestamp("ns"), 5 * 10**9, 5),
    (pa.date32(), 2**31 - 1, None),
    (pa.date64(), 86400_000 * 10**9, None),
    (pa.timestamp("ms"), 2**62, None),
    (pa.timestamp("ms", tz="Asia/Tokyo"), -(2**62), None),
    (pa.time32("s"), 5, None),
  ],
)
def test_moments_of_parquet_are_seconds_or_bad_rows(tmp_path, kind, number, seconds):
  path, items, schema = small_log.write(tmp_path, name="log.parquet")
  table = parquet.read_table(path)
  width = pa.int32() if kind.bit_width == 32 else pa.int64()
  values = pa.array([number] * 8, width).cast(kind)
  parquet.write_table(table.set_column(table.column_names.index("at"), "at", values), path)
  if seconds is None:
    with pytest.raises(InputError, match="column 'at' must be a time; 8 of 8 rows"):
      small_log.read(path, items, schema)
  else:
    np.testing.assert_array_equal(small_log.read(path, items, schema).time, [seconds] * 8)


@pytest.mark.parametrize(
  "values",
  [
    pa.array(np.full(8, 0.5, np.float16)),
    pa.array(["0.5"] * 8).dictionary_encode(),
    pa.array([b"0.5"] * 8, pa.large_binary()),
    pa.array(["0.5"] * 8, pa.string_view()),
  ],
  ids=lambda values: str(values.type),
)
def test_numbers_of_any_type_of_parquet_are_read(tmp_path, values):
  path, items, schema = small_log.write(tmp_path, name="log.parquet")
  table = parquet.read_table(path)
  place = table.column_names.index("pscore")
  parquet.write_table(table.set_column(place, "pscore", values), path)
  log = small_log.read(path, items, schema)
  np.testing.assert_array_equal(log.rows.propensity, [0.5] * 8)


def test_an_item_feature_near_the_largest_float_is_refused(tmp_path):
  path, items, schema = small_log.write(tmp_path)
  small_log.items().assign(price=[1.7e308, -1.7e308, 0, 1]).to_csv(items, index=False)
  with pytest.raises(InputError, match=r"'price' must be finite, within -1e30 and 1e30; 2 of 4"):
    small_log.read(path, items, schema)


@pytest.mark.parametrize("row", [0, 5])
def test_a_row_longer_than_a_block_is_refused_as_such(tmp_path, monkeypatch, row):
  monkeypatch.setattr(csv_format, "_BLOCK", 1 << 20)
  frame = small_log.frame().astype(object)
  frame.loc[row, "gender"] = "x" * (5 << 20)
  path, items, schema = small_log.write(tmp_path, frame)
  with pytest.raises(InputError, match=r"log\.csv: a row is longer than 1 MB, or a quote is not"):
    small_log.read(path, items, schema)


def test_odd_payloads_with_right_checksums_are_bad_rows(tmp_path):
  path, _, schema = small_log.write(tmp_path)
  convert(path, tmp_path / "shards", schema, num_shards=1)
  shard = tmp_path / "shards" / "log-00000-of-00001.tfrecord"
  records = [record.numpy() for record in tf.data.TFRecordDataset(str(shard))]
  rng = np.random.default_rng(0)
  odd = set()
  for i in range(200):
    record = bytearray(records[i % 8])
    record[rng.integers(len(record))] ^= 1 << rng.integers(8)
    odd.add(bytes(record))
  records += sorted(odd)
  write_records(tmp_path / "log.tfrecord", records)
  faults = BadRows()
  read = reader.read(
    locate(tmp_path / "log.tfrecord"), load_schema(shard.parent / "schema.yaml"), faults
  )
  good = np.concatenate([chunk.rows for chunk in read])
  assert set(range(8)) <= set(good)
  assert (faults.rows, faults.bad) == (len(records), len(records) - len(good))


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
