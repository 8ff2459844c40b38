"""Fixtures shared by all tests."""

import os
import pathlib

import pytest

import tf_twostage  # noqa: F401  (selects Keras 2 before anything else can touch tf.keras)

# What takes longest, in descending order: begun first, it is not left for one process at the end.
TESTS = pathlib.Path(__file__).parent
LONGEST = (
  "launch/test_train",
  "launch/test_interrupted",
  "environment/test_user_log",
  "losses/test_every_loss",
  "training/test_loop",
  "test_goldens",
  "test_recommender",
  "launch/test_xmc",
  "training/test_distribution",
  "test_docs_python",
  "launch/test_installed",
  "environment/test_streaming",
  "launch/test_movielens",
  "test_extending",
  "serving/test_exporting",
  "launch/test_user_log",
  "environment/test_full_labels",
  "test_online_loop",
  "evaluation/test_propensities",
  "test_package",
  "data/test_streamed",
  "test_evaluate",
)


def pytest_xdist_auto_num_workers():
  """A process more than cores, since tests wait for servers and commands; each may need 3 GB."""
  return min(4, (os.cpu_count() or 1) + 1)


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
      "set TF_TWOSTAGE_TEST_DATA to a directory that holds ml-1m/, ml-1m-reference/, delicious/,"
      " jester/ and open-bandit/"
    )
  return pathlib.Path(root)
