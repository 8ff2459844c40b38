"""What commands print when nobody reads it, or when it cannot be written."""

import os
import subprocess
import sys

import pytest

from tests.commands import ROOT

LIST, HELP, ERROR = ["launch"], ["launch.infer_schema", "--help"], ["launch.infer_schema"]


def started(arguments, **streams):
  """A command as a process; the caller knows where its streams lead."""
  return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, **streams)


@pytest.fixture
def closed_pipe():
  """A pipe that nobody reads, as what `| head` has left behind."""
  read, write = os.pipe()
  os.close(read)
  yield write
  os.close(write)


@pytest.mark.parametrize("arguments", [LIST, HELP])
def test_a_reader_that_stops_ends_a_command_without_a_trace(closed_pipe, arguments):
  done = started(arguments, stdout=closed_pipe, stderr=subprocess.PIPE)
  assert (done.returncode, done.stderr) == (141, b"")


def test_so_does_a_reader_of_its_messages(closed_pipe):
  assert started(ERROR, stdout=closed_pipe, stderr=closed_pipe).returncode == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_one_message():
  with open("/dev/full", "w") as full:
    done = started(HELP, stdout=full, stderr=subprocess.PIPE)
  assert done.returncode == 1
  assert done.stderr.startswith(b"error: cannot write: No space left on device")
  assert done.stderr.count(b"\n") == 1


def test_a_command_needs_no_output():
  script = f"exec {sys.executable} -m launch.infer_schema --help >&-"
  done = subprocess.run(["sh", "-c", script], cwd=ROOT, stderr=subprocess.PIPE)
  assert (done.returncode, done.stderr) == (0, b"")
