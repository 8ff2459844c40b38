"""Stages are built once, and writes are complete or absent."""

import json
import os

import pytest

import tf_twostage
from tf_twostage.errors import RunError
from tf_twostage.workspace import (
  Workspace,
  atomic_directory,
  atomic_write,
  fingerprint,
  remove_partial,
  write_json,
)


def counting_build(calls):
  def build(directory):
    calls.append(directory)
    (directory / "result").write_text(str(len(calls)))

  return build


def test_a_stage_is_built_once_for_each_set_of_inputs(tmp_path):
  calls = []
  workspace = Workspace(tmp_path)
  first, again, other = (
    workspace.stage("log", {"seed": seed}, counting_build(calls)) for seed in (1, 1, 2)
  )
  assert first == again != other
  assert (first / "result").read_text() == "1"
  assert (other / "result").read_text() == "2"


def test_another_version_of_the_package_builds_its_own_stages(tmp_path, monkeypatch):
  calls = []
  Workspace(tmp_path).stage("log", {}, counting_build(calls))
  monkeypatch.setattr(tf_twostage, "__version__", "next")
  Workspace(tmp_path).stage("log", {}, counting_build(calls))
  assert len(calls) == 2


def test_a_build_that_fails_leaves_no_stage(tmp_path):
  def fails(directory):
    (directory / "result").write_text("half")
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    Workspace(tmp_path).stage("log", {}, fails)
  stage = Workspace(tmp_path).stage("log", {}, counting_build([]))
  assert (stage / "result").read_text() == "1"
  assert [p.name for p in tmp_path.iterdir()] == [stage.name]


def test_a_stage_records_its_inputs_and_time(tmp_path):
  workspace = Workspace(tmp_path)
  stage = workspace.stage("log", {"seed": 1}, lambda directory: None)
  record = json.loads((stage / "stage.json").read_text())
  assert record["inputs"] == {"seed": 1}
  assert workspace.timings == {"log": {"seconds": record["seconds"], "reused": False}}


def test_a_worker_that_does_not_build_finds_the_chiefs_stage_or_says_what_to_do(
  tmp_path, monkeypatch
):
  def chief_builds():
    Workspace(tmp_path).stage("log", {}, counting_build([]))

  worker = Workspace(tmp_path, builds=False, barrier=chief_builds)
  assert (worker.stage("log", {}, counting_build(None)) / "result").exists()
  monkeypatch.setattr("tf_twostage.workspace._VISIBLE_AFTER", 0)
  with pytest.raises(RunError, match="give all workers the same work directory"):
    Workspace(tmp_path / "other", builds=False).stage("log", {}, counting_build(None))


def test_fingerprint_ignores_the_order_of_inputs():
  assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
  assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_a_file_is_replaced_in_one_step_or_stays(tmp_path):
  path = tmp_path / "metrics.json"
  write_json(path, {"a": 1})

  def fail():
    with atomic_write(path) as file:
      file.write_text("half")
      raise RuntimeError

  with pytest.raises(RuntimeError):
    fail()
  assert json.loads(path.read_text()) == {"a": 1}
  write_json(path, {"a": 2})
  assert json.loads(path.read_text()) == {"a": 2}
  assert list(tmp_path.iterdir()) == [path]


def test_a_directory_is_replaced_as_a_whole_or_stays(tmp_path):
  path = tmp_path / "log"
  with atomic_directory(path) as directory:
    (directory / "nested").mkdir()
    (directory / "nested" / "a").write_text("1")
  with pytest.raises(RuntimeError), atomic_directory(path) as directory:
    raise RuntimeError
  assert (path / "nested" / "a").exists()
  with atomic_directory(path) as directory:
    (directory / "b").write_text("2")
  assert [p.name for p in path.iterdir()] == ["b"]
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
  "sweep", [remove_partial, lambda root: Workspace(root).stage("log", {}, os.listdir)]
)
def test_the_remains_of_a_killed_process_are_removed(tmp_path, sweep):
  name = Workspace(tmp_path / "elsewhere").stage("log", {}, os.listdir).name
  root = tmp_path / "root"
  remains = root / f".{name}.partial"
  remains.mkdir(parents=True)
  (remains / "half").touch()
  sweep(root)
  assert not list(root.rglob("half"))


def test_nothing_appears_before_it_is_on_the_disk(tmp_path, monkeypatch):
  """The order of system calls that survives a power failure: content, names, rename, parent."""
  calls = []
  real = {name: getattr(os, name) for name in ("fsync", "open")}
  opened = {}

  def opening(path, *arguments, **options):
    descriptor = real["open"](path, *arguments, **options)
    opened[descriptor] = os.path.basename(path)
    return descriptor

  monkeypatch.setattr(os, "open", opening)
  monkeypatch.setattr(os, "fsync", lambda d: calls.append((opened[d], (tmp_path / "log").exists())))
  with atomic_directory(tmp_path / "log") as directory:
    (directory / "rows").touch()
  assert calls == [("rows", False), (".log.partial", False), (tmp_path.name, True)]
