"""Tests of an export: recorded requests, replayed in a process that has nothing but TensorFlow.

A version holds the requests and their answers as the warm-up requests of TensorFlow Serving, whose
format needs the extra [serving]. A server ignores the answers.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import pickle  # nosec B403 # arrays of bytes, which NumPy's own format does not hold
import re
import subprocess  # nosec B404 # only Python, in `replay`
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_twostage.data.schema import FeatureTable
from tf_twostage.errors import InputError, RunError
from tf_twostage.serving.servable import TIME, ServableRecommender

_log = logging.getLogger(__name__)

WARM_UP = "assets.extra/tf_serving_warmup_requests"  # the path that TensorFlow Serving reads
_K = 10  # items that a call asks for or has ranked
_OTHER_ITEMS, _RTOL, _ATOL = 0.02, 1e-4, 1e-5  # tolerances of `same`
_PERCENTILES = (50, 99)

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
  """One request to one signature, and the answer of the exporting process."""

  signature: str
  inputs: Arrays
  answer: Arrays


def record(recommender: ServableRecommender, requests: FeatureTable) -> list[Call]:
  """Calls every signature: with each raw request alone, then with all together."""
  rows = len(requests["exclude"])
  settings: dict[str, np.ndarray] = {
    **requests,
    "k": np.full(rows, min(_K, recommender.num_items), np.int32),
    "temperature": np.ones(rows, np.float32),
    "seed": np.arange(rows, dtype=np.int64),
  }

  def call(name: str, chosen: slice) -> Call:
    method, specs = recommender.signatures()[name]
    inputs = {column: settings[column][chosen] for column in specs}
    answer = method(**{column: tf.constant(value) for column, value in inputs.items()})
    return Call(name, inputs, {column: value.numpy() for column, value in answer.items()})

  settings["candidates"] = call("recommend", slice(rows)).answer["item_id"]
  chosen = [*(slice(row, row + 1) for row in range(rows)), slice(rows)]
  return [call(name, some) for some in chosen for name in recommender.signatures()]


def write(version: pathlib.Path, model: str, calls: Sequence[Call]) -> None:
  """Writes at most 1,000 calls into a version; logs a warning without the extra [serving]."""
  try:
    from tensorflow_serving.apis import prediction_log_pb2
  except ImportError:
    _log.warning("no warm-up requests were written: pip install 'tf_twostage[serving]'")
    return
  (version / WARM_UP).parent.mkdir(exist_ok=True)
  with tf.io.TFRecordWriter(str(version / WARM_UP)) as writer:
    for call in calls:
      record = prediction_log_pb2.PredictionLog()
      request, response = record.predict_log.request, record.predict_log.response
      request.model_spec.name = model
      request.model_spec.signature_name = call.signature
      for tensors, arrays in ((request.inputs, call.inputs), (response.outputs, call.answer)):
        for name, value in arrays.items():
          tensors[name].CopyFrom(tf.make_tensor_proto(value))
      writer.write(record.SerializeToString())


def read(version: pathlib.Path) -> list[Call]:
  """The calls that a version holds."""
  try:
    from tensorflow_serving.apis import prediction_log_pb2
  except ImportError as error:
    raise InputError(
      "warm-up requests are in TensorFlow Serving's format: pip install 'tf_twostage[serving]'"
    ) from error
  path = version / WARM_UP
  if not path.is_file():
    raise InputError(f"{path}: no such file; export again, with the extra [serving] installed")
  calls = []
  try:
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
      log = prediction_log_pb2.PredictionLog.FromString(record).predict_log
      inputs, answer = (
        {name: tf.make_ndarray(value) for name, value in tensors.items()}
        for tensors in (log.request.inputs, log.response.outputs)
      )
      calls.append(Call(log.request.model_spec.signature_name, inputs, answer))
  except tf.errors.DataLossError:
    raise InputError(f"{path}: damaged; export again") from None
  return calls


@contextlib.contextmanager
def fresh_process() -> Iterator[subprocess.Popen[str]]:
  """A process for `replay`, which takes seconds to import TensorFlow; it ends with the block."""
  script = pathlib.Path(__file__).with_name("isolated_replay.py")
  # The variable would make TensorFlow import Keras.
  environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
  with subprocess.Popen(  # nosec B603 # no shell, and a script of this package
    # -I: neither the working directory nor PYTHONPATH makes this package importable by accident.
    [sys.executable, "-I", str(script)],
    stdin=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    env=environment,
  ) as process:
    yield process  # without a request, it ends when its input does


def replay(
  version: pathlib.Path,
  calls: Sequence[Call],
  process: subprocess.Popen[str] | None = None,
  *,
  repeats: int = 0,
) -> dict[str, Any]:
  """Loads a version in a process of its own and makes each call once and `repeats` times more.

  `process` is a `fresh_process`; by default, one that starts now. Returns the `result` of
  `isolated_replay.main`: "answers" and "seconds" per call, and more.
  """
  if process is None:
    with fresh_process() as process:
      return replay(version, calls, process, repeats=repeats)
  with tempfile.TemporaryDirectory() as scratch:
    sent, received = pathlib.Path(scratch, "calls"), pathlib.Path(scratch, "result")
    sent.write_bytes(pickle.dumps([(call.signature, dict(call.inputs)) for call in calls]))
    _, said = process.communicate(
      json.dumps([str(version.resolve()), str(sent), repeats, str(received)])
    )
    if process.returncode:
      errors = re.findall(r"^[\w.]+(?:Error|Exception): .*", said, re.MULTILINE)
      reason = errors[-1] if errors else f"exit code {process.returncode}: {said[-1000:]}"
      raise RunError(f"{version} does not answer in a fresh process: {reason}")
    return pickle.loads(received.read_bytes())  # nosec B301 # our process, a directory of our own


def same(answer: Arrays, expected: Arrays) -> bool:
  """Whether two answers agree up to rounding on another machine.

  If two scores are nearly tied, or a random number is close to the border between two items, a
  place may hold another item. One place may, or 2%; in all other places numbers must agree as well.
  """
  if {k: v.shape for k, v in answer.items()} != {k: v.shape for k, v in expected.items()}:
    return False
  agree = {
    name: answer[name].astype(bytes) == wanted.astype(bytes)
    for name, wanted in expected.items()
    if wanted.dtype.kind in "OSU"
  }
  if any(np.sum(~places) > max(1, _OTHER_ITEMS * places.size) for places in agree.values()):
    return False
  return all(
    np.allclose(answer[name][agree["item_id"]], wanted[agree["item_id"]], rtol=_RTOL, atol=_ATOL)
    for name, wanted in expected.items()
    if name not in agree
  )


def differences(calls: Sequence[Call], answers: Sequence[Arrays]) -> list[str]:
  """Names the calls whose answers differ from those of the exporting process."""
  return [
    f"call {number} ({call.signature})"
    for number, (call, answer) in enumerate(zip(calls, answers, strict=True))
    if not same(answer, call.answer)
  ]


def check(version: pathlib.Path, *, repeats: int) -> tuple[str, bool]:
  """Replays the calls that a version holds, `repeats` times more for latencies.

  Returns a report, and whether the version repeats the answers of the exporting process.
  """
  calls = read(version)
  try:
    result = replay(version, calls, repeats=repeats)
  except RunError as error:
    return str(error), False
  different = differences(calls, result["answers"])
  return "\n".join(_report(version, calls, result, different)), not different


def explained(model: Any, calls: Sequence[Call]) -> str:
  """Which clauses let the first recommended item through; of an export of generator=casmos.

  Args:
    model: a loaded version with clauses.
    calls: that it holds.
  """
  call = next(call for call in calls if call.signature == "recommend")
  item = call.answer["item_id"][:1, 0]
  names = {*call.inputs} - {"exclude", "k", TIME}
  features = {name: tf.constant(call.inputs[name][:1]) for name in names}
  weights = model.explain(item=tf.constant(item), **features).numpy()[0]
  clauses, order = model._clauses.numpy(), np.argsort(-weights, kind="stable")
  lines = [f"  {weights[i]:8.3f}  {clauses[i].decode()}" for i in order if weights[i] > 0]
  return "\n".join([f"why {item[0].decode()} is a candidate of the first call's user", *lines])


def _report(
  version: pathlib.Path, calls: Sequence[Call], result: Mapping[str, Any], different: Sequence[str]
) -> Iterator[str]:
  size = sum(file.stat().st_size for file in version.rglob("*") if file.is_file())
  yield f"{version}: {size / 1e6:,.1f} MB"
  yield (
    f"loads without this package: in {result['native_load_seconds']:.2f} s by the C++ loader, in"
    f" {result['load_seconds']:.2f} s into a session"
  )
  yield f"{len(result['operations'])} kinds of operations, all of them TensorFlow's own"
  for name, sides in result["signatures"].items():
    yield f"\n{name}"
    for side, tensors in sides.items():
      for tensor, kind in tensors.items():
        yield f"  {side.removesuffix('s'):7s} {tensor:20s} {kind}"
  yield "\nlatency, ms  users " + "".join(f"{f'p{p}':>9s}" for p in _PERCENTILES)
  times = collections.defaultdict(list)
  for call, seconds in zip(calls, result["seconds"], strict=True):
    times[call.signature, len(next(iter(call.answer.values())))].append(seconds)
  for (signature, rows), measured in sorted(times.items()):
    shown = np.percentile(np.concatenate(measured), _PERCENTILES) * 1e3
    yield f"{signature:12s} {rows:5d} " + "".join(f"{value:9.2f}" for value in shown)
  yield (
    f"\nDIFFERENT from the exporting process: {', '.join(different)}"
    if different
    else f"\n{len(calls)} calls answered as in the exporting process"
  )
