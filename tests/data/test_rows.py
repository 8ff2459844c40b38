"""The bandit log: round trips, one clear message for each kind of damage, exact batch streams."""

import json
import pathlib
import re

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings

from tests.data import native
from tf_twostage.data import rows
from tf_twostage.data.rows import LogRows, Slices
from tf_twostage.data.schema import Id, Numeric, Schema
from tf_twostage.errors import InputError

# Ids that a careless reader would turn into numbers, missing values or two columns.
USERS = ("007", "NA", "a,b", 'say "é"', "nan")
ITEMS = ("1.0", "1", "null", "Ödipus (1967)")
SCHEMA = Schema(
  user=(Id("uid", USERS),), item=(Id("movie_id", ITEMS),), context=(Numeric("timestamp"),)
)
DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "bandit_log.md"
FINITE = "must be finite, within -1e30 and 1e30"
NAN = "value ('nan'|missing)"  # pandas writes a Parquet file's NaN as null
FORMS = ("", "log.csv", "log.parquet")
COLUMNS = ("user_id", "item_id", "propensity", "reward", "position")


def make_log(n=10, seed=0, position=True):
  rng = np.random.default_rng(seed)
  return LogRows(
    user_index=rng.integers(0, len(USERS), n),
    action=rng.integers(0, len(ITEMS), n),
    propensity=rng.uniform(0.01, 1, n),
    reward=rng.integers(0, 2, n),
    context={"timestamp": rng.uniform(0, 2e9, n)},
    position=np.arange(n) % 3 if position else None,
  )


def make_frame(n=4, **columns):
  """A valid raw log, with some columns replaced."""
  frame = pd.DataFrame(
    {
      "user_id": [USERS[row % len(USERS)] for row in range(n)],
      "item_id": [ITEMS[row % len(ITEMS)] for row in range(n)],
      "propensity": [0.5] * n,
      "reward": [1.0] * n,
      "position": [0] * n,
      "timestamp": [978300760.0] * n,
    }
  )
  return frame.assign(**columns)


def assert_same(left, right):
  for name in ("user_index", "action", "propensity", "reward", "position"):
    np.testing.assert_array_equal(getattr(left, name), getattr(right, name), strict=True)
  assert set(left.context) == set(right.context)
  for name, values in left.context.items():
    np.testing.assert_array_equal(values, right.context[name], strict=True)


def example(**features):
  """A tf.train.Example by the book; bytes, float and int lists by the type of the values."""
  kinds = {
    bytes: lambda v: tf.train.Feature(bytes_list=tf.train.BytesList(value=v)),
    float: lambda v: tf.train.Feature(float_list=tf.train.FloatList(value=v)),
    int: lambda v: tf.train.Feature(int64_list=tf.train.Int64List(value=v)),
  }
  lists = {name: v if isinstance(v, list) else [v] for name, v in features.items()}
  features = {name: kinds[type(v[0])](v) for name, v in lists.items()}
  return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def good(**changes):
  row = {"user_id": b"007", "item_id": b"1", "propensity": 0.5, "reward": 1.0, "timestamp": b"3.5"}
  return example(**{name: v for name, v in {**row, **changes}.items() if v is not None})


def write_shards(directory, *shards):
  directory.mkdir(exist_ok=True)
  for number, records in enumerate(shards):
    path = directory / f"log-{number:05d}-of-{len(shards):05d}.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
      for record in records:
        writer.write(record)
  return directory


# In memory


def test_log_has_the_documented_types():
  log = make_log()
  columns = [log.user_index, log.action, log.propensity, log.reward, log.position]
  assert [c.dtype for c in columns] == [np.int32, np.int32, np.float32, np.float32, np.int32]
  assert log.context["timestamp"].dtype == np.float64
  assert len(log) == 10


