"""A log of one's own becomes the arrays that training takes, whatever the format."""

import dataclasses
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tests.data.files import small_log
from tf_twostage.data.files.shards import convert
from tf_twostage.data.log import BanditLog
from tf_twostage.data.log_schema import FeatureColumn, LogSchema
from tf_twostage.data.schema import Bag, Categorical, Id, Numeric
from tf_twostage.errors import InputError

BARE = LogSchema(user_id="visitor", item_id="product", propensity="pscore", reward="click")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
  return small_log.write(tmp_path_factory.mktemp("own") / "log")


@pytest.fixture(scope="module")
def data(places):
  return small_log.read(*places)


def test_vocabularies_and_ranges_are_those_of_the_data(data):
  assert data.schema.user == (
    Id("user_id", ("v0", "v1", "v2", "v3")),
    Categorical("gender", ("F", "M")),
  )
  assert data.schema.item == (
    Id("item_id", ("p0", "p1", "p2", "p9")),
    Bag("genres", ("a", "b", "c"), max_length=2),
    Numeric("price", offset=0.0, scale=4.0),
  )
  assert data.schema.context == (Numeric("hour", offset=0.0, scale=7.0),)


def test_tables_hold_raw_values(data):
  np.testing.assert_array_equal(data.users["user_id"], ["v0", "v1", "v2", "v3"])
  np.testing.assert_array_equal(data.users["gender"], ["F", "M", "F", "M"])
  np.testing.assert_array_equal(data.items["genres"], [["a", "b"], ["", ""], ["b", ""], ["c", "a"]])
  np.testing.assert_array_equal(data.items["price"], [1.0, 2.5, 0.0, 4.0])
  np.testing.assert_array_equal(data.titles, ["Zero", "One", "Two", "Nine"])


def test_rows_hold_indices_and_numbers(data):
  row = np.arange(8)
  np.testing.assert_array_equal(data.rows.user_index, row % 4)
  np.testing.assert_array_equal(data.rows.action, row % 3)
  np.testing.assert_array_equal(data.rows.propensity, [0.5, 0.25] * 4)
  np.testing.assert_array_equal(data.rows.reward, row % 2)
  np.testing.assert_array_equal(data.rows.position, row % 3)
  np.testing.assert_array_equal(data.rows.context["hour"], row)
  start = pd.Timestamp("2024-05-01T12:00:00Z").timestamp()
  np.testing.assert_array_equal(data.time, start + row)
  assert (data.ranker_score, data.split_label, data.notes) == (None, None, ())
  assert data.has_propensities


def test_items_never_shown_belong_to_the_catalogue(data):
  assert data.num_items == 4
  assert 3 not in data.rows.action


@pytest.mark.parametrize("name", ["log.csv.gz", "log.parquet"])
def test_the_format_makes_no_difference(tmp_path, data, name):
  other = small_log.read(*small_log.write(tmp_path, name=name))
  assert other.fingerprint() == data.fingerprint()


@pytest.mark.parametrize("compress", [False, True])
def test_nor_does_a_conversion(tmp_path, places, data, compress):
  log, items, schema = places
  rows, _ = convert(log, tmp_path / "new", schema, num_shards=3, compress=compress)
  assert rows == 8
  end = ".tfrecord.gz" if compress else ".tfrecord"
  assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
    *(f"log-0000{i}-of-00003{end}" for i in range(3)),
    "log.json",
    "schema.yaml",
  ]
  other = small_log.read(tmp_path / "new", items, tmp_path / "new" / "schema.yaml")
  assert other.fingerprint() == data.fingerprint()


def test_several_files_are_one_log(tmp_path, places, data):
  for part in range(2):
    frame = small_log.frame()[4 * part : 4 * part + 4]
    frame.to_csv(tmp_path / f"day-{part}.csv", index=False)
  _, items, schema = places
  pattern, files = f"{tmp_path}/day-*.csv", sorted(tmp_path.glob("*.csv"))
  for log in (tmp_path, pattern, files):
    assert small_log.read(log, items, schema).fingerprint() == data.fingerprint()


def test_parquet_may_hold_dates_numbers_and_categories(tmp_path, places, data):
  frame = small_log.frame()
  frame["at"] = pd.to_datetime(frame["at"])
  frame["gender"] = frame["gender"].astype("category")
  frame["click"] = frame["click"].astype(bool)
  _, items, schema = places
  path, *_ = small_log.write(tmp_path, frame, name="log.parquet")
  assert small_log.read(path, items, schema).fingerprint() == data.fingerprint()


def test_without_an_items_file_the_catalogue_is_what_was_logged(places):
  data = small_log.read(places[0], None, BARE)
  assert data.schema.item_id.vocabulary == ("p0", "p1", "p2")
  np.testing.assert_array_equal(data.titles, ["p0", "p1", "p2"])
  assert data.notes == ("no items file: the catalogue is the 3 items that were logged",)


