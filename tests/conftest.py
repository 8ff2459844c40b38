"""Fixtures shared by all tests."""

import os
import pathlib

import pytest

import tf_twostage  # noqa: F401  (selects Keras 2 before anything else can touch tf.keras)

# What takes longest, in descending order: begun first, it is not left for one process at the end.
TESTS = pathlib.Path(__file__).parent
LONGEST = (
  "launch/test_interrupted",
  "launch/test_train",
  "launch/test_movielens",
  "training/test_distribution",
  "launch/test_xmc",
  "launch/test_user_log",
  "test_goldens",
  "environment/test_user_log",
  "environment/test_streaming",
  "training/test_loop",
  "test_online_loop",
  "models/test_external",
  "test_evaluate",
  "serving/test_exporting",
  "evaluation/test_propensities",
  "environment/test_full_labels",
  "losses/test_every_loss",
)


def pytest_collection_modifyitems(items):
  place = {name: number for number, name in enumerate(LONGEST)}
  items.sort(
    key=lambda item: place.get(item.path.relative_to(TESTS).with_suffix("").as_posix(), len(place))
  )


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