@pytest.mark.parametrize(
  "rows",
  [np.array([3, 1, 1]), np.arange(10) % 2 == 0, slice(2, 5), np.array([], int)],
  ids=["indices", "mask", "slice", "none"],
)
def test_select_takes_the_same_rows_of_every_column(rows):
  log = make_log()
  part = log.select(rows)
  expected = np.arange(10)[rows]
  assert len(part) == len(expected)
  for name in ("user_index", "action", "propensity", "reward", "position"):
    np.testing.assert_array_equal(getattr(part, name), [getattr(log, name)[r] for r in expected])
  times = [log.context["timestamp"][r] for r in expected]
  np.testing.assert_array_equal(part.context["timestamp"], times)


def test_positives_are_the_rows_with_reward_above_zero():
  log = LogRows([0, 1, 2], [0, 1, 2], [0.5, 0.5, 0.5], [0.0, 0.1, 1.0])
  np.testing.assert_array_equal(log.positives().user_index, [1, 2])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"action": [0, 1, 2]}, "vectors of one length"),
    ({"reward": [[0.0, 1.0]]}, "vectors of one length"),
    ({"context": {"t": [1.0]}}, "vectors of one length"),
    ({"action": [0.0, 1.0]}, "'action' must be int32, got float64"),
    ({"propensity": ["a", "b"]}, "'propensity' must be float32"),
    ({"user_index": [0, -1]}, r"'user_index' must be .* >= 0; 1 of 2 .*row 1, value '-1'"),
    ({"propensity": [0.0, 0.5]}, r"'propensity' must lie in \(0, 1\]; 1 of 2 .*row 0, value '0.0'"),
    ({"propensity": [0.5, 1e-40]}, r"'propensity' must lie in"),
    ({"propensity": [0.5, 1.01]}, r"'propensity' must lie in"),
    ({"reward": [np.inf, 0.0]}, "'reward' must be >= 0 and at most"),
    ({"context": {"t": [0.0, np.nan]}}, "'t' must be finite"),
    ({"position": [0, -1]}, "'position' must be"),
  ],
)
def test_a_log_in_memory_is_checked(changes, message):
  columns = {"user_index": [0, 1], "action": [0, 1], "propensity": [0.5, 1.0], "reward": [0, 1]}
  with pytest.raises(InputError, match=message):
    LogRows(**{**columns, **changes})


# Round trips


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_shards", [1, 3, 5])  # the fifth is empty
def test_a_written_log_reads_back_unchanged(tmp_path, form, num_shards):
  log = make_log(4)
  native.write(log, tmp_path / "log", SCHEMA, num_shards=num_shards)
  assert_same(native.read(tmp_path / "log" / form, SCHEMA), log)


@pytest.mark.parametrize("form", FORMS)
def test_a_log_without_position_reads_back_without(tmp_path, form):
  native.write(make_log(position=False), tmp_path / "log", SCHEMA)
  assert native.read(tmp_path / "log" / form, SCHEMA).position is None


@settings(
  max_examples=10,
  deadline=None,
  derandomize=True,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
  st.lists(
    st.tuples(
      st.floats(np.finfo(np.float32).tiny, 1, width=32),
      st.floats(0, float(np.float32(1e15)), width=32, allow_subnormal=False),
      st.floats(-1e30, 1e30, allow_subnormal=False),
    ),
    min_size=1,
    max_size=50,
  )
)
def test_every_digit_survives_every_form(tmp_path, drawn):
  propensity, reward, time = np.array(drawn, np.float64).T
  zeros = np.zeros(len(drawn), int)
  log = LogRows(zeros, zeros, propensity, reward, {"timestamp": time})
  native.write(log, tmp_path / "log", SCHEMA, num_shards=1)
  for form in FORMS:
    assert_same(native.read(tmp_path / "log" / form, SCHEMA), log)


def test_rows_are_split_into_shards_in_order_and_evenly(tmp_path):
  log = make_log(10)
  native.write(log, tmp_path / "log", SCHEMA, num_shards=3)
  records = [
    list(tf.data.TFRecordDataset(str(shard)).as_numpy_iterator())
    for shard in sorted((tmp_path / "log").glob("*.tfrecord"))
  ]
  assert [len(part) for part in records] == [4, 3, 3]
  found = [tf.train.Example.FromString(r).features.feature for part in records for r in part]
  np.testing.assert_array_equal([f["reward"].float_list.value[0] for f in found], log.reward)
  np.testing.assert_array_equal([f["position"].int64_list.value[0] for f in found], log.position)
  ids = [f["user_id"].bytes_list.value[0].decode() for f in found]
  assert ids == [USERS[u] for u in log.user_index]