def test_a_schema_with_item_features_asks_for_the_file(places):
  with pytest.raises(
    InputError, match=r"item features, a title or times .* which are columns of an items file"
  ):
    small_log.read(places[0], None, places[2])


def test_without_propensities_there_are_none(places):
  data = small_log.read(places[0], None, dataclasses.replace(BARE, propensity=None))
  assert data.rows.propensity is None
  assert not data.has_propensities
  assert "the log has no propensities; they have to be estimated" in data.notes
  estimated = data.with_propensities(np.full(8, 0.5))
  assert estimated.has_propensities
  np.testing.assert_array_equal(estimated.rows.reward, data.rows.reward)
  assert estimated.select(slice(0, 3)).rows.propensity.size == 3


def test_users_of_a_file_keep_its_order_and_need_no_rows(tmp_path, places):
  users = pd.DataFrame({"id": ["v3", "v9", "v0", "v1", "v2"], "gender": list("FMFMF")})
  users.to_csv(tmp_path / "users.csv", index=False)
  schema = dataclasses.replace(LogSchema.from_file(places[2]), user_key="id")
  data = small_log.read(places[0], places[1], schema, tmp_path / "users.csv")
  assert data.schema.user_id.vocabulary == ("v3", "v9", "v0", "v1", "v2")
  np.testing.assert_array_equal(data.users["gender"], list("FMFMF"))
  np.testing.assert_array_equal(data.rows.user_index, [2, 3, 4, 0] * 2)


def test_without_user_ids_combinations_of_features_are_the_users(tmp_path):
  frame = pd.DataFrame(
    {
      "item_id": list("xyxy"),
      "propensity": 0.5,
      "reward": [0, 1, 0, 1],
      "a": ["p|q", "p", "p|q", "p"],
      "b": ["r", "q|r", "r", "q|r"],  # side by side they read alike, escaped they do not
    }
  )
  frame.to_csv(tmp_path / "log.csv", index=False)
  features = tuple(FeatureColumn(name, "categorical") for name in "ab")
  schema = LogSchema(user_id=None, user_features=features)
  data = small_log.read(tmp_path / "log.csv", None, schema)
  assert data.num_users == 2
  np.testing.assert_array_equal(data.users["a"][data.rows.user_index], frame["a"])
  np.testing.assert_array_equal(data.users["b"][data.rows.user_index], frame["b"])
  assert not data.schema.user_id.embedded
  with pytest.raises(InputError, match=r"users.csv: a users file needs ids"):
    small_log.read(tmp_path / "log.csv", None, schema, tmp_path / "users.csv")


def test_scores_and_splits_come_along(tmp_path):
  frame = small_log.frame().assign(score=np.arange(8) / 4, part=["train"] * 6 + ["val", "test"])
  path, *_ = small_log.write(tmp_path, frame)
  schema = dataclasses.replace(BARE, ranker_score="score", split="part")
  data = small_log.read(path, None, schema)
  np.testing.assert_array_equal(data.ranker_score, np.arange(8, dtype=np.float32) / 4)
  np.testing.assert_array_equal(data.split_label, frame["part"])
  part = data.select(np.array([7, 0]))
  assert (part.split_label.tolist(), part.ranker_score.tolist()) == (["test", "train"], [1.75, 0.0])


def test_a_time_that_is_context_is_read_as_seconds(tmp_path, places):
  context = (FeatureColumn("moment", "numeric", column="at"),)
  data = small_log.read(
    places[0], None, dataclasses.replace(BARE, time="at", context_features=context)
  )
  np.testing.assert_array_equal(data.rows.context["moment"], data.time)


def test_whole_numbers_are_ordered_as_numbers(tmp_path):
  frame = small_log.frame(20).assign(product=np.arange(20)[::-1])
  path, *_ = small_log.write(tmp_path, frame)
  data = small_log.read(path, None, BARE)
  assert data.schema.item_id.vocabulary == tuple(map(str, range(20)))
  np.testing.assert_array_equal(data.rows.action, np.arange(20)[::-1])


def test_users_that_first_come_in_a_later_chunk_keep_their_features(tmp_path, monkeypatch):
  monkeypatch.setattr("tf_twostage.data.files.csv_format._BLOCK", 128)  # a row or two
  data = small_log.read(*small_log.write(tmp_path))
  np.testing.assert_array_equal(data.users["gender"], ["F", "M", "F", "M"])
  frame = small_log.frame()
  frame.loc[7, "gender"] = "F"
  with pytest.raises(InputError, match=r"'gender' must be the same.*; 1 of 8 .*line 9, row 7"):
    small_log.read(*small_log.write(tmp_path, frame))


