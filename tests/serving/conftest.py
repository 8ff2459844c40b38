"""One export for all tests of this directory."""

import pytest
import tensorflow as tf

from tests.serving import small
from tf_twostage import serving
from tf_twostage.serving import check, local_server


@pytest.fixture(scope="session")
def export_and_replay(tmp_path_factory):
  directory = tmp_path_factory.mktemp("saved_models") / "movies"
  replay, results = check.replay, []

  def kept(*arguments):
    results.append(replay(*arguments, repeats=2))
    return results[0]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(check, "replay", kept)
    version = serving.export(
      small.recommender(), directory, small.requests(), extra={"about.json": b"{}"}
    )
  return version, results[0]


@pytest.fixture(scope="session")
def exported(export_and_replay):
  """movies/1: a version whose answers a fresh process has repeated."""
  return export_and_replay[0]


@pytest.fixture(scope="session")
def replayed(export_and_replay):
  """The answers and times of that process."""
  return export_and_replay[1]


@pytest.fixture(scope="session")
def signatures(exported):
  """Signatures of the SavedModel."""
  return tf.saved_model.load(str(exported)).signatures


@pytest.fixture(scope="session")
def server(exported):
  """The address of a local server of that version."""
  with local_server.serve(exported.parent) as address:
    yield address
