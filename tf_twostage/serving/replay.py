"""Tries a version as a server would, in a process of its own, without this package."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_twostage.errors import RunError
from tf_twostage.serving.calls import Arrays, Call, same

_SCRIPT = pathlib.Path(__file__).with_name("replay_alone.py")


@dataclasses.dataclass(frozen=True, eq=False)
class Replay:
  """What a version did in a fresh process.

  Attributes:
    answers: one a call.
    seconds: per call, what each repetition took, [repeats].
    load_seconds: of a session.
    native_load_seconds: of the C++ loader.
    operations: that it is made of; TensorFlow's own, or it would not have loaded.
    signatures: name -> "inputs" and "outputs" -> name -> type and shape.
  """

  answers: Sequence[Arrays]
  seconds: list[np.ndarray]
  load_seconds: float
  native_load_seconds: float
  operations: list[str]
  signatures: dict[str, dict[str, dict[str, str]]]


def replay(version: pathlib.Path, calls: Sequence[Call], *, repeats: int = 0) -> Replay:
  """Loads a version and makes the calls, each once and `repeats` times more.

  Raises:
    RunError: it does not load, needs more than TensorFlow, or a call fails.
  """
  with tempfile.TemporaryDirectory() as scratch:
    given, got = f"{scratch}/calls.npz", f"{scratch}/answers.npz"
    inputs: dict[str, Any] = {
      f"{number}/{call.signature}/{name}": value.astype(bytes) if value.dtype == object else value
      for number, call in enumerate(calls)
      for name, value in call.inputs.items()
    }
    np.savez(given, **inputs)
    # -I: neither the working directory nor PYTHONPATH can lend it this package by accident.
    command = [sys.executable, "-I", _SCRIPT, version.resolve(), given, repeats, got]
    # This package's choice of Keras would make TensorFlow import it.
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment)
    if done.returncode:
      raise RunError(f"{version} does not answer in a fresh process:\n{done.stderr}")
    with np.load(got) as stored:
      report = json.loads(str(stored["report"]))
      answers: list[dict[str, np.ndarray]] = [{} for _ in calls]
      for key in set(stored) - {"report"}:
        number, name = key.split("/", 1)
        answers[int(number)][name] = stored[key]
  seconds = [answer.pop("seconds") for answer in answers]
  return Replay(
    answers,
    seconds,
    load_seconds=report["seconds"],
    native_load_seconds=report["native_seconds"],
    operations=report["operations"],
    signatures=report["signatures"],
  )


def differences(calls: Sequence[Call], answers: Sequence[Arrays]) -> list[str]:
  """The calls, in words, that were not answered as they were in the exporting process."""
  return [
    f"call {number} ({call.signature})"
    for number, (call, answer) in enumerate(zip(calls, answers, strict=True))
    if not same(answer, call.answer)
  ]
