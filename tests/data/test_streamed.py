"""Rows on disk: their order, resuming, sharing of batches, and damage that is named."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tf_twostage.data import streamed
from tf_twostage.data.rows import LogRows, Rewards, Slices
from tf_twostage.data.streamed import WINDOW
from tf_twostage.errors import InputError, RunError

USERS = 7
FEATURES = {"code": np.arange(USERS, dtype=np.int32) * 10}


def numbered(n):
  """A log whose rows can be told apart by every column; every third is rewarded."""
  row = np.arange(n)
  context = {"time": row / 3 + 1e9, "below_zero": -row * 0.1}
  return LogRows(row % USERS, row, (row + 1) / n, np.where(row % 3, 0.0, row + 0.5), context)


def write(directory, n, parts=3, **options):
  log = numbered(n)
  return streamed.write(
    (log.select(rows) for rows in np.array_split(np.arange(n), parts)), directory, **options
  )


def batches(log, steps, **options):
  options = {"seed": 5, **options}
  return list(log.batches(FEATURES, **options).take(steps).as_numpy_iterator())


def rows(log, steps, **options):
  return np.concatenate([batch["action"] for batch in batches(log, steps, **options)])


ROWS = 20 * WINDOW


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  """960 rows in blocks of 7: 2.9 windows, and a last block of one row."""
  return write(tmp_path_factory.mktemp("log"), ROWS, block=7)


def test_files_hold_the_rows_of_the_log_bit_for_bit(small):
  given = numbered(ROWS)
  (batch,) = batches(small, 1, batch_size=ROWS)
  order = batch["action"]
  np.testing.assert_array_equal(np.sort(order), np.arange(ROWS))
  assert set(batch) == {"user", "context", "user_index", "action", "propensity", "reward"}
  for name, column in given.columns().items():
    np.testing.assert_array_equal(batch[name], column[order])
    assert batch[name].dtype == column.dtype
  for name, column in given.context.items():
    np.testing.assert_array_equal(batch["context"][name], column[order])
  np.testing.assert_array_equal(batch["user"]["code"], given.user_index[order] * 10)


def test_size_rewards_and_item_counts_are_those_of_the_log(small):
  given = numbered(ROWS)
  assert len(small) == ROWS
  assert small.rewards() == pytest.approx(given.rewards())
  assert small.last_user == USERS - 1
  np.testing.assert_array_equal(small.shown(1000), given.shown(1000))
  np.testing.assert_array_equal(small.positives().shown(960), given.positives().shown(960))
  rewarded = small.positives()
  assert len(rewarded) == len(given.positives()) == 320
  (batch,) = batches(rewarded, 1, batch_size=320)
  np.testing.assert_array_equal(np.sort(batch["action"]), np.arange(0, 960, 3))


@pytest.mark.parametrize("batch_size", [96, 20, 300])
def test_a_pass_holds_each_row_once_and_passes_join_without_a_gap(small, batch_size):
  seen = rows(small, 5 * ROWS // batch_size, batch_size=batch_size)
  for one_pass in seen.reshape(5, ROWS):
    np.testing.assert_array_equal(np.sort(one_pass), np.arange(ROWS))


def test_a_batch_may_hold_several_passes(tmp_path):
  assert set(np.bincount(rows(write(tmp_path, 5), 3, batch_size=20))) == {12}


def test_passes_and_seeds_differ_and_the_seed_fixes_them(small):
  seen = []
  for place, seed in enumerate((1, 1, 2)):
    tf.random.set_seed(place)  # which changes nothing
    seen.append(rows(small, 40, batch_size=48, seed=seed))
  first, again, other = seen
  np.testing.assert_array_equal(first, again)
  assert (first != other).mean() > 0.9
  assert (first[:960] != first[960:]).mean() > 0.9


def test_a_resumed_stream_equals_an_uninterrupted_one(small):
  """A pass is 16 batches, a window 5.6; the last window of a pass is short."""
  options = {"batch_size": 60, "slices": Slices(1, 3, 4)}
  taken = 2
  whole = batches(small, 40 * taken, **options)
  for start_step in (1, 5, 6, 11, 15, 16, 37):
    resumed = batches(small, 3 * taken, start_step=start_step, **options)
    for expected, found in zip(whole[start_step * taken :], resumed, strict=False):
      tf.nest.map_structure(np.testing.assert_array_equal, expected, found)


def test_workers_that_share_batches_take_them_whole(small):
  readers = [(0, 1), (1, 4)]
  steps, options = 20, {"batch_size": 60}
  whole = rows(small, steps, **options).reshape(steps, 60)
  parts = [
    rows(small, steps * (end - begin), slices=Slices(begin, end, 4), **options).reshape(steps, -1)
    for begin, end in readers
  ]
  np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_batches_have_static_shapes(small):
  dataset = small.batches(FEATURES, batch_size=48, seed=0, slices=Slices(0, 1, 2))
  assert all(spec.shape == (24,) for spec in tf.nest.flatten(dataset.element_spec))


def test_neighbours_in_the_log_are_not_neighbours_in_a_batch(tmp_path):
  n = 400 * WINDOW
  order = rows(write(tmp_path, n, block=100), 20, batch_size=n // 20).astype(float)
  # The correlation of two random orders is normal with deviation 1 / sqrt(n - 1).
  bound = 4.5 / np.sqrt(n - 1)
  assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < bound
  # Both windows hold rows of all of the log: within one, order says nothing of place.
  assert abs(np.corrcoef(order[: n // 4], np.arange(n // 4))[0, 1]) < 2 * bound


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"batch_size": 0}, "batch_size must be >= 1"),
    ({"batch_size": 48, "start_step": -1}, "start_step must be >= 0"),
    ({"batch_size": 48, "slices": Slices(0, 1, 5)}, "a multiple of 5"),
  ],
)
def test_impossible_batches_are_refused(small, options, message):
  with pytest.raises(InputError, match=message):
    small.batches(FEATURES, seed=0, **options)


def test_tables_that_lack_users_are_refused(small):
  with pytest.raises(InputError, match="end before user 6"):
    small.batches({"code": np.zeros(USERS - 1)}, batch_size=48, seed=0)


def test_an_empty_log_is_refused(tmp_path):
  with pytest.raises(InputError, match="no rows to write"):
    streamed.write([numbered(3).select(slice(0, 0))], tmp_path)


def test_without_rewards_there_is_nothing_to_learn(tmp_path):
  log = streamed.write([dataclasses.replace(numbered(9), reward=np.zeros(9))], tmp_path)
  assert log.rewards() == Rewards(0.0, 0.0)
  with pytest.raises(InputError, match="any with reward > 0"):
    log.positives().batches(FEATURES, batch_size=4, seed=0)


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0xFF
  path.write_bytes(data)


DAMAGES = {
  "flipped": (flip, "was cut or changed after it was written"),
  "cut": (lambda path: path.write_bytes(path.read_bytes()[:-20]), "was cut or changed"),
  "emptied": (lambda path: path.write_bytes(b""), "was cut or changed"),
  "removed": (lambda path: path.unlink(), r"cannot be read \(No such file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_damaged_later_is_named(tmp_path, damage):
  break_it, message = DAMAGES[damage]
  log = write(tmp_path / "stage" / "rows", 2 * WINDOW, block=7)
  path = tmp_path / "stage" / "rows" / "all-00005.rows"
  break_it(path)
  with (
    pytest.raises(RunError, match=f"{path}: {message}.*; run the same command again"),
    log.reading(),
  ):
    batches(log, 3, batch_size=48)


def test_errors_that_no_file_causes_are_not_replaced(small):
  with pytest.raises(tf.errors.InvalidArgumentError), small.reading():
    tf.debugging.assert_equal(1, 2)


def test_a_description_that_cannot_be_read_is_named(tmp_path):
  with pytest.raises(RunError, match=r"rows.json: cannot be read"):
    streamed.load(tmp_path)


@pytest.fixture(scope="module")
def service():
  dispatcher = tf.data.experimental.service.DispatchServer()
  address = dispatcher.target.split("://")[1]
  config = tf.data.experimental.service.WorkerConfig(
    dispatcher_address=address, heartbeat_interval_ms=50
  )
  workers = [tf.data.experimental.service.WorkerServer(config) for _ in range(2)]
  yield dispatcher.target
  del workers, dispatcher


def test_a_data_service_gives_each_row_once_a_pass(small, service):
  served = dataclasses.replace(small, service=service)
  seen = rows(served, 3, batch_size=960).reshape(3, -1)
  for one_pass in seen:
    np.testing.assert_array_equal(np.sort(one_pass), np.arange(960))
  assert (seen[0] != seen[1]).mean() > 0.7
  assert len(rows(served.positives(), 2, batch_size=48)) == 96


@pytest.mark.parametrize(
  ("address", "message"),
  [("localhost:5", "write grpc://HOST:PORT"), ("grpc://localhost:1", "nothing answers there")],
)
def test_a_data_service_that_is_not_there_is_named(small, address, message):
  with pytest.raises(InputError, match=message):
    batches(dataclasses.replace(small, service=address), 1, batch_size=48)


def test_a_data_service_does_not_slice(small, service):
  with pytest.raises(InputError, match="whole batches to one reader"):
    batches(dataclasses.replace(small, service=service), 1, batch_size=48, slices=Slices(0, 1, 2))