def test_the_fingerprint_sees_every_array(data):
  changed = [
    dataclasses.replace(data, time=data.time + 1),
    dataclasses.replace(data, titles=data.titles[::-1]),
    data.with_propensities(data.rows.propensity / 2),
    data.select(slice(1, 8)),
  ]
  assert len({d.fingerprint() for d in (data, *changed)}) == 5


@pytest.mark.parametrize(
  "change",
  [{"time": np.zeros(7)}, {"titles": np.array(["x"])}, {"split_label": np.array(["train"])}],
)
def test_arrays_of_other_sizes_are_refused(data, change):
  with pytest.raises(InputError, match="found and expected sizes differ"):
    dataclasses.replace(data, **change)


def test_open_bandit_loads(test_data):
  directory = test_data / "open-bandit" / "bts" / "all"
  if not directory.exists():
    pytest.skip("TF_TWOSTAGE_TEST_DATA holds no open-bandit/bts/all")
  data = small_log.read(directory / "all.csv", directory / "item_context.csv", "open_bandit")
  assert isinstance(data, BanditLog)
  raw = pd.read_csv(directory / "all.csv", index_col=0)
  assert (len(data.rows), data.num_items) == (10_000, 80)
  np.testing.assert_array_equal(data.rows.action, raw["item_id"])
  np.testing.assert_array_equal(data.rows.reward, raw["click"])
  np.testing.assert_allclose(data.rows.propensity, raw["propensity_score"], rtol=1e-6)
  features = [f"user_feature_{i}" for i in range(4)]
  assert data.num_users == len(raw[features].drop_duplicates())
  for name in features:
    np.testing.assert_array_equal(data.users[name][data.rows.user_index], raw[name])
  moments = pd.to_datetime(raw["timestamp"], format="ISO8601").astype("datetime64[us, UTC]")
  np.testing.assert_array_equal(data.time, moments.astype("int64") / 1e6)


def make_frames():
  """A frame of logged rows and one of items, with columns of every kind."""
  log = small_log.frame(40).assign(at=pd.date_range("2024-05-01", periods=40, freq="h"))
  log["product"] = np.arange(40) % 3
  items = pd.DataFrame(
    {
      "product": [0, 1, 2, 9],
      "title": ["Zero", "One", "Two", "Nine"],
      "genres": ["a|b", "", "b", "c|a"],
      "tags": [["x"], ["y", "x"], [], ["y"]],
      "price": [1.0, 2.5, 0.0, 4.0],
      "size": pd.Categorical(["S", "M", "S", "M"]),
      "since": pd.to_datetime(["2020-01-01"] * 4),
    }
  )
  return log, items


COLUMNS = {"user": "visitor", "item": "product", "propensity": "pscore", "reward": "click"}


def test_a_frame_is_a_log_whose_item_features_are_inferred():
  log, items = make_frames()
  data = BanditLog.from_pandas(log, **COLUMNS, time="at", context=["hour"], items=items)
  assert data.schema.item == (
    Id("item_id", ("0", "1", "2", "9")),
    Bag("genres", ("a", "b", "c"), max_length=2),
    Bag("tags", ("x", "y"), max_length=2),
    Numeric("price", offset=0.0, scale=4.0),
    Categorical("size", ("M", "S")),
  )
  np.testing.assert_array_equal(data.items["tags"], [["x", ""], ["y", "x"], ["", ""], ["y", ""]])
  np.testing.assert_array_equal(data.titles, items["title"])
  np.testing.assert_array_equal(data.rows.action, np.arange(40) % 3)
  seconds = (log["at"] - pd.Timestamp(0)) / pd.Timedelta(seconds=1)
  np.testing.assert_array_equal(data.time, seconds)
  assert "columns of items that are not read: since" in data.notes[-1]
  assert "log" in data._repr_html_()


def test_a_frame_equals_a_file(tmp_path, data):
  features = {"genres": "bag", "price": "numeric"}
  same = BanditLog.from_pandas(
    small_log.frame(),
    **COLUMNS,
    position="slot",
    time="at",
    context=["hour"],
    user_features={"gender": "categorical"},
    items=small_log.items(),
    item_features=features,
    title="name",
  )
  assert same.fingerprint() == data.fingerprint()


@pytest.mark.parametrize("batch", [None, 3])
def test_a_dataset_equals_a_frame(batch):
  log, items = make_frames()
  dataset = tf.data.Dataset.from_tensor_slices(dict(log.drop(columns="at")))
  dataset = dataset if batch is None else dataset.batch(batch)
  read = BanditLog.from_dataset(dataset, **COLUMNS, items=items)
  assert read.fingerprint() == BanditLog.from_pandas(log, **COLUMNS, items=items).fingerprint()
  with pytest.raises(InputError, match="never ends"):
    BanditLog.from_dataset(dataset.repeat(), **COLUMNS)


