"""Fixtures shared by all tests."""

import os
import pathlib

import pytest

import tf_twostage  # noqa: F401  (selects Keras 2 before anything else can touch tf.keras)

# What takes longest, in descending order: begun first, it is not left for one process at the end.
LONGEST = (
  "test_launch_interrupted",
  "test_launch",
  "test_launch_movielens",
  "test_distribution",
  "test_launch_xmc",
  "test_launch_own_log",
  "test_environment_own_log",
  "test_environment_streaming",
  "test_training",
  "test_loop",
  "test_kill",
  "test_given",
  "test_policy_evaluation",
  "test_exporting",
  "test_propensities",
  "test_environment_xmc",
  "test_every_loss",
)


def pytest_collection_modifyitems(items):
  place = {name: number for number, name in enumerate(LONGEST)}
  items.sort(key=lambda item: place.get(item.path.stem, len(place)))


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
