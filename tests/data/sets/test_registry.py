"""Data sets by name."""

import subprocess
import sys

import pytest

from tests.data.sets import mini_movielens as mini
from tests.data.sets import xmc_files
from tf_twostage.data import sets
from tf_twostage.errors import InputError


def test_an_unknown_name_lists_the_known_ones():
  with pytest.raises(
    InputError, match="'movielens'; choose one of delicious, jester, movielens_1m, "
  ):
    sets.load("movielens")


def test_synthetic_is_the_default_synthetic_data():
  data = sets.load("synthetic")
  assert data.name == "synthetic"
  assert data.fingerprint() == sets.make_synthetic().fingerprint()


@pytest.mark.parametrize("name", ["synthetic", "wiki10_shape"])
def test_invented_data_refuse_a_directory(name):
  with pytest.raises(InputError, match=f"'{name}' reads no files; leave data_dir=somewhere out"):
    sets.load(name, "somewhere")


@pytest.mark.parametrize("name", ["wiki10", "delicious"])
def test_documents_are_read_from_the_directory(tmp_path, name):
  data = sets.make_xmc(5, 4, 30, 10, labels_per_document=2, features_per_document=6)
  xmc_files.write(data.train, tmp_path / "train.txt")
  xmc_files.write(data.test, tmp_path / "test.txt")
  loaded = sets.load(name, str(tmp_path))
  assert (loaded.name, loaded.fingerprint()) == (name, data.fingerprint())


def test_movielens_reads_the_directory(tmp_path):
  data = sets.load("movielens_1m", str(mini.write_directory(tmp_path)))
  assert (data.name, data.num_users) == ("movielens_1m", 3)


def test_missing_data_are_reported_without_loading_tensorflow(tmp_path):
  """TensorFlow takes seconds to load, which nobody with a mistyped path should wait for."""
  code = (
    "import sys\n"
    "from tf_twostage import errors\n"
    "from tf_twostage.data import sets\n"
    "try: sets.load('movielens_1m', sys.argv[1])\n"
    "except errors.InputError: sys.exit('tensorflow' in sys.modules)\n"
    "sys.exit('no error')"
  )
  command = [sys.executable, "-c", code, str(tmp_path / "none")]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
