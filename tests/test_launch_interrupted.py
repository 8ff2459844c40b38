"""Runs that are killed or stopped, as real processes, and go on to the same end."""

import signal

import pytest

from tests import interrupted_runs as runs

EPOCHS = "--epochs=12"  # of 17 steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  root = tmp_path_factory.mktemp("whole")
  return root, runs.finish(root, EPOCHS)


def test_a_run_killed_and_stopped_ends_as_an_uninterrupted_one(whole, tmp_path):
  root, expected = whole
  runs.share_environment(root, tmp_path)
  code, _ = runs.stop(tmp_path, signal.SIGKILL, 0.05, EPOCHS)
  assert code == -signal.SIGKILL
  code, said = runs.stop(tmp_path, signal.SIGTERM, 0.0, EPOCHS)
  assert code == 143
  assert "going on after" in said
  assert "stopped by SIGTERM after step" in said.splitlines()[-1]
  assert "which is saved; the same command goes on" in said.splitlines()[-1]
  assert "Traceback" not in said
  assert runs.finish(tmp_path, EPOCHS) == expected
  assert runs.histories(tmp_path) == runs.histories(root)