def test_shards_written_by_another_program_are_read(tmp_path):
  path = write_shards(tmp_path / "log", [good(), good(item_id="Ödipus (1967)".encode())])
  log = native.read(path, SCHEMA)
  np.testing.assert_array_equal(log.action, [1, 3])
  np.testing.assert_array_equal(log.context["timestamp"], [3.5, 3.5])


def test_columns_may_stand_in_any_order_and_have_company(tmp_path):
  frame = make_frame(remark="x")[
    ["remark", "timestamp", "reward", "item_id", "propensity", "user_id"]
  ]
  frame.to_csv(tmp_path / "log.csv", index=False)
  np.testing.assert_array_equal(native.read(tmp_path / "log.csv", SCHEMA).user_index, range(4))


def test_description_tells_rows_and_columns(tmp_path):
  native.write(make_log(7), tmp_path / "log", SCHEMA)
  description = json.loads((tmp_path / "log" / "log.json").read_text())
  assert description["rows"] == 7
  assert list(description["columns"]) == [*COLUMNS, "timestamp"]
  assert description["columns"]["timestamp"] == "float64"


def test_the_documented_rows_are_a_valid_log(tmp_path):
  text = DOCUMENT.read_text(encoding="utf-8")
  example = re.search(r"```csv\n(.*?)```", text, re.DOTALL)[1]
  (tmp_path / "log.csv").write_text(example)
  schema = Schema(
    user=(Id("user_id", ("1", "6040")),),
    item=(Id("movie_id", ("661", "1193")),),
    context=(Numeric("timestamp"),),
  )
  log = native.read(tmp_path / "log.csv", schema)
  np.testing.assert_array_equal(log.user_index, [0, 0, 1])
  np.testing.assert_array_equal(log.action, [1, 0, 1])
  assert all(f"`{column}`" in text for column in COLUMNS)


def test_movielens_log_survives_the_round_trip(test_data, tmp_path):
  raw = pd.read_csv(test_data / "ml-1m-reference" / "bandit_log.csv")
  ids = {
    name: tuple(line.split(b"::")[0].decode() for line in path.read_bytes().splitlines())
    for name, path in (
      ("user_id", test_data / "ml-1m" / "users.dat"),
      ("movie_id", test_data / "ml-1m" / "movies.dat"),
    )
  }
  schema = Schema(user=(Id("user_id", ids["user_id"]),), item=(Id("movie_id", ids["movie_id"]),))
  log = LogRows(raw.user_index, raw.item_index, raw.propensity, raw.reward)
  native.write(log, tmp_path / "log", schema)
  assert_same(native.read(tmp_path / "log", schema), log)
  assert_same(native.read(tmp_path / "log" / "log.csv", schema), log)


# Writing


def test_a_new_log_replaces_the_old_one_whole(tmp_path):
  native.write(make_log(10, seed=1), tmp_path / "log", SCHEMA, num_shards=5)
  log = make_log(6, seed=2)
  native.write(log, tmp_path / "log", SCHEMA, num_shards=2)
  assert_same(native.read(tmp_path / "log", SCHEMA), log)
  names = {path.name for path in (tmp_path / "log").iterdir()}
  shards = {f"log-0000{shard}-of-00002.tfrecord" for shard in range(2)}
  assert names == {"log.csv", "log.parquet", "log.json"} | shards
  assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_directory_in_other_use_is_left_alone(tmp_path):
  (tmp_path / "thesis.tex").write_text("years of work")
  with pytest.raises(InputError, match="something other than a bandit log"):
    native.write(make_log(), tmp_path, SCHEMA)
  assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_zero_shards_are_refused(tmp_path):
  with pytest.raises(InputError, match="num_shards"):
    native.write(make_log(), tmp_path / "log", SCHEMA, num_shards=0)


