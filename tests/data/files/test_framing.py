"""TFRecord files that are damaged: what is said of them, what can still be read."""

import gzip
import struct

import numpy as np
import pytest
import tensorflow as tf

from tests.data.files import small_log
from tf_twostage.data import load
from tf_twostage.data.files import convert, framing, shards
from tf_twostage.errors import InputError

RECORDS = [b"x" * (i % 7) + bytes([i]) for i in range(50)]
STARTS = np.cumsum([0, *(len(record) + 16 for record in RECORDS)])


def write(path, records=RECORDS):
  options = tf.io.TFRecordOptions("GZIP" if path.suffix == ".gz" else "")
  with tf.io.TFRecordWriter(str(path), options) as writer:
    for record in records:
      writer.write(record)
  return path


def spoilt(path, place):
  content = bytearray(path.read_bytes())
  content[place] ^= 0x10
  path.write_bytes(content)
  return path


def found(path, first_row=0):
  """Numbers of the rows that can be read, and what is damaged."""
  parts = list(framing.read(path, first_row))
  rows = np.concatenate([part.rows for part in parts])
  for part in parts:
    assert [RECORDS[row] for row in part.rows] == list(part.records)
  return rows.tolist(), [damage for part in parts for damage in part.damages]


@pytest.mark.parametrize("name", ["a.tfrecord", "a.tfrecord.gz"])
def test_a_sound_file_is_read_as_tensorflow_reads_it(tmp_path, name):
  path = write(tmp_path / name)
  assert found(path) == (list(range(50)), [])
  assert found(path, 13) == (list(range(13, 50)), [])
  assert framing.first_damage(path) is None
  assert framing.count(path) == 50
  assert framing.cut(path) is None


@pytest.mark.parametrize("place", [12, -1], ids=["payload", "its checksum"])
def test_damage_to_a_payload_costs_its_record(tmp_path, place):
  path = spoilt(write(tmp_path / "a.tfrecord"), STARTS[9 + (place < 0)] + place)
  rows, damages = found(path)
  assert rows == [row for row in range(50) if row != 9]
  assert damages == [framing.Damage(9, STARTS[9], "checksum of its payload", False)]


@pytest.mark.parametrize("place", [0, 6, 9], ids=["length", "huge length", "its checksum"])
def test_behind_damage_to_a_length_nothing_is_read(tmp_path, place):
  rows, damages = found(spoilt(write(tmp_path / "a.tfrecord"), STARTS[9] + place))
  assert rows == list(range(9))
  assert damages == [framing.Damage(9, STARTS[9], "checksum of its length", True)]


@pytest.mark.parametrize("extra", [1, 11, 12, 15])
def test_a_file_that_is_cut_names_the_record_it_ends_in(tmp_path, extra):
  path = write(tmp_path / "a.tfrecord")
  path.write_bytes(path.read_bytes()[: STARTS[30] + extra])
  rows, damages = found(path)
  assert rows == list(range(30))
  assert damages == [framing.Damage(30, STARTS[30], "the file ends within the record", True)]


def test_a_gzip_file_that_is_cut_names_the_record_it_ends_in(tmp_path):
  path = write(tmp_path / "a.tfrecord.gz")
  path.write_bytes(path.read_bytes()[:-12])
  rows, damages = found(path)
  (damage,) = damages
  assert rows == list(range(damage.row))
  assert damage.offset == STARTS[damage.row]
  assert damage.what.startswith("gzip: Compressed file ended")


def test_what_is_no_gzip_file_is_said(tmp_path):
  path = tmp_path / "a.tfrecord.gz"
  path.write_bytes(b"no gzip at all")
  assert framing.first_damage(path) == framing.Damage(
    0, 0, "gzip: Not a gzipped file (b'no')", True
  )


def test_a_length_that_leads_far_away_is_no_length(tmp_path):
  path = write(tmp_path / "a.tfrecord")
  content = bytearray(path.read_bytes())
  content[STARTS[3] : STARTS[3] + 8] = struct.pack("<Q", 2**63 + 5)
  path.write_bytes(content)
  assert found(path)[0] == [0, 1, 2]


@pytest.fixture
def log(tmp_path):
  """A log of 40 rows in two shards, plain; and its items and schema."""
  path, items, _ = small_log.write(tmp_path / "raw", small_log.frame(40))
  schema = tmp_path / "raw" / "schema.yaml"
  convert.convert(path, tmp_path / "log", schema, num_shards=2)
  return tmp_path / "log", items, tmp_path / "log" / "schema.yaml"


def starts(shard):
  content, places = shard.read_bytes(), [0]
  while places[-1] < len(content):
    places.append(places[-1] + 16 + int.from_bytes(content[places[-1] :][:8], "little"))
  return places


def test_a_damaged_record_is_named_or_left_out(log):
  directory, items, schema = log
  shard = directory / shards.names(2)[1]
  place = starts(shard)[7]
  spoilt(shard, place + 20)
  message = (
    f"{shard}: truncated or corrupt record; 1 of 40 rows break this .first: row 7, value 'byte"
    f" offset {place}: checksum of its payload'.; write the file again"
  )
  with pytest.raises(InputError, match=message):
    load.load(directory, items, schema)
  data = load.load(directory, items, schema, on_bad_rows="skip")
  assert len(data.rows) == 39
  assert data.notes == ("1 of 40 rows are bad and were left out",)


def test_a_shard_that_is_cut_is_read_up_to_there_if_that_is_wanted(log):
  directory, items, schema = log
  shard = directory / shards.names(2)[0]
  place = starts(shard)[5]
  shard.write_bytes(shard.read_bytes()[: place + 3])
  with pytest.raises(InputError, match=rf"damaged at row 5, byte offset {place} .the file ends"):
    load.load(directory, items, schema)
  data = load.load(directory, items, schema, on_bad_rows="skip")
  assert len(data.rows) == 25
  assert f"{shard}: nothing from row 5 on (byte offset {place}: " in data.notes[1]


def test_a_shard_of_which_nothing_can_be_read_is_refused(log):
  directory, items, schema = log
  shard = directory / shards.names(2)[0]
  shard.write_bytes(gzip.compress(shard.read_bytes()))
  with pytest.raises(InputError, match=f"{shard}: truncated or corrupt, no record can be read"):
    load.load(directory, items, schema, on_bad_rows="skip")
