"""Fixtures shared by all tests."""

import os
import pathlib

import pytest

import tf_twostage  # noqa: F401  (selects Keras 2 before anything else can touch tf.keras)


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
  """The directory of real data sets, or a skip that says how to provide it."""
  root = os.environ.get("TF_TWOSTAGE_TEST_DATA")
  if not root:
    pytest.skip(
      "set TF_TWOSTAGE_TEST_DATA to a directory that holds ml-1m/, ml-1m-reference/, delicious/ and"
      " open-bandit/"
    )
  return pathlib.Path(root)