# Reading damaged logs: each message names file, column, count, first row and remedy.


@pytest.mark.parametrize("form", ["csv", "parquet", "shards"])
@pytest.mark.parametrize(
  ("column", "values", "message"),
  [
    ("propensity", [0.5, 0.0, -0.1, 1.0], r"must lie in \(0, 1\]; 2 of 4 .*row 1, value '0.0'"),
    ("propensity", [0.5, 1.0, 1.5, 0.5], r"must lie in \(0, 1\]; 1 of 4 .*row 2, value '1.5'"),
    ("propensity", [0.5, 1.0, 1.0, np.nan], rf"must lie in \(0, 1\]; 1 of 4 .*row 3, {NAN}"),
    ("propensity", [1e-40, 1.0, 1.0, 1.0], r"must lie in \(0, 1\]; 1 of 4 .*row 0"),
    (
      "reward",
      [0.0, 1.0, -1.0, 0.0],
      r"must be >= 0 and at most 1e15; 1 of 4 .*row 2, value '-1.0'",
    ),
    (
      "reward",
      [np.nan, 1.0, np.nan, 0.0],
      rf"must be >= 0 and at most 1e15; 2 of 4 .*row 0, {NAN}",
    ),
    (
      "reward",
      [0.0, np.inf, 1.0, 0.0],
      r"must be >= 0 and at most 1e15; 1 of 4 .*row 1, value 'inf'",
    ),
    ("position", [0, 1, -2, 0], r"must be a whole number >= 0; 1 of 4 .*row 2, value '-2'"),
    (
      "timestamp",
      [1.0, 2.0, -np.inf, 3.0],
      r"must be finite, within .*; 1 of 4 .*row 2, value '-inf'",
    ),
    ("timestamp", [1.0, np.nan, 2.0, 3.0], rf"{FINITE}; 1 of 4 .*row 1, {NAN}"),
    (
      "user_id",
      ["007", "7", "NA", "7"],
      r"must name a known user.*; 2 of 4 .*row 1, value '7'.*users' table",
    ),
    (
      "item_id",
      ["1", "1.0", "1", "2"],
      r"must name a known item.*; 1 of 4 .*row 3, value '2'.*items' table",
    ),
    ("item_id", ["1", "1.0", "1", ""], r"must not be blank; 1 of 4 .*row 3, value ''"),
  ],
)
def test_bad_values_are_refused(tmp_path, form, column, values, message):
  frame = make_frame(**{column: values})
  path = tmp_path / f"log.{form}"
  if form == "csv":
    frame.to_csv(path, index=False, na_rep="nan")
  elif form == "parquet":
    frame.to_parquet(path)
  else:
    write_shards(
      path,
      [
        good(
          **{name: str(row[name]).encode() for name in ("user_id", "item_id", "timestamp")},
          **{name: float(row[name]) for name in ("propensity", "reward")},
          position=int(row["position"]),
        )
        for row in frame.to_dict("records")
      ],
    )
  with pytest.raises(InputError, match=f"log.*: column '{column}' {message}"):
    native.read(path, SCHEMA)


def test_the_bad_row_is_named_by_its_shard_and_the_row_in_it(tmp_path):
  shards = [good(), good()], [], [good(), good(reward=-1.0), good(reward=-2.0)]
  path = write_shards(tmp_path / "log", *shards)
  message = r"log-00002-of-00003.tfrecord: column 'reward'.* 2 of 5 .*row 1, value '-1.0'"
  with pytest.raises(InputError, match=message):
    native.read(path, SCHEMA)


def test_a_missing_id_is_not_an_id_spelt_nan(tmp_path):
  make_frame(user_id=["nan", None, "nan", "nan"]).to_parquet(tmp_path / "log.parquet")
  with pytest.raises(
    InputError, match=r"'user_id' must not be blank; 1 of 4 .*row 1, value missing"
  ):
    native.read(tmp_path / "log.parquet", SCHEMA)