@pytest.mark.parametrize(
  ("column", "value", "message"),
  [
    ("pscore", 2.0, r"log: column 'pscore' must lie in \(0, 1\]; 1 of 40 .*row 7, value '2.0'"),
    ("click", np.nan, "log: column 'click' must be >= 0.*row 7, value missing"),
    ("product", 5, "unknown item, not in items; 1 of 40 .*row 7, value '5'"),
    ("visitor", None, "'visitor' must not be blank"),
  ],
)
def test_bad_cells_of_a_frame_are_named(column, value, message):
  log, items = make_frames()
  log[column] = log[column].astype(object)
  log.loc[7, column] = value
  with pytest.raises(InputError, match=message):
    BanditLog.from_pandas(log, **COLUMNS, items=items)
  kept = BanditLog.from_pandas(log, **COLUMNS, items=items, on_bad_rows="skip")
  assert len(kept) == 39


def test_missing_columns_of_a_frame_are_named():
  log, items = make_frames()
  with pytest.raises(InputError, match=r"log: no column 'p' \(propensity\); found 'visitor'"):
    BanditLog.from_pandas(log, **{**COLUMNS, "propensity": "p"})
  with pytest.raises(InputError, match="items: no column 'product'"):
    BanditLog.from_pandas(log, **COLUMNS, items=items.rename(columns={"product": "id"}))


def test_the_parts_of_a_split_share_users_and_items():
  log, items = make_frames()
  data = BanditLog.from_pandas(log, **COLUMNS, time="at", items=items)
  train, validation, test = data.split(validation=0.2, test=0.1)
  assert [len(part) for part in (train, validation, test)] == [28, 8, 4]
  assert train.time.max() < validation.time.min()
  assert train.items is test.items
  with pytest.raises(InputError, match="a log cannot be empty; raise the share of test rows"):
    data.split(test=0)


@pytest.mark.parametrize("rows", [[1000], np.ones(5, bool), np.array([0.5]), "first"])
def test_rows_that_do_not_exist_are_refused(data, rows):
  with pytest.raises(InputError, match=rf"no such rows .* a mask of the {len(data)} rows, indices"):
    data.select(rows)


@pytest.mark.parametrize(
  ("wrong", "words"),
  [
    ({"frame": [1]}, "the log must be a DataFrame, got list"),
    ({"items": {"item": [1]}}, "items must be a DataFrame, got dict"),
    ({"item_features": ["price"]}, "item_features must be a dict"),
    ({"propensity": 0}, "column names must be text, got 0"),
    ({"items": pd.DataFrame({"item": [1], 7: [2]})}, r"column names must be text, got \[7\]"),
    ({"context": "device"}, "context must be a list of numeric columns, got 'device'"),
    ({"context": {"device": "categorical"}}, "make them user features"),
  ],
)
def test_wrong_kinds_of_arguments_are_refused(wrong, words):
  frame = pd.DataFrame({"user": [1], "item": [1], "click": [1], "device": ["m"]})
  given = {"frame": frame, **wrong}
  with pytest.raises(InputError, match=words):
    BanditLog.from_pandas(given.pop("frame"), user="user", item="item", reward="click", **given)


def test_memory_is_in_proportion_to_the_text():
  """One long cell does not widen the others: NumPy's unicode would take 1.6 GB for each column."""
  count, long = 2000, "x" * 200_000
  items = pd.DataFrame({"product": [f"p{i}" for i in range(count)], "brand": "b", "tags": "a|b"})
  items["title"] = [f"Item {i}" for i in range(count)]
  items.loc[7, ["product", "title", "brand", "tags"]] = long
  log = small_log.frame(40).assign(product="p1")
  kinds = {"brand": "categorical", "tags": "bag"}
  tracemalloc.start()
  data = BanditLog.from_pandas(log, **COLUMNS, items=items, item_features=kinds)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert data.titles[7] == data.items["brand"][7] == data.items["tags"][7, 0] == long
  assert peak < 50e6


@pytest.mark.parametrize(("separator", "noted"), [("|", True), (";", False)])
def test_a_bag_that_another_text_separates_is_noted(tmp_path, separator, noted):
  pd.DataFrame({"user_id": [1, 2], "item_id": list("xy"), "reward": [1, 0]}).to_csv(
    tmp_path / "log.csv", index=False
  )
  items = pd.DataFrame({"item_id": list("xy"), "genres": ["Drama;War", "War;Comedy"]})
  items.to_csv(tmp_path / "items.csv", index=False)
  bag = {"kind": "bag", "separator": separator}
  schema = LogSchema.from_dict({"propensity": None, "item_features": {"genres": bag}})
  log = BanditLog.from_files(tmp_path / "log.csv", items=tmp_path / "items.csv", schema=schema)
  text = "genres: no cell of this bag has the separator '|', but many have ';'"
  assert any(note.startswith(text) for note in log.notes) == noted
