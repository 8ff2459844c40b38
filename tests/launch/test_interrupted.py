"""Runs that are killed or stopped, as real processes, and go on to the same end."""

import json
import signal

import pytest

from tests import commands, workers
from tests import interrupted_runs as runs

# Epochs of 17 steps, without random draws: several processes learn what one learns.
FLAGS = ("--loss=ips", "--epochs=6")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """An uninterrupted run of one process, and its metrics."""
  root = tmp_path_factory.mktemp("whole")
  return root, runs.finish(root, *FLAGS)


def test_a_run_killed_and_stopped_ends_as_an_uninterrupted_one(whole, tmp_path):
  root, expected = whole
  runs.share_environment(root, tmp_path)
  code, _ = runs.stop(tmp_path, signal.SIGKILL, 0.05, *FLAGS)
  assert code == -signal.SIGKILL
  code, said = runs.stop(tmp_path, signal.SIGTERM, 0.0, *FLAGS)
  assert code == 143
  assert "resuming after" in said
  assert "stopped by SIGTERM after step" in said.splitlines()[-1]
  assert "which is saved; the same command resumes the run" in said.splitlines()[-1]
  assert "Traceback" not in said
  assert runs.finish(tmp_path, *FLAGS) == expected
  assert runs.histories(tmp_path) == runs.histories(root)


def test_a_job_whose_worker_is_killed_ends_as_a_run_of_one_process(whole, tmp_path):
  root, expected = whole
  runs.share_environment(root, tmp_path)
  flags = runs.flags(tmp_path, *FLAGS, "--distribution=multi_worker")

  job = workers.start({"worker": 2}, commands.become, "train", flags)
  job["worker 0"].wait_for(lambda: runs.checkpoints(tmp_path))
  job["worker 1"].stop(signal.SIGKILL)
  code, _, said = job["worker 0"].end()
  assert code == 1, said
  assert "another worker has stopped" in said.splitlines()[-1]
  assert "Traceback" not in said

  job = workers.start({"worker": 2}, commands.become, "train", flags)
  for task, worker in job.items():
    code, out, said = worker.end()
    assert code == 0, said
    assert "resuming after" in said
    assert ("Best epoch" in out) == (task == "worker 0")  # the chief
  assert [p.name for p in (tmp_path / "export").iterdir() if p.is_dir()] == ["1"]
  metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
  assert {name: metrics[name] for name in expected} == expected
  (found,), (wanted,) = runs.histories(tmp_path), runs.histories(root)
  for epoch, other in zip(found, wanted, strict=True):
    assert epoch["training"] == pytest.approx(other["training"], rel=1e-4)