def test_numeric_ids_of_a_parquet_file_are_read_as_text(tmp_path):
  make_frame(item_id=[1, 1, 1, 1]).to_parquet(tmp_path / "log.parquet")
  log = native.read(tmp_path / "log.parquet", SCHEMA)
  np.testing.assert_array_equal(log.action, [ITEMS.index("1")] * 4)


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("column", ["user_id", "item_id", "propensity", "reward", "timestamp"])
def test_a_missing_column_is_named(tmp_path, form, column):
  path = tmp_path / f"log.{form}"
  frame = make_frame().drop(columns=column)
  frame.to_csv(path, index=False) if form == "csv" else frame.to_parquet(path)
  with pytest.raises(InputError, match=rf"missing column\(s\) \['{column}'\]; found '"):
    native.read(path, SCHEMA)


@pytest.mark.parametrize(
  ("column", "value", "message"),
  [
    ("user_id", None, "column 'user_id' must not be blank"),
    ("timestamp", None, "column 'timestamp' must hold numbers"),
    ("reward", 1, "column 'reward' must be a float_list, as in the first row, not a int64_list"),
    ("timestamp", 3.5, "column 'timestamp' must be a bytes_list.*, not a float_list"),
    ("propensity", [0.5, 0.5], "column 'propensity' must hold one value a row"),
    ("position", [1, 2], "column 'position' must hold one value a row"),
  ],
)
def test_a_malformed_example_is_refused(tmp_path, column, value, message):
  row, bad = good(position=0), good(**{"position": 0, column: value})
  shards = [row, row], [row, bad, bad]
  path = write_shards(tmp_path / "log", *shards)
  with pytest.raises(InputError, match=rf"log-00001-of-00002.*: {message}; 2 of 5 .*row 1"):
    native.read(path, SCHEMA)


def test_records_that_are_not_examples_are_refused(tmp_path):
  path = write_shards(tmp_path / "log", [good(), b"\xff\xff not an example"])
  with pytest.raises(InputError, match=r"must be tf.train.Example; 1 of 2 .*row 1"):
    native.read(path, SCHEMA)


def test_position_in_some_rows_only_is_refused(tmp_path):
  path = write_shards(tmp_path / "log", [good(position=0), good(), good()])
  with pytest.raises(InputError, match=r"'position'.*; 2 of 3 .*row 1"):
    native.read(path, SCHEMA)


@pytest.mark.parametrize("column", ["propensity", "reward", "position", "timestamp"])
def test_text_where_a_number_belongs_is_refused(tmp_path, column):
  make_frame(**{column: ["1", "one", "1", "x"]}).to_csv(tmp_path / "log.csv", index=False)
  message = f"'{column}' must hold numbers; 2 of 4 .*row 1, value 'one'"
  with pytest.raises(InputError, match=message):
    native.read(tmp_path / "log.csv", SCHEMA)


@pytest.mark.parametrize("column", ["propensity", "reward", "position", "timestamp"])
def test_an_empty_cell_is_not_a_number(tmp_path, column):
  make_frame(**{column: ["1", "", "1", "1"]}).to_csv(tmp_path / "log.csv", index=False)
  message = f"'{column}' must hold numbers; 1 of 4 .*row 1, value ''"
  with pytest.raises(InputError, match=message):
    native.read(tmp_path / "log.csv", SCHEMA)


def test_a_fractional_position_is_refused(tmp_path):
  make_frame(position=[0, 1, 2, 0.5]).to_csv(tmp_path / "log.csv", index=False)
  with pytest.raises(InputError, match=r"'position' must be a whole number.*; 1 of 4 .*row 3"):
    native.read(tmp_path / "log.csv", SCHEMA)


@pytest.mark.filterwarnings("error")
def test_a_number_beyond_float32_is_refused_without_a_warning(tmp_path):
  make_frame(reward=[0, 1, 1e39, 0]).to_csv(tmp_path / "log.csv", index=False)
  with pytest.raises(InputError, match=r"'reward' must be >= 0 .*; 1 of 4 .*row 2, value '1e.39'"):
    native.read(tmp_path / "log.csv", SCHEMA)


