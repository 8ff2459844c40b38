"""MovieLens-1M through tensorflow-datasets: prepared, by hand, downloaded, or out of reach."""

import json
import shutil
import socket
import threading
import time

import numpy as np
import pytest

from tests.data.sets import mini_movielens as mini
from tf_twostage.data.sets import movielens_tfds
from tf_twostage.data.sets.movielens import load_movielens_1m
from tf_twostage.errors import InputError

tfds = pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module", autouse=True)
def offline():
  """Keeps tensorflow-datasets from asking its bucket, and from leaving empty directories behind."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tfds.core.DatasetInfo, "initialize_from_bucket", lambda self: None)
    yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  return mini.write_directory(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, directory):
  return mini.prepare_tfds(tmp_path_factory.mktemp("tfds"), directory)


@pytest.fixture
def root(tmp_path, monkeypatch):
  """An empty tensorflow-datasets data directory."""
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  return tmp_path


@pytest.fixture
def prepared_copy(root, prepared):
  shutil.copytree(prepared, root, dirs_exist_ok=True)
  return root


@pytest.fixture
def unreachable(monkeypatch):
  monkeypatch.setattr(movielens_tfds, "_reachable", lambda: False)


@pytest.fixture
def reachable(monkeypatch):
  monkeypatch.setattr(movielens_tfds, "_reachable", lambda: True)


def test_prepared_data_equal_the_files(prepared_copy, unreachable, directory):
  from_files, from_tfds = load_movielens_1m(str(directory)), load_movielens_1m()
  assert from_tfds.schema == from_files.schema
  for side in ("users", "items", "context"):
    for name, values in getattr(from_files, side).items():
      np.testing.assert_array_equal(getattr(from_tfds, side)[name], values, err_msg=name)
  assert from_tfds.fingerprint() == from_files.fingerprint()


def test_a_hand_downloaded_zip_is_used(root, unreachable, directory):
  mini.write_zip(root / "downloads" / "manual" / "ml-1m.zip")
  assert load_movielens_1m().fingerprint() == load_movielens_1m(str(directory)).fingerprint()


def test_prepared_data_come_before_the_zip(prepared_copy, unreachable):
  manual = prepared_copy / "downloads" / "manual" / "ml-1m.zip"
  manual.parent.mkdir(parents=True, exist_ok=True)
  manual.write_bytes(b"not a zip")
  assert load_movielens_1m().num_items == 5


def test_data_are_downloaded_and_prepared_when_the_host_is_reachable(
  root, reachable, directory, monkeypatch
):
  real_builder = tfds.builder
  asked = []

  def builder(name, data_dir):
    asked.append(name)
    return mini.offline_builder(real_builder(name, data_dir=data_dir), directory)

  monkeypatch.setattr(tfds, "builder", builder)
  assert load_movielens_1m().fingerprint() == load_movielens_1m(str(directory)).fingerprint()
  assert sorted(asked) == ["movielens/1m-movies:0.1.1", "movielens/1m-ratings:0.1.1"]
  load_movielens_1m()  # now prepared: nothing more is asked for
  assert len(asked) == 2


def test_a_failing_download_names_the_remedy(root, reachable, monkeypatch):
  def builder(name, data_dir):
    raise ConnectionError("reset by peer")

  monkeypatch.setattr(tfds, "builder", builder)
  message = "could not be prepared.*reset by peer.*set data_dir to"
  with pytest.raises(InputError, match=message):
    load_movielens_1m()


def test_out_of_reach_names_both_remedies(root, unreachable, monkeypatch):
  monkeypatch.setattr(tfds, "builder", lambda *_, **__: pytest.fail("must not be tried"))
  message = rf"not in {root} .*out of reach; download .*set data_dir to.*put it in {root}.*manual"
  with pytest.raises(InputError, match=message):
    load_movielens_1m()


def test_out_of_reach_is_found_out_within_a_second(root, monkeypatch):
  released = threading.Event()
  monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(30) and [])
  start = time.perf_counter()
  with pytest.raises(InputError, match="out of reach"):
    load_movielens_1m()
  seconds = time.perf_counter() - start
  released.set()
  assert seconds < 1.0


def test_a_listening_host_is_reachable_and_a_closed_one_is_not(monkeypatch):
  with socket.create_server(("127.0.0.1", 0)) as server:
    tcp = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", server.getsockname())
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [tcp])
    assert movielens_tfds._reachable()
  start = time.perf_counter()
  assert not movielens_tfds._reachable()
  assert time.perf_counter() - start < 0.5  # refused: no need to wait for the time limit


def test_a_truncated_record_file_is_named(prepared_copy):
  (records,) = prepared_copy.glob("movielens/1m-ratings/0.1.1/*.tfrecord*")
  records.write_bytes(records.read_bytes()[:-5])
  with pytest.raises(InputError, match=r"1m-ratings/0.1.1: damaged .*delete .*1m-ratings"):
    load_movielens_1m()


def test_a_missing_record_file_is_named(prepared_copy):
  (records,) = prepared_copy.glob("movielens/1m-movies/0.1.1/*.tfrecord*")
  records.unlink()
  with pytest.raises(InputError, match=r"1m-movies/0.1.1: damaged .*delete .*1m-movies"):
    load_movielens_1m()


def test_missing_rows_are_noticed(prepared_copy):
  path = prepared_copy / "movielens" / "1m-ratings" / "0.1.1" / "dataset_info.json"
  info = json.loads(path.read_text())
  (split,) = info["splits"]
  split["shardLengths"] = ["7"]
  path.write_text(json.dumps(info))
  with pytest.raises(InputError, match=r"damaged \(6 of 7 rows\)"):
    load_movielens_1m()


def test_bad_values_name_the_prepared_directory(tmp_path, monkeypatch):
  ratings = mini.RATINGS + b"3::1::6::978300000\n"
  directory = mini.write_directory(tmp_path / "files", ratings=ratings)
  monkeypatch.setenv("TFDS_DATA_DIR", str(mini.prepare_tfds(tmp_path / "tfds", directory)))
  message = r"1m-ratings/0.1.1: column 'rating' .*1 of 7 rows .*row \d, value '6.0'.*delete"
  with pytest.raises(InputError, match=message):
    load_movielens_1m()
