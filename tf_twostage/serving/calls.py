"""Calls that an export is tried with: what its server warms up on, and what it must answer.

Both are kept inside the version, in `assets.extra`, as the records that TensorFlow Serving knows;
the extra [serving] brings these.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_twostage.data.schema import FeatureTable
from tf_twostage.errors import InputError
from tf_twostage.serving.recommender import Recommender

_log = logging.getLogger(__name__)

_EXTRA = "assets.extra"
_WARM_UP = "tf_serving_warmup_requests"  # the name that TensorFlow Serving looks for
_ANSWERS = "recorded_answers"
_RANKED = 10  # items that a call asks for, or has ranked
_ROUNDED, _RTOL, _ATOL = 0.02, 1e-4, 1e-5  # what answers may differ in, see `same`

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
  """One request to one signature, and what the exporting process answered."""

  signature: str
  inputs: Arrays
  answer: Arrays


def of_requests(recommender: Recommender, requests: FeatureTable) -> list[Call]:
  """Calls to every signature: each request alone, then all together.

  Args:
    recommender: answers them.
    requests: raw user and context features of a few users, [B, ...] each, and "exclude", [B, E].
  """
  rows = len(requests["exclude"])
  k = min(_RANKED, recommender.num_items)
  settings: dict[str, np.ndarray] = {
    **requests,
    "k": np.full(rows, k, np.int32),
    "temperature": np.ones(rows, np.float32),
    "seed": np.arange(rows, dtype=np.int64),
  }
  signatures = recommender.signatures()
  method, specs = signatures["recommend"]
  settings["candidates"] = _answer(method, {name: settings[name] for name in specs})["item_id"]
  calls = []
  for some in [*(slice(row, row + 1) for row in range(rows)), slice(rows)]:
    for name, (method, specs) in signatures.items():
      inputs = {column: settings[column][some] for column in specs}
      calls.append(Call(name, inputs, _answer(method, inputs)))
  return calls


def same(answer: Arrays, expected: Arrays) -> bool:
  """Whether two answers agree, but for what rounding may do on another machine.

  Where two scores are nearly tied, or a random number hits the border between two items, another
  item may stand in a place. One may, or 2%; in all other places numbers agree as well.
  """
  if {k: v.shape for k, v in answer.items()} != {k: v.shape for k, v in expected.items()}:
    return False
  agree = {
    name: answer[name].astype(bytes) == wanted.astype(bytes)
    for name, wanted in expected.items()
    if wanted.dtype.kind in "OSU"
  }
  others = [np.count_nonzero(~places) > max(1, _ROUNDED * places.size) for places in agree.values()]
  return not any(others) and all(
    np.allclose(answer[name][agree["item_id"]], wanted[agree["item_id"]], rtol=_RTOL, atol=_ATOL)
    for name, wanted in expected.items()
    if name not in agree
  )


def write(version: pathlib.Path, model: str, calls: Sequence[Call]) -> None:
  """Puts calls and answers into a version; without the extra [serving], says that it cannot.

  Args:
    version: the SavedModel's directory.
    model: the name under which it will be served.
    calls: at most 1,000, which is what a server replays.
  """
  try:
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
  except ImportError:
    _log.warning("no warm-up requests: pip install 'tf_twostage[serving]' brings what writes them")
    return
  (version / _EXTRA).mkdir(exist_ok=True)
  paths = str(version / _EXTRA / _WARM_UP), str(version / _EXTRA / _ANSWERS)
  with tf.io.TFRecordWriter(paths[0]) as warm_up, tf.io.TFRecordWriter(paths[1]) as answers:
    for call in calls:
      request = predict_pb2.PredictRequest(inputs=_tensors(call.inputs))
      request.model_spec.name = model
      request.model_spec.signature_name = call.signature
      response = predict_pb2.PredictResponse(outputs=_tensors(call.answer))
      for writer, content in ((warm_up, {"request": request}), (answers, {"response": response})):
        log = prediction_log_pb2.PredictLog(**content)
        record = prediction_log_pb2.PredictionLog(predict_log=log)
        writer.write(record.SerializeToString())


def read(version: pathlib.Path) -> list[Call]:
  """The calls inside a version.

  Raises:
    InputError: there are none, or the extra [serving] is not installed.
  """
  try:
    from tensorflow_serving.apis import prediction_log_pb2
  except ImportError as error:
    raise InputError(
      "reading warm-up requests needs TensorFlow Serving's records: pip install"
      " 'tf_twostage[serving]'"
    ) from error

  def logs(name: str) -> Iterator[Any]:
    path = version / _EXTRA / name
    if not path.is_file():
      raise InputError(f"{path}: no such file; export again, with the extra [serving] installed")
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
      yield prediction_log_pb2.PredictionLog.FromString(record).predict_log

  return [
    Call(
      asked.request.model_spec.signature_name,
      _arrays(asked.request.inputs),
      _arrays(answered.response.outputs),
    )
    for asked, answered in zip(logs(_WARM_UP), logs(_ANSWERS), strict=True)
  ]


def _answer(method: Any, inputs: Arrays) -> dict[str, np.ndarray]:
  answer = method(**{name: tf.constant(value) for name, value in inputs.items()})
  return {name: value.numpy() for name, value in answer.items()}


def _tensors(arrays: Arrays) -> dict[str, Any]:
  return {name: tf.make_tensor_proto(value) for name, value in arrays.items()}


def _arrays(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
  return {name: tf.make_ndarray(value) for name, value in tensors.items()}