@pytest.mark.parametrize("form", FORMS)
def test_the_last_digit_of_a_float64_survives(tmp_path, form):
  times = [1087249982.9308457, 1341248829.3872607, 1230770222.9625077]  # fast parsers miss these
  zeros = np.zeros(3, int)
  log = LogRows(zeros, zeros, zeros + 1, zeros, {"timestamp": times})
  native.write(log, tmp_path / "log", SCHEMA, num_shards=1)
  found = native.read(tmp_path / "log" / form, SCHEMA).context["timestamp"]
  np.testing.assert_array_equal(found, times)


def test_text_in_a_context_feature_of_a_shard_is_refused(tmp_path):
  path = write_shards(tmp_path / "log", [good(), good(timestamp=b"June")])
  with pytest.raises(
    InputError, match=r"'timestamp' must hold numbers; 1 of 2 .*row 1, value .*June"
  ):
    native.read(path, SCHEMA)


@pytest.mark.parametrize(
  "values", [pd.date_range("2020-01-01", periods=4), [[1.0], [1.0, 2.0], [], [0.5]]]
)
def test_dates_and_lists_are_not_numbers(tmp_path, values):
  make_frame(timestamp=values).to_parquet(tmp_path / "log.parquet")
  with pytest.raises(InputError, match=r"'timestamp' must hold numbers; 4 of 4 .*row 0"):
    native.read(tmp_path / "log.parquet", SCHEMA)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "the file is empty"),
    ("user_id,item_id,propensity,reward,timestamp\n", "the log has no rows"),
    (
      "user_id,item_id,propensity,reward,timestamp\n007,1,0.5,1,2,3\n",
      "a row must have 5 fields.*row 0",
    ),
    (
      "user_id,item_id,propensity,reward,timestamp\n007,1,0.5,1,2\n007,1,0.5\n",
      "a row must have 5 fields, as the header has; 1 of 2 .*line 3, row 1, value '3 fields'",
    ),
    (
      "user_id,item_id,propensity,reward,timestamp\n\udcff,1,0.5,1,2\n",
      "column 'user_id' must be text in UTF-8.*line 2",
    ),
  ],
  ids=["nothing", "header only", "long row", "cut row", "not utf-8"],
)
def test_a_damaged_csv_is_refused(tmp_path, text, message):
  (tmp_path / "log.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
  with pytest.raises(InputError, match=f"log.csv: {message}"):
    native.read(tmp_path / "log.csv", SCHEMA)


def test_a_damaged_parquet_is_refused(tmp_path):
  make_frame().to_parquet(tmp_path / "log.parquet")
  whole = (tmp_path / "log.parquet").read_bytes()
  (tmp_path / "log.parquet").write_bytes(whole[: len(whole) // 2])
  with pytest.raises(InputError, match=r"log.parquet: not a readable Parquet file"):
    native.read(tmp_path / "log.parquet", SCHEMA)


@pytest.mark.parametrize("cut", [True, False], ids=["truncated", "flipped byte"])
def test_a_damaged_shard_is_named_with_the_row_it_breaks_at(tmp_path, cut):
  size = len(good()) + 16  # a record is framed by its length and two checksums
  path = write_shards(tmp_path / "log", [good()], [good()] * 5)
  shard = path / "log-00001-of-00002.tfrecord"
  content = bytearray(shard.read_bytes())
  assert len(content) == 5 * size
  content[3 * size + 20] ^= 0xFF
  shard.write_bytes(content[: 3 * size + 20] if cut else content)
  message = r"log-00001-of-00002.tfrecord: truncated or corrupt at row 3 \(.* record at "
  with pytest.raises(InputError, match=message):
    native.read(path, SCHEMA)


def test_a_shard_cut_between_two_records_is_noticed(tmp_path):
  native.write(make_log(), tmp_path / "log", SCHEMA, num_shards=2)
  (tmp_path / "log" / "log-00001-of-00002.tfrecord").write_bytes(b"")
  with pytest.raises(InputError, match=r"the shards hold 5 rows, but log\.json says 10"):
    native.read(tmp_path / "log", SCHEMA)


def test_a_broken_description_is_refused(tmp_path):
  path = write_shards(tmp_path / "log", [good()])
  (path / "log.json").write_text("{}")
  with pytest.raises(InputError, match=r"log.json: not the description"):
    native.read(path, SCHEMA)


def test_missing_shards_are_counted(tmp_path):
  native.write(make_log(), tmp_path / "log", SCHEMA, num_shards=4)
  (tmp_path / "log" / "log-00001-of-00004.tfrecord").unlink()
  (tmp_path / "log" / "log-00003-of-00004.tfrecord").unlink()
  with pytest.raises(InputError, match=r"2 of 4 shards are missing \(first: log-00001-of-00004"):
    native.read(tmp_path / "log", SCHEMA)


def test_shards_of_two_logs_are_not_mixed(tmp_path):
  write_shards(tmp_path / "log", [good()])
  write_shards(tmp_path / "log", [good()], [good()])
  with pytest.raises(InputError, match="several logs lie together"):
    native.read(tmp_path / "log", SCHEMA)


def test_a_directory_without_shards_is_refused(tmp_path):
  with pytest.raises(InputError, match="no log in it, neither shards such as"):
    native.read(tmp_path, SCHEMA)


def test_shards_without_rows_are_refused(tmp_path):
  with pytest.raises(InputError, match="the log has no rows"):
    native.read(write_shards(tmp_path / "log", [], []), SCHEMA)


@pytest.mark.parametrize(
  ("name", "message"),
  [("nowhere", "no such file"), ("nowhere.csv", "no such file"), ("log.xlsx", "no bandit log")],
)
def test_a_path_that_is_no_log_is_refused(tmp_path, name, message):
  (tmp_path / "log.xlsx").write_bytes(b"")
  with pytest.raises(InputError, match=f"{name}: {message}"):
    native.read(tmp_path / name, SCHEMA)


# Batches


FEATURES = {
  "code": np.arange(len(USERS), dtype=np.int32) * 10,
  "bag": np.arange(len(USERS) * 2, dtype=np.float32).reshape(-1, 2),
}


def numbered(n):
  """A log whose rows can be told apart by every column (users repeat)."""
  row = np.arange(n)
  return LogRows(row % len(USERS), row, (row + 1) / n, row, {"timestamp": row * 0.5 + 1e9})


def stream(log, steps, features=FEATURES, **options):
  """The rows of the first batches, in order."""
  dataset = log.batches(features, **options)
  return np.concatenate([batch["action"] for batch in dataset.take(steps).as_numpy_iterator()])


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (10, 10), (3, 7), (1, 2), (37, 5)])
def test_every_pass_holds_each_row_once(n, batch_size):
  steps = 6 * n  # 6 * batch_size whole passes
  rows = stream(numbered(n), steps, batch_size=batch_size, seed=3)
  for one_pass in rows.reshape(-1, n):
    np.testing.assert_array_equal(np.sort(one_pass), np.arange(n))


@pytest.mark.parametrize("start_step", [1, 7, 100])
@pytest.mark.parametrize("slices", [rows.WHOLE, Slices(1, 3, 4)])
def test_a_resumed_stream_equals_an_uninterrupted_one(start_step, slices):
  options = {"batch_size": 4, "seed": 5, "slices": slices}
  whole = numbered(10).batches(FEATURES, **options).skip(start_step * (slices.end - slices.begin))
  resumed = numbered(10).batches(FEATURES, **options, start_step=start_step)
  for expected, found in zip(whole.take(5), resumed.take(5), strict=True):
    tf.nest.map_structure(np.testing.assert_array_equal, expected, found)


@pytest.mark.parametrize("readers", [[(0, 4)], [(0, 1), (1, 2), (2, 3), (3, 4)], [(0, 1), (1, 4)]])
def test_those_who_share_a_batch_take_it_whole_and_in_order(readers):
  steps, options = 9, {"batch_size": 8, "seed": 4}
  whole = stream(numbered(11), steps, **options).reshape(steps, 8)
  parts = [
    stream(numbered(11), steps * (end - begin), slices=Slices(begin, end, 4), **options)
    for begin, end in readers
  ]
  parts = [part.reshape(steps, -1) for part in parts]
  np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_the_seed_fixes_the_order():
  first, again, other = (stream(numbered(50), 5, batch_size=10, seed=s) for s in (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


def test_passes_and_seeds_have_unrelated_orders():
  n = 30_000
  log = numbered(n)
  orders = [
    order
    for seed in (0, 1)
    for order in stream(log, 4, batch_size=n, seed=seed).reshape(4, n).astype(np.float64)
  ]
  # The correlation of two random orders is normal with deviation 1 / sqrt(n - 1).
  between = np.corrcoef([*orders, np.arange(n)])
  within = [np.corrcoef(order[:-1], order[1:])[0, 1] for order in orders]
  assert np.abs(between - np.eye(len(between))).max() < 4.5 / np.sqrt(n - 1)
  assert np.abs(within).max() < 4.5 / np.sqrt(n - 1)


def test_a_batch_keeps_the_columns_of_a_row_together():
  n = 23
  log = numbered(n)
  dataset = log.batches(FEATURES, batch_size=8, seed=0)
  for batch in dataset.take(6).as_numpy_iterator():
    rows = batch["action"]
    np.testing.assert_array_equal(batch["user_index"], rows % len(USERS))
    np.testing.assert_array_equal(batch["propensity"], ((rows + 1) / n).astype(np.float32))
    np.testing.assert_array_equal(batch["reward"], rows.astype(np.float32))
    np.testing.assert_array_equal(batch["context"]["timestamp"], rows * 0.5 + 1e9)
    np.testing.assert_array_equal(batch["user"]["code"], rows % len(USERS) * 10)
    np.testing.assert_array_equal(batch["user"]["bag"], FEATURES["bag"][rows % len(USERS)])


@pytest.mark.parametrize(("batch_size", "of"), [(1, 1), (4, 1), (4, 2), (25, 5)])
def test_batches_have_static_shapes_and_no_end(batch_size, of):
  dataset = numbered(10).batches(FEATURES, batch_size=batch_size, seed=0, slices=Slices(0, 1, of))

  def spec(dtype, *shape):
    return tf.TensorSpec([batch_size // of, *shape], dtype)

  assert dataset.element_spec == {
    "user": {"code": spec(tf.int32), "bag": spec(tf.float32, 2)},
    "context": {"timestamp": spec(tf.float64)},
    "user_index": spec(tf.int32),
    "action": spec(tf.int32),
    "propensity": spec(tf.float32),
    "reward": spec(tf.float32),
  }
  assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY


@pytest.mark.parametrize(
  ("log", "features", "options", "message"),
  [
    (numbered(3).select(slice(0, 0)), FEATURES, {}, "no rows to train on"),
    (numbered(3), {"code": np.zeros(2)}, {}, r"\{'code': 2\} rows end before user 2"),
    (numbered(3), FEATURES, {"batch_size": 0}, "batch_size must be >= 1"),
    (numbered(3), FEATURES, {"start_step": -1}, "start_step must be >= 0"),
    (numbered(3), FEATURES, {"slices": Slices(0, 1, 4)}, "a multiple of 4.*got 2"),
  ],
)
def test_impossible_batches_are_refused(log, features, options, message):
  with pytest.raises(InputError, match=message):
    log.batches(features, **{"batch_size": 2, "seed": 0, **options})


@pytest.mark.parametrize("slices", [(0, 0, 1), (1, 1, 2), (-1, 1, 2), (0, 3, 2), (0, 1, 0)])
def test_slices_that_are_not_there_are_refused(slices):
  with pytest.raises(InputError, match="do not exist"):
    Slices(*slices)
