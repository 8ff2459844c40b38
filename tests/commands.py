"""Commands, run as a user runs them: `launch.NAME` with its flags.

`run` runs one in this process, `start` in a process of its own that can be killed, and `cold` from
nothing, as a shell does. Processes that are started are forked off one that has imported TensorFlow
and not used it; else the import would take most of their time.
"""

import contextlib
import dataclasses
import functools
import io
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import unittest.mock

import pytest
from absl import flags
from absl import logging as absl_logging

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


def run(*arguments, name="train", replay=False, export=True):
  """Runs a command in this process, which is afterwards as before.

  Args:
    arguments: its flags.
    name: of the command.
    replay: whether a fresh process tests an export before it appears, as users have it.
    export: whether the trained model is exported at all.
  """
  said = io.StringIO(), io.StringIO()
  with _restored(), contextlib.redirect_stdout(said[0]), contextlib.redirect_stderr(said[1]):
    try:
      become(name, [*map(str, arguments)], replay, export)
      code = 0
    except SystemExit as done:
      code = done.code
  return subprocess.CompletedProcess(f"launch.{name}", code, *(text.getvalue() for text in said))


def start(*arguments, name="train", replay=False, **environment):
  """Starts a command in a process of its own; see `run`."""
  return fork(become, name, [*map(str, arguments)], replay, **environment)


def fork(function, *arguments, **environment):
  """Starts a function in a process that has imported TensorFlow and not used it.

  Args:
    function: whatever can be pickled.
    arguments: its arguments.
    environment: variables of the process.
  """
  said = tempfile.TemporaryDirectory()
  process = _processes().Process(target=_said, args=(said.name, environment, function, arguments))
  process.start()
  return Running(process, said)


@dataclasses.dataclass(frozen=True)
class Running:
  """A process under way; `process` has its pid and, when it has ended, its exitcode."""

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

  def end(self):
    """Waits for the end; returns the exit code, the output and the messages."""
    self.process.join()
    return self.process.exitcode, self.stdout(), self.stderr()

  def wait_for(self, condition, seconds=90):
    """Returns what the condition says first that is true; the last, where the process ends."""
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


def _said(directory, environment, function, arguments):
  """Calls a function in a process of its own; what it says goes to the files 1 and 2."""
  for descriptor in (1, 2):
    os.dup2(
      os.open(f"{directory}/{descriptor}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor
    )
  os.environ.update(environment)
  os.chdir(ROOT)
  function(*arguments)


def become(name, arguments, replay=False, export=True):
  """Turns this process into the command, until it exits."""
  from tests.serving import small
  from tf_twostage import TwoStageRecommender

  with pytest.MonkeyPatch.context() as patch:
    if not replay:
      small.skip_replay(patch.setattr)
    if not export:
      patch.setattr(TwoStageRecommender, "export", lambda _, directory, **options: directory)
    patch.setattr(sys, "argv", [f"launch/{name}.py", *arguments])
    runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=True)


@contextlib.contextmanager
def _restored():
  """Puts back what a command changes in its process: flags, directory, signals, logging."""
  directory, root, package = os.getcwd(), logging.getLogger(), logging.getLogger("tf_twostage")
  levels = [(logger, logger.level) for logger in (root, package)]
  handlers, verbosity = [*root.handlers], absl_logging.get_verbosity()
  signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
  defined = dict(vars(flags.FLAGS))
  vars(flags.FLAGS).update(_copied(_FLAGS))
  os.chdir(ROOT)
  try:
    yield
  finally:
    os.chdir(directory)
    vars(flags.FLAGS).update(defined)
    for number, handler in signals.items():
      signal.signal(number, handler)
    absl_logging.set_verbosity(verbosity)
    root.handlers[:] = handlers
    for logger, level in levels:
      logger.setLevel(level)


def _copied(defined):
  return {name: dict(v) if isinstance(v, dict) else v for name, v in defined.items()}


_FLAGS = _copied(vars(flags.FLAGS))  # those of libraries, before a command defines its own
