"""Runs that are killed or stopped, as real processes, and go on to the same end."""

import json
import signal
import time

import pytest

from tests import interrupted_runs as runs
from tests import workers

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
  assert "resuming after" in said
  assert "stopped by SIGTERM after step" in said.splitlines()[-1]
  assert "which is saved; the same command resumes the run" in said.splitlines()[-1]
  assert "Traceback" not in said
  assert runs.finish(tmp_path, EPOCHS) == expected
  assert runs.histories(tmp_path) == runs.histories(root)


def test_a_job_whose_worker_is_killed_goes_on_to_the_end_of_one_process(whole, tmp_path):
  one, several = tmp_path / "one", tmp_path / "several"
  for root in (one, several):
    runs.share_environment(whole[0], root)
  arguments = ("--loss=ips", "--epochs=4")
  expected = runs.finish(one, *arguments)

  command = runs.command(several, *arguments, "--distribution=multi_worker")
  job = workers.start(command, {"worker": 2})
  while not runs.checkpoints(several) and all(p.poll() is None for p in job.values()):
    time.sleep(0.02)
  job["worker 1"].kill()
  ends = workers.ended(job)
  assert ends["worker 1"][0] == -signal.SIGKILL
  code, _, said = ends["worker 0"]
  assert code == 1, said
  assert "another worker has stopped" in said.splitlines()[-1]
  assert "Traceback" not in said

  for task, (code, out, said) in workers.ended(workers.start(command, {"worker": 2})).items():
    assert code == 0, said
    assert "resuming after" in said
    assert ("Best epoch" in out) == (task == "worker 0")  # the chief
  assert [p.name for p in (several / "export").iterdir() if p.is_dir()] == ["1"]
  metrics = json.loads((several / "run" / "metrics.json").read_text())
  assert {name: metrics[name] for name in expected} == expected
  (found,), (wanted,) = runs.histories(several), runs.histories(one)
  for epoch, other in zip(found, wanted, strict=True):
    assert epoch["training"] == pytest.approx(other["training"], rel=1e-4)
