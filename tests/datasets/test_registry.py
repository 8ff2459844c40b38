"""Data sets by name."""

import subprocess
import sys

import pytest

from tests.datasets import mini_movielens as mini
from tf_twostage import datasets
from tf_twostage.errors import InputError


def test_an_unknown_name_lists_the_known_ones():
  with pytest.raises(InputError, match="'movielens'; choose one of movielens_1m, synthetic"):
    datasets.load("movielens")


def test_synthetic_is_the_default_synthetic_data():
  data = datasets.load("synthetic")
  assert data.name == "synthetic"
  assert data.fingerprint() == datasets.make_synthetic().fingerprint()


def test_synthetic_refuses_a_directory():
  with pytest.raises(InputError, match="leave out --data_dir=somewhere"):
    datasets.load("synthetic", "somewhere")


def test_movielens_reads_the_directory(tmp_path):
  data = datasets.load("movielens_1m", str(mini.write_directory(tmp_path)))
  assert (data.name, data.num_users) == ("movielens_1m", 3)


def test_missing_data_are_reported_without_loading_tensorflow(tmp_path):
  """TensorFlow takes seconds to load, which nobody with a mistyped path should wait for."""
  code = (
    "import sys\n"
    "from tf_twostage import datasets, errors\n"
    "try: datasets.load('movielens_1m', sys.argv[1])\n"
    "except errors.InputError: sys.exit('tensorflow' in sys.modules)\n"
    "sys.exit('no error')"
  )
  command = [sys.executable, "-c", code, str(tmp_path / "none")]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
