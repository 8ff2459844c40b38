"""Any log -> native shards: complete or not there, in order, bad rows left out only on demand."""

import concurrent.futures
import errno
import resource

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tests.data import native
from tests.data.files import small_log
from tf_twostage.data.files import shards
from tf_twostage.data.files.bad_rows import BadRows
from tf_twostage.data.files.locate import locate
from tf_twostage.data.files.reader import read
from tf_twostage.data.files.shards import convert
from tf_twostage.data.log_schema import LogSchema
from tf_twostage.data.schema import Id, Schema
from tf_twostage.errors import InputError


def rows_of(log, schema):
  parts = [part.table.to_pandas() for part in read(locate(log), schema, BadRows())]
  return pd.concat(parts, ignore_index=True)


def test_rows_keep_their_order_and_every_digit(tmp_path):
  rng = np.random.default_rng(0)
  frame = small_log.frame(60).assign(pscore=rng.uniform(0.01, 1, 60), hour=rng.normal(size=60))
  path, _, schema = small_log.write(tmp_path, frame)
  told = []
  convert(path, tmp_path / "new", schema, num_shards=3, progress=lambda *given: told.append(given))
  before = rows_of(path, LogSchema.from_file(schema))
  after = rows_of(tmp_path / "new", LogSchema.from_file(tmp_path / "new" / "schema.yaml"))
  pd.testing.assert_frame_equal(after[list(before)], before)
  assert told == [(60, 60)]
  sizes = [
    sum(1 for _ in tf.data.TFRecordDataset(str(tmp_path / "new" / name)))
    for name in shards.names(3)
  ]
  assert sizes == [20, 20, 20]


def test_rows_that_are_left_out_are_counted(tmp_path):
  frame = small_log.frame().assign(click=[0, -1, 0, 1, -1, 0, 0, 0])
  path, _, schema = small_log.write(tmp_path, frame)
  rows, bad_rows = convert(path, tmp_path / "new", schema, on_bad_rows="skip")
  assert (rows, bad_rows.bad) == (6, 2)
  assert len(rows_of(tmp_path / "new", LogSchema.from_file(tmp_path / "new/schema.yaml"))) == 6


def test_bad_rows_leave_nothing_behind(tmp_path):
  path, _, schema = small_log.write(tmp_path / "log", small_log.frame().assign(click=-1))
  with pytest.raises(InputError, match="8 of 8 rows"):
    convert(path, tmp_path / "new", schema)
  assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_directory_in_other_use_is_left_alone(tmp_path):
  path, _, schema = small_log.write(tmp_path)
  with pytest.raises(InputError, match="holds something other than a bandit log"):
    convert(path, tmp_path, schema)


def test_user_features_of_a_file_are_not_looked_for(tmp_path):
  path, _, schema = small_log.write(tmp_path, small_log.frame().drop(columns="gender"))
  convert(path, tmp_path / "new", schema, user_features=False)
  native = LogSchema.from_file(tmp_path / "new" / "schema.yaml")
  assert [f.column for f in native.user_features] == ["gender"]


def test_shards_can_be_converted_again(tmp_path):
  path, _, schema = small_log.write(tmp_path)
  convert(path, tmp_path / "a", schema)
  convert(
    tmp_path / "a", tmp_path / "b", tmp_path / "a" / "schema.yaml", num_shards=1, compress=True
  )
  schema = LogSchema.from_file(tmp_path / "b" / "schema.yaml")
  pd.testing.assert_frame_equal(rows_of(tmp_path / "b", schema), rows_of(tmp_path / "a", schema))


def test_a_converted_log_is_a_bandit_log(tmp_path):
  path, _, schema = small_log.write(tmp_path)
  convert(path, tmp_path / "new", schema)
  ids = {"visitor": 4, "product": 3}
  users, items = (tuple(f"{name[0]}{i}" for i in range(n)) for name, n in ids.items())
  log = native.read(
    tmp_path / "new", Schema(user=(Id("user_id", users),), item=(Id("item_id", items),))
  )
  np.testing.assert_array_equal(log.action, np.arange(8) % 3)
  np.testing.assert_array_equal(log.position, np.arange(8) % 3)


def test_whole_numbers_and_missing_features_of_foreign_records_are_read(tmp_path):
  def example(**features):
    kinds = {bytes: "bytes_list", int: "int64_list", float: "float_list"}
    return tf.train.Example(
      features=tf.train.Features(
        feature={
          name: tf.train.Feature(**{kinds[type(value)]: {"value": [value]}})
          for name, value in features.items()
        }
      )
    ).SerializeToString()

  with tf.io.TFRecordWriter(str(tmp_path / "part-1.tfrecord")) as writer:
    for i in range(3):
      writer.write(example(user_id=i, item_id=b"x", propensity=0.5, reward=1, city=b"Graz"))
    writer.write(example(user_id=3, item_id=b"x", propensity=0.5, reward=1))
  schema = LogSchema.from_dict({"user_features": {"city": "categorical"}})
  rows = rows_of(tmp_path, schema)
  assert rows["user_id"].tolist() == ["0", "1", "2", "3"]
  assert rows["reward"].tolist() == [1.0] * 4
  assert rows["city"].tolist() == ["Graz"] * 3 + [""]


@pytest.fixture
def small_files():
  """No file may become longer than 2,000 bytes."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
  yield
  resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("compress", [False, True])
def test_a_file_system_that_refuses_the_shards_is_named(tmp_path, small_files, compress):
  rng = np.random.default_rng(0)
  (tmp_path / "log").mkdir()
  head, rows = "user_id,item_id,propensity,reward", rng.uniform(0.1, 1, 800)
  for part in range(20):
    some = "".join(f"u{i},i{i},{x},0\n" for i, x in enumerate(rows[40 * part : 40 * (part + 1)]))
    (tmp_path / "log" / f"{part:02d}.csv").write_text(f"{head}\n{some}")
  with pytest.raises(OSError, match="new'") as error:
    convert(tmp_path / "log", tmp_path / "new", "native", compress=compress)
  assert error.value.errno == errno.EFBIG
  assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_conversions_to_one_directory_wait_for_each_other(tmp_path):
  path, _, schema = small_log.write(tmp_path / "log", small_log.frame(60))
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    runs = [pool.submit(convert, path, tmp_path / "new", schema) for _ in range(4)]
    assert [run.result()[0] for run in runs] == [60] * 4
  assert len(rows_of(tmp_path / "new", LogSchema.from_file(tmp_path / "new/schema.yaml"))) == 60
  assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "new"]


def test_the_remains_of_a_killed_conversion_are_removed(tmp_path):
  path, _, schema = small_log.write(tmp_path / "log")
  (tmp_path / ".new.partial").mkdir()
  (tmp_path / ".new.partial" / "log-00000-of-00009.tfrecord").touch()
  convert(path, tmp_path / "new", schema, num_shards=1)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "new"]
