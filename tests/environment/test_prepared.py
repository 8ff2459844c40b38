"""Prepared environments: what is read, what is refused."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests import prepared_environment
from tf_twostage import environment
from tf_twostage.config import Config, DataConfig
from tf_twostage.data import sets
from tf_twostage.errors import InputError
from tf_twostage.evaluation import full_information
from tf_twostage.workspace import Workspace


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
  monkeypatch.setitem(sets.DATASETS, "synthetic", lambda data_dir: prepared_environment.DATA)


@pytest.fixture
def files():
  return prepared_environment.contents()


def make(directory, **changes):
  config = dataclasses.replace(prepared_environment.config(directory), **changes)
  return environment.make(config, Workspace(directory / "stages"))


def everyone():
  return {"user_index": np.arange(prepared_environment.USERS, dtype=np.int32)}


# What is read


def test_log_relevance_and_ranker_are_those_of_the_files(files, tmp_path):
  world = make(files.write(tmp_path))
  np.testing.assert_array_equal(world.log.user_index, files.log["user_index"])
  np.testing.assert_array_equal(world.log.action, files.log["item_index"])
  np.testing.assert_allclose(world.log.propensity, files.log["propensity"])
  np.testing.assert_array_equal(world.log.reward, files.log["reward"])
  np.testing.assert_array_equal(world.evaluator.relevance, files.relevance)
  logits = world.ranker_logits(everyone())
  np.testing.assert_allclose(logits, files.user_vectors @ files.item_vectors.T, rtol=1e-5)


def test_logged_positives_are_excluded(files, tmp_path):
  world = make(files.write(tmp_path))
  expected = np.zeros((prepared_environment.USERS, prepared_environment.ITEMS), bool)
  for row in files.log.itertuples():
    expected[row.user_index, row.item_index] |= row.reward > 0
  np.testing.assert_array_equal(world.evaluator.excluded, expected)


def test_the_ranker_of_an_export_is_that_of_the_file(files, tmp_path):
  world = make(files.write(tmp_path))
  slates = np.tile(np.arange(prepared_environment.ITEMS)[::-1], (prepared_environment.USERS, 1))
  scores = world.slate_ranker({}, world.tables.users, slates)
  expected = (files.user_vectors @ files.item_vectors.T)[:, ::-1]
  np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)


def test_baselines_are_popularity_ranker_and_random(files, tmp_path):
  world = make(files.write(tmp_path))
  assert set(world.policies) == {"popularity", "ranker, all items", "random"}
  popularity = full_information.popularity(world.log, prepared_environment.ITEMS)
  np.testing.assert_allclose(
    world.policies["popularity"](everyone()),
    np.tile(popularity, (prepared_environment.USERS, 1)),
    rtol=1e-6,
  )


def test_nothing_is_simulated(files, tmp_path):
  world = make(files.write(tmp_path))
  assert not (tmp_path / "stages").exists()
  assert world.facts == {}


def test_baselines_are_scored_once(files, tmp_path, monkeypatch):
  world = make(files.write(tmp_path))
  stages = Workspace(tmp_path / "stages")
  scores = world.baselines(stages, prepared_environment.SLATE)
  assert (
    scores["popularity"]
    == world.evaluation(world.policies["popularity"], prepared_environment.SLATE)()
  )
  # The ranker's own order is the same with the ranker behind it, as far as it reaches.
  ranker = scores["ranker, all items"]["test"]
  assert ranker["one_stage"] == ranker["two_stage"]
  monkeypatch.setattr(environment.Environment, "evaluation", None)
  assert world.baselines(stages, prepared_environment.SLATE) == scores
  assert stages.timings["baselines"]["reused"]


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32"])
def test_vectors_of_any_number_type_are_read(files, tmp_path, dtype):
  files.user_vectors = (10 * files.user_vectors).astype(dtype)
  files.item_vectors = files.item_vectors.astype(dtype)
  logits = make(files.write(tmp_path)).ranker_logits(everyone())
  assert logits.dtype == tf.float32
  expected = files.user_vectors.astype(float) @ files.item_vectors.astype(float).T
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_indices_may_be_written_as_decimals_and_rewards_as_words(files, tmp_path):
  expected = files.log.copy()
  files.log["user_index"] = files.log["user_index"].astype(float)
  files.log["reward"] = files.log["reward"].astype(bool)
  log = make(files.write(tmp_path)).log
  np.testing.assert_array_equal(log.user_index, expected["user_index"])
  np.testing.assert_array_equal(log.reward, expected["reward"])


def test_columns_may_come_in_any_order_among_others(files, tmp_path):
  expected = files.log.copy()
  files.log = files.log[["reward", "propensity", "item_index", "user_index"]].assign(note="x")
  log = make(files.write(tmp_path)).log
  np.testing.assert_array_equal(log.action, expected["item_index"])
  np.testing.assert_array_equal(log.reward, expected["reward"])


def test_data_may_be_passed_without_a_name(files, tmp_path, monkeypatch):
  world = make(files.write(tmp_path))
  monkeypatch.delitem(sets.DATASETS, "synthetic")
  config = prepared_environment.config(tmp_path)
  workspace = Workspace(tmp_path / "stages")
  passed = environment.make(config, workspace, prepared_environment.DATA)
  assert passed.name == world.name


# The name


def flip_a_label(files):
  files.relevance[3, 4] ^= True


def change_a_reward(files):
  files.log.loc[7, "reward"] ^= 1


def move_a_vector(files):
  files.item_vectors[2, 1] += 1e-3


def test_the_same_files_have_the_same_name(files, tmp_path):
  names = {make(files.write(tmp_path / place)).name for place in ("a", "b")}
  assert len(names) == 1


@pytest.mark.parametrize("change", [flip_a_label, change_a_reward, move_a_vector])
def test_any_other_file_has_another_name(files, tmp_path, change):
  before = make(files.write(tmp_path / "before")).name
  change(files)
  assert make(files.write(tmp_path / "after")).name != before


def test_other_data_and_another_environment_seed_have_another_name(files, tmp_path, monkeypatch):
  files.write(tmp_path)
  name = make(tmp_path).name
  assert make(tmp_path, environment_seed=1).name != name
  other = sets.make_synthetic(prepared_environment.USERS, prepared_environment.ITEMS, 200, seed=1)
  monkeypatch.setitem(sets.DATASETS, "synthetic", lambda data_dir: other)
  assert make(tmp_path).name != name


# What is refused: one message with the file, the place, the count and the remedy


def refused(directory):
  with pytest.raises(InputError) as error:
    make(directory)
  message = str(error.value)
  assert "\n" not in message
  return message


@pytest.mark.parametrize("name", environment.PREPARED_FILES)
def test_a_missing_file_is_named(files, tmp_path, name):
  (files.write(tmp_path) / name).unlink()
  assert refused(tmp_path) == (
    f"environment={tmp_path}: no {name}; a prepared environment holds full_information.npz,"
    " bandit_log.csv, ranker.npz"
  )


def test_a_missing_directory_lacks_every_file(tmp_path):
  message = refused(tmp_path / "nowhere")
  assert f"environment={tmp_path / 'nowhere'}: no full_information.npz, bandit_log.csv" in message


ARRAYS = [
  ("full_information.npz", "relevance"),
  ("ranker.npz", "user_vectors"),
  ("ranker.npz", "item_vectors"),
]


def rewrite(directory, file, change):
  """Saves the arrays of an .npz as `change` leaves them."""
  with np.load(directory / file) as stored:
    arrays = dict(stored)
  change(arrays)
  np.savez(directory / file, **arrays)


@pytest.mark.parametrize(("file", "name"), ARRAYS)
def test_a_missing_array_is_named(files, tmp_path, file, name):
  files.write(tmp_path)
  rewrite(tmp_path, file, lambda arrays: arrays.update(something=arrays.pop(name)))
  message = refused(tmp_path)
  assert message.startswith(f"{tmp_path / file}: no array '{name}', found ['")
  assert "something" in message
  assert message.endswith("make the file again")


@pytest.mark.parametrize(("file", "name"), ARRAYS)
def test_a_wrong_shape_is_reported_with_the_expected_one(files, tmp_path, file, name):
  files.write(tmp_path)
  rewrite(tmp_path, file, lambda arrays: arrays.update({name: arrays[name][:-1]}))
  message = refused(tmp_path)
  rows = prepared_environment.ITEMS if name == "item_vectors" else prepared_environment.USERS
  assert message.startswith(f"{tmp_path / file}: {name} has shape ({rows - 1}, ")
  assert f"expected ({rows}, " in message
  assert "it belongs to another data set" in message


def test_labels_that_are_not_packed_are_refused(files, tmp_path):
  files.write(tmp_path)
  np.savez(tmp_path / "full_information.npz", relevance=files.relevance)
  assert "has shape (20, 15), expected (20, 2)" in refused(tmp_path)


def test_labels_of_another_type_are_refused(files, tmp_path):
  files.write(tmp_path)
  rewrite(
    tmp_path, "full_information.npz", lambda a: a.update(relevance=a["relevance"].astype(np.int64))
  )
  assert "relevance is int64, expected uint8; make the file again" in refused(tmp_path)


def test_vectors_that_are_text_are_refused(files, tmp_path):
  files.write(tmp_path)
  rewrite(tmp_path, "ranker.npz", lambda a: a.update(user_vectors=a["user_vectors"].astype("U9")))
  assert "user_vectors is <U9, expected float32; make the file again" in refused(tmp_path)


def test_vectors_of_two_widths_are_refused(files, tmp_path):
  files.item_vectors = files.item_vectors[:, :3]
  message = refused(files.write(tmp_path))
  assert message.startswith(
    f"{tmp_path / 'ranker.npz'}: user_vectors are 4 wide and item_vectors 3"
  )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_vectors_that_float32_cannot_hold_are_counted(files, tmp_path, value):
  files.item_vectors = files.item_vectors.astype(np.float64)
  files.item_vectors[[5, 11], [0, 2]] = value
  assert refused(files.write(tmp_path)) == (
    f"{tmp_path / 'ranker.npz'}: item_vectors must be finite; 2 of 15 rows break this (first:"
    " row 5); make the file again"
  )


@pytest.mark.parametrize("file", ["full_information.npz", "ranker.npz"])
@pytest.mark.parametrize("keep", [0, 20, -30])
def test_a_truncated_array_file_is_named(files, tmp_path, file, keep):
  path = files.write(tmp_path) / file
  path.write_bytes(path.read_bytes()[:keep])
  message = refused(tmp_path)
  assert message.startswith(f"{path}: not a readable .npz (")
  assert message.endswith("copy the file again")


def test_a_damaged_array_file_is_named(files, tmp_path):
  path = files.write(tmp_path) / "ranker.npz"
  np.savez_compressed(path, user_vectors=files.user_vectors, item_vectors=files.item_vectors)
  damaged = bytearray(path.read_bytes())
  damaged[200:260] = bytes(60)
  path.write_bytes(damaged)
  assert refused(tmp_path).startswith(f"{path}: not a readable .npz (")


@pytest.mark.parametrize("save", [np.save, lambda file, array: file.write(b"PK no zip after all")])
def test_a_file_of_another_kind_is_named(files, tmp_path, save):
  path = files.write(tmp_path) / "ranker.npz"
  with path.open("wb") as file:
    save(file, files.user_vectors)
  assert refused(tmp_path).startswith(f"{path}: not a readable .npz (")


def test_pickled_arrays_are_not_loaded(files, tmp_path):
  files.write(tmp_path)
  rewrite(tmp_path, "ranker.npz", lambda a: a.update(user_vectors=np.array([{}, None], object)))
  assert "not a readable .npz (Object arrays cannot be loaded" in refused(tmp_path)


def test_files_of_another_data_set_are_refused(files, tmp_path, monkeypatch):
  larger = sets.make_synthetic(num_users=21, num_items=15, num_ratings=200)
  monkeypatch.setitem(sets.DATASETS, "synthetic", lambda data_dir: larger)
  message = refused(files.write(tmp_path))
  assert "relevance has shape (20, 2), expected (21, 2)" in message
  assert "it belongs to another data set" in message


COLUMNS = ["user_index", "item_index", "propensity", "reward"]


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named(files, tmp_path, column):
  files.log = files.log.rename(columns={column: "other"})
  message = refused(files.write(tmp_path))
  assert message.startswith(
    f"{tmp_path / 'bandit_log.csv'}: missing column(s) ['{column}'] in a log of 60 rows; found ["
  )
  assert message.endswith("add them, or mend the header")


WHOLE = "must be a whole number in"


@pytest.mark.parametrize(
  ("column", "bad", "rule", "shown"),
  [
    ("user_index", 20, f"{WHOLE} [0, 20)", "20"),
    ("user_index", -1, f"{WHOLE} [0, 20)", "-1"),
    ("item_index", 15, f"{WHOLE} [0, 15)", "15"),
    ("item_index", 1.5, f"{WHOLE} [0, 15)", "1.5"),
    ("item_index", 10**30, f"{WHOLE} [0, 15)", str(10**30)),
    ("user_index", "", "must hold numbers", "nan"),
    ("item_index", "item_3", "must hold numbers", "item_3"),
    ("propensity", 0, "must lie in (0, 1]", "0.0"),
    ("propensity", -0.5, "must lie in (0, 1]", "-0.5"),
    ("propensity", 1.5, "must lie in (0, 1]", "1.5"),
    ("propensity", 1e-60, "must lie in (0, 1]", "0.0"),
    ("propensity", "nan", "must hold numbers", "nan"),
    ("propensity", "high", "must hold numbers", "high"),
    ("reward", -1, "must be >= 0 and at most 1e15", "-1.0"),
    ("reward", "inf", "must be >= 0 and at most 1e15", "inf"),
    ("reward", "yes", "must hold numbers", "yes"),
    ("reward", "", "must hold numbers", "nan"),
  ],
)
def test_bad_values_are_counted_with_the_first_row(files, tmp_path, column, bad, rule, shown):
  files.log = files.log.astype(object)
  files.log.loc[[9, 30], column] = bad
  message = refused(files.write(tmp_path))
  assert message.startswith(f"{tmp_path / 'bandit_log.csv'}: ")
  assert f"column '{column}' {rule}; 2 of 60 rows" in message
  assert f"(first: row 9, value '{shown}" in message
  assert message.endswith("drop these rows")


def test_a_log_of_a_header_alone_is_refused(files, tmp_path):
  files.log = files.log[:0]
  message = refused(files.write(tmp_path))
  assert message == f"{tmp_path / 'bandit_log.csv'}: the log has no rows; log some traffic first"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'a,b\n"never closed'])
def test_an_unreadable_csv_is_refused(files, tmp_path, content):
  path = files.write(tmp_path) / "bandit_log.csv"
  path.write_bytes(content)
  message = refused(tmp_path)
  assert message.startswith(f"{path}: not a readable CSV (")
  assert message.endswith("copy the file again")


def test_a_truncated_log_is_noticed_where_a_row_ends_early(files, tmp_path):
  path = files.write(tmp_path) / "bandit_log.csv"
  text = path.read_text().splitlines()
  path.write_text("\n".join([*text[:31], "3,4"]))
  message = refused(tmp_path)
  assert "column 'propensity' must hold numbers; 1 of 31 rows" in message
  assert "(first: row 30, value 'nan')" in message


# The published environment


def test_popularity_scores_what_is_published(test_data, monkeypatch, tmp_path):
  monkeypatch.undo()
  config = Config(
    slate_size=30,
    data=DataConfig(
      dataset="movielens_1m",
      data_dir=str(test_data / "ml-1m"),
      environment=str(test_data / "ml-1m-reference"),
    ),
  )
  world = environment.make(config, Workspace(tmp_path))
  assert len(world.log) == 30_200
  assert world.log.reward.mean() == pytest.approx(0.762, abs=5e-4)
  scores = world.evaluation(world.policies["popularity"], config.slate_size)()["test"]
  assert 100 * scores["two_stage"]["precision@10"] == pytest.approx(97.1, abs=0.3)
  assert 100 * scores["one_stage"]["precision@10"] == pytest.approx(96.3, abs=0.3)
