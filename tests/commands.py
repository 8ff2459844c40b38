"""Commands, run as a user runs them: `launch.NAME` in a process of its own.

Each is forked off one process that has imported TensorFlow, but nothing of this package, already;
else that would take most of the time. `cold` starts Python anew, as a shell does.
"""

import dataclasses
import functools
import multiprocessing
import multiprocessing.forkserver
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import time
import unittest.mock

ROOT = pathlib.Path(__file__).parent.parent
_IMPORTED = (
  "tf_twostage",  # which selects Keras 2 and imports nothing
  "tensorflow_recommenders",
  "tensorflow_serving.apis.prediction_service_pb2_grpc",
  "tensorboard.summary",
  "matplotlib.figure",
  "pandas",
  "tqdm",
)


def cold(*arguments, name="train"):
  """Runs a command from nothing."""
  command = [sys.executable, "-m", f"launch.{name}", *map(str, arguments)]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def run(*arguments, name="train", replay=False):
  """Runs a command to its end; see `start`."""
  running = start(*arguments, name=name, replay=replay)
  running.process.join()
  return subprocess.CompletedProcess(
    f"launch.{name}", running.process.exitcode, running.stdout(), running.stderr()
  )


def start(*arguments, name="train", replay=False):
  """Starts a command.

  Args:
    arguments: its flags.
    name: of the command.
    replay: whether a fresh process tests an export before it appears, as users have it.
  """
  said = tempfile.TemporaryDirectory()
  return Running(process(_become, name, [*map(str, arguments)], said.name, replay), said)


def process(function, *arguments):
  """Starts a function in a process that has imported TensorFlow and not used it."""
  started = _processes().Process(target=function, args=arguments)
  started.start()
  return started


@dataclasses.dataclass(frozen=True)
class Running:
  """A command under way; `process` has its pid and, when it has ended, its exitcode."""

  process: multiprocessing.process.BaseProcess
  _said: tempfile.TemporaryDirectory

  def stdout(self):
    """What it has printed so far."""
    return self._read(1)

  def stderr(self):
    return self._read(2)

  def _read(self, descriptor):
    file = pathlib.Path(self._said.name, str(descriptor))
    return file.read_text(encoding="utf-8") if file.exists() else ""

  def stop(self, number):
    """Sends a signal and waits for the end."""
    os.kill(self.process.pid, number)
    self.process.join()

  def wait_for(self, condition, seconds=90):
    """Returns what the condition says first that is true; the last, where the command ends."""
    deadline = time.monotonic() + seconds
    while not (met := condition()) and self.process.is_alive() and time.monotonic() < deadline:
      time.sleep(0.02)
    return met or condition()


@functools.cache
def _processes():
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload([*_IMPORTED])
  # TensorFlow speaks when it is imported, and once more when flags are parsed after that.
  with unittest.mock.patch.dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3"):
    multiprocessing.forkserver.ensure_running()
  return context


def _become(name, arguments, said, replay):
  """Turns this process into the command."""
  for descriptor in (1, 2):
    os.dup2(os.open(f"{said}/{descriptor}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
  os.chdir(ROOT)
  if not replay:
    from tests.serving import small

    small.skip_replay()
  sys.argv = [f"launch/{name}.py", *arguments]
  runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=True)
