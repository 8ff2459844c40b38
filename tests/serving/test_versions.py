"""Numbered directories that appear whole or not at all."""

import itertools
import multiprocessing
import os
import pathlib
import sys

import pytest

from tf_twostage.errors import InputError
from tf_twostage.serving.exporting import latest, publish, versions

FILES, KILLED = 3, 17


def fill(directory):
  for number in range(FILES):
    (directory / f"{number}.txt").write_text("x" * 1000)


def names(directory):
  return {path.name for path in directory.iterdir()}


def test_versions_count_up_and_the_oldest_go(tmp_path):
  for expected in ({"1"}, {"1", "2"}, {"2", "3"}, {"3", "4"}):
    assert publish(tmp_path, fill, keep=2).name == max(expected)
    assert names(tmp_path) == expected


def test_versions_are_numbers_and_ten_comes_after_nine(tmp_path):
  for name in ("9", "2", "notes"):
    (tmp_path / name).mkdir()
  assert publish(tmp_path, fill, keep=2).name == "10"
  assert names(tmp_path) == {"9", "10", "notes"}
  assert [path.name for path in versions(tmp_path)] == ["9", "10"]


def test_there_is_no_version_before_it_is_whole(tmp_path):
  def look(directory):
    assert not versions(tmp_path)
    fill(directory)

  publish(tmp_path / "new" / "directory", look, keep=1)
  assert names(tmp_path / "new" / "directory") == {"1"}


def test_what_fails_leaves_nothing(tmp_path):
  def fail(directory):
    fill(directory)
    raise OSError("disk full")

  with pytest.raises(OSError, match="disk full"):
    publish(tmp_path, fail, keep=1)
  assert not names(tmp_path)


def test_what_others_left_is_swept_away(tmp_path):
  (tmp_path / ".1.partial").mkdir()
  fill(tmp_path / ".1.partial")
  publish(tmp_path, fill, keep=1)
  assert names(tmp_path) == {"1"}


def test_at_least_the_new_version_stays(tmp_path):
  with pytest.raises(InputError, match="keep must be at least 1, got 0"):
    publish(tmp_path, fill, keep=0)


def test_the_latest_is_the_newest_version_or_the_version_itself(tmp_path):
  with pytest.raises(InputError, match="no version of a SavedModel"):
    latest(tmp_path)
  with pytest.raises(InputError, match="no version of a SavedModel"):
    latest(tmp_path / "nowhere")
  for name in ("9", "10"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "saved_model.pb").touch()
  assert latest(tmp_path).name == "10"
  assert latest(tmp_path / "9").name == "9"


def test_a_damaged_version_is_named_and_the_one_before_is_used(tmp_path, caplog):
  def write(version):
    (version / "saved_model.pb").write_bytes(b"model")

  for _ in range(2):
    publish(tmp_path, write, keep=2)
  (tmp_path / "2" / "saved_model.pb").write_bytes(b"modem")
  assert latest(tmp_path).name == "1"
  assert "2/saved_model.pb was changed after it was written; version 2 is not used" in caplog.text
  with pytest.raises(InputError, match="no undamaged version"):
    latest(tmp_path / "2")


def whole(directory):
  return len(list(directory.iterdir())) == FILES + 1  # assets.extra, with their digests


def publish_and_die(directory, events):
  """Exits before one of the audit events, among them every change of the file system."""

  def die(event, arguments):
    nonlocal events
    events -= 1
    if events < 0:
      os._exit(KILLED)

  sys.addaudithook(die)
  publish(directory, fill, keep=1)


def test_killed_at_any_moment_every_version_is_whole(tmp_path):
  """Also while an old version is deleted, which keep=1 does each time."""
  publish(tmp_path, fill, keep=1)
  for events in itertools.count():
    process = multiprocessing.get_context("fork").Process(
      target=publish_and_die, args=(tmp_path, events)
    )
    process.start()
    process.join()
    found = versions(tmp_path)
    assert found
    assert all(map(whole, found))
    if process.exitcode != KILLED:
      break
  assert process.exitcode == 0
  assert events > 2 * FILES
  assert len(names(tmp_path)) == 1


def test_exports_into_one_directory_take_turns(tmp_path):
  def publish_some(directory: pathlib.Path) -> None:
    for _ in range(5):
      publish(directory, fill, keep=100)

  processes = [
    multiprocessing.get_context("fork").Process(target=publish_some, args=(tmp_path,))
    for _ in range(3)
  ]
  for process in processes:
    process.start()
  for process in processes:
    process.join()
  assert [process.exitcode for process in processes] == [0, 0, 0]
  assert names(tmp_path) == {str(number) for number in range(1, 16)}
  assert all(map(whole, tmp_path.iterdir()))
