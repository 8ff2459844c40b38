"""Stages are built once, and writes are complete or absent."""

import concurrent.futures
import errno
import json
import math
import os
import re
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

import tf_twostage
from tf_twostage.errors import InputError, RunError
from tf_twostage.workspace import (
  Damaged,
  Workspace,
  atomic_directory,
  atomic_write,
  fingerprint,
  read_numbers,
  read_record,
  remove_partial,
  results_directory,
  write_json,
  write_record,
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


@pytest.mark.parametrize("file", ["result", "stage.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "missing"])
def test_a_damaged_stage_is_set_aside_and_built_again(tmp_path, caplog, file, damage):
  calls = []
  stage = Workspace(tmp_path).stage("log", {"seed": 1}, counting_build(calls))
  damaged = stage / file
  content = damaged.read_bytes()
  middle = len(content) // 2
  flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
  damaged.write_bytes({"flipped": flipped, "cut": content[:-2]}.get(damage, b""))
  if damage == "missing":
    damaged.unlink()
  for _ in range(2):
    assert Workspace(tmp_path).stage("log", {"seed": 1}, counting_build(calls)) == stage
    assert (stage / "result").read_text() == "2"
  assert [record.getMessage().split()[0] for record in caplog.records] == [str(damaged)]
  assert stage.with_name(f"{stage.name}.damaged").is_dir()


def test_a_digit_of_a_record_cannot_be_changed(tmp_path):
  path = tmp_path / "record.json"
  write_record(path, {"best": 3, "score": math.nan, "seen": (1.5, None)})
  assert read_record(path) == {"best": 3, "score": None, "seen": [1.5, None]}
  path.write_text(path.read_text().replace("3", "4", 1))
  with pytest.raises(Damaged, match=r"record.json was changed after it was written"):
    read_record(path)
  path.write_text("[1]")
  with pytest.raises(Damaged, match=r"record.json cannot be read"):
    read_record(path)


def test_json_has_no_nan(tmp_path):
  path = tmp_path / "scores.json"
  write_json(path, {"a": [math.nan, 0.5], "b": -math.inf})
  assert json.loads(path.read_text(), parse_constant=pytest.fail) == {"a": [None, 0.5], "b": None}
  assert np.isnan(read_numbers(path)["a"]).tolist() == [True, False]


def test_results_of_another_plan_get_a_directory_of_their_own(tmp_path):
  path = tmp_path / "run" / "experiment"
  plans = [{"loss": "ips"}, {"loss": "snips"}, {"loss": "ips"}, {"loss": "poem"}]
  names = [results_directory(path, plan).name for plan in plans]
  assert names == ["experiment", "experiment-2", "experiment", "experiment-3"]
  (path / "plan.json").write_text("[{")  # nobody can tell whose results these are
  assert results_directory(path, {"loss": "snips"}) == path


def test_two_processes_build_a_stage_once(tmp_path):
  """The second waits for the first, which it names, and then finds the stage."""
  script = """
import pathlib, sys, time
from tf_twostage.workspace import Workspace
def build(directory):
  time.sleep(0.5)
  (directory / sys.argv[2]).touch()
Workspace(pathlib.Path(sys.argv[1])).stage("log", {}, build)
"""
  command = [sys.executable, "-c", script, str(tmp_path)]
  both = [
    subprocess.Popen([*command, name], stderr=subprocess.PIPE, text=True) for name in ("a", "b")
  ]
  said = {process.pid: process.communicate()[1] for process in both}
  assert [process.returncode for process in both] == [0, 0]
  (stage,) = tmp_path.glob("log-*")
  assert len(list(stage.glob("[ab]"))) == 1
  waited = [text for text in said.values() if "waiting for process" in text]
  assert len(waited) <= 1
  for text in waited:
    assert any(f"process {pid} on {socket.gethostname()}" in text for pid in said)


def test_different_stages_are_built_at_the_same_time(tmp_path):
  both = threading.Barrier(2, timeout=20)

  def build(name):
    Workspace(tmp_path).stage(name, {}, lambda directory: both.wait())

  with concurrent.futures.ThreadPoolExecutor() as pool:
    list(pool.map(build, ["log", "ranker"]))
  assert sorted(p.name.split("-")[0] for p in tmp_path.iterdir()) == ["log", "ranker"]


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


@pytest.mark.parametrize(
  ("message", "code"),
  [
    ("part.index; No space left on device [Op:SaveV2]", errno.ENOSPC),
    ("20000 requested and 8192 written", errno.ENOSPC),
    ("saved_model.pb; Disk quota exceeded", errno.EDQUOT),
  ],
)
def test_a_full_disk_is_one_error_whoever_meets_it(tmp_path, message, code):
  with (
    pytest.raises(OSError, match=re.escape(os.strerror(code))) as error,
    atomic_directory(tmp_path / "log"),
  ):
    raise RuntimeError(message)
  assert (error.value.errno, error.value.filename) == (code, str(tmp_path / "log"))


@pytest.mark.parametrize("error", [InputError("No space left on device"), KeyError("x")])
def test_other_errors_pass(tmp_path, error):
  with pytest.raises(type(error)) as raised, atomic_directory(tmp_path / "log"):
    raise error
  assert raised.value is error
