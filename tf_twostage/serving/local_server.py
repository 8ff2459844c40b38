"""TensorFlow Serving's gRPC interface over an export, in this process, for tests and trials.

    with serve(pathlib.Path("saved_models/ml1m")) as address:
      client = RecommenderClient(address, "ml1m")

Answers and error codes are the server's. It does not batch, nor look for new versions. Requests
beyond its limits are answered with RESOURCE_EXHAUSTED. Needs the extra [serving].
"""

from __future__ import annotations

import contextlib
import logging
import math
import pathlib
import threading
from collections.abc import Iterator, Mapping
from concurrent import futures
from typing import Any

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tf_twostage.serving.client import reason_in
from tf_twostage.serving.exporting import load_latest

_log = logging.getLogger(__name__)

_THREADS = 4
_GRACE = 1.0  # seconds that running calls may take when the server stops
_CALLS = 128  # running and waiting
_BYTES = 2**22  # of a request
_CELLS = 2**21  # of a request: as many texts as its bytes can hold
_PAIRS = 2**22  # of a user and an item that a request scores
_LARGE = 2**18  # pairs; requests with more use half of the threads
_CHARACTERS = 1000  # of a reason; gRPC sends it in a header, whose size is limited
_Code = grpc.StatusCode


@contextlib.contextmanager
def serve(path: pathlib.Path, *, port: int = 0) -> Iterator[str]:
  """Serves the newest version of a directory that loads, or one version, on loopback.

  The name of the directory is the model's. Port 0 takes any free port. Yields "localhost:<port>".
  """
  server = grpc.server(
    futures.ThreadPoolExecutor(_THREADS),
    options=[("grpc.max_receive_message_length", _BYTES)],
    maximum_concurrent_rpcs=_CALLS,
  )
  service = _Service(*load_latest(path.resolve()))
  prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
  port = server.add_insecure_port(f"localhost:{port}")
  server.start()
  try:
    yield f"localhost:{port}"
  finally:
    server.stop(_GRACE).wait()


class _Refused(Exception):
  def __init__(self, code: grpc.StatusCode, reason: str):
    super().__init__(reason)
    self.code = code


class _Service(prediction_service_pb2_grpc.PredictionServiceServicer):
  def __init__(self, version: pathlib.Path, model: Any):
    self._name, self._version = version.parent.name, int(version.name)
    self._model, self._num_items = model, int(model._ids.shape[0])
    self._large = threading.Semaphore(_THREADS // 2)

  def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
    """Answers a request. `context.abort` raises."""
    try:
      return self._answer(request)
    except _Refused as error:
      code, reason = error.code, str(error)
    except tf.errors.InvalidArgumentError as error:
      code, reason = _Code.INVALID_ARGUMENT, reason_in(error.message)
    except UnicodeDecodeError as error:  # the message of a check, with ids that are not UTF-8
      code, reason = _Code.INVALID_ARGUMENT, reason_in(error.object.decode(errors="replace"))
    except tf.errors.ResourceExhaustedError as error:
      code, reason = _Code.RESOURCE_EXHAUSTED, reason_in(error.message)
    except Exception as error:  # gRPC would answer UNKNOWN
      _log.exception("a request failed")
      code, reason = _Code.INTERNAL, f"{type(error).__name__}: {error}"
    context.abort(code, reason[:_CHARACTERS])

  def _answer(self, request: Any) -> Any:
    spec = request.model_spec
    number = spec.version.value if spec.HasField("version") else self._version
    if (spec.name, number) != (self._name, self._version):
      raise _Refused(_Code.NOT_FOUND, f"no servable {spec.name!r}, version {number}")
    signature = spec.signature_name or "serving_default"
    if signature not in self._model.signatures:
      raise _Refused(_Code.FAILED_PRECONDITION, f"no signature {signature!r}")
    run = self._model.signatures[signature]
    shapes = _shapes(request.inputs, run.structured_input_signature[1])
    with self._room_for(shapes):
      outputs = run(**{name: _tensor(name, value) for name, value in request.inputs.items()})
      response = predict_pb2.PredictResponse(
        outputs={name: tf.make_tensor_proto(value.numpy()) for name, value in outputs.items()}
      )
    response.model_spec.CopyFrom(spec)
    response.model_spec.signature_name = signature
    response.model_spec.version.value = self._version
    return response

  @contextlib.contextmanager
  def _room_for(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[None]:
    """Bounds a request, and how many large ones run, so that small ones find a free thread."""
    rows = max(shape[0] for shape in shapes.values() if shape)
    # `rank` scores the candidates only.
    pairs = math.prod(shapes.get("candidates", (rows, self._num_items)))
    if rows == 1 or pairs <= _LARGE:
      yield
      return
    if pairs > _PAIRS:
      raise _Refused(
        _Code.RESOURCE_EXHAUSTED,
        f"{rows} users and {self._num_items} items are {pairs} pairs, of which a request may have"
        f" {_PAIRS}; send fewer users at once",
      )
    if not self._large.acquire(blocking=False):
      raise _Refused(_Code.RESOURCE_EXHAUSTED, "too many large requests are running; try later")
    try:
      yield
    finally:
      self._large.release()


def _shapes(
  inputs: Mapping[str, Any], specs: Mapping[str, tf.TensorSpec]
) -> dict[str, tuple[int, ...]]:
  """The shapes that inputs claim, checked before a tensor is made: a few bytes can claim millions.

  Raises:
    _Refused: the inputs are not those of the signature, or they are too large.
  """
  extra, missing = sorted(set(inputs) - set(specs)), sorted(set(specs) - set(inputs))
  if extra or missing:
    raise _Refused(
      _Code.INVALID_ARGUMENT,
      f"inputs do not match the signature: extra {extra}, missing {missing}",
    )
  shapes = {}
  for name, value in inputs.items():
    spec, claimed = specs[name], value.tensor_shape
    shape = tuple(dim.size for dim in claimed.dim)
    if claimed.unknown_rank or min(shape, default=0) < 0:
      reason = f"the shape of input {name!r} is not known; it must be {spec.shape}"
      raise _Refused(_Code.INVALID_ARGUMENT, reason)
    if value.dtype != spec.dtype.as_datatype_enum or not spec.shape.is_compatible_with(shape):
      raise _Refused(
        _Code.INVALID_ARGUMENT,
        f"input {name!r} must be {spec.dtype.name} {spec.shape}, got {_type(value.dtype)}"
        f" {list(shape)}",
      )
    shapes[name] = shape
  cells = sum(math.prod(max(size, 1) for size in shape) for shape in shapes.values())
  if cells > _CELLS:
    raise _Refused(
      _Code.RESOURCE_EXHAUSTED, f"the inputs hold {cells} values, a request may have {_CELLS}"
    )
  return shapes


def _type(number: int) -> str:
  try:
    return tf.dtypes.as_dtype(number).name
  except TypeError:
    return f"type {number}"


def _tensor(name: str, value: Any) -> tf.Tensor:
  try:
    return tf.constant(tf.make_ndarray(value))
  except (TypeError, ValueError) as error:
    reason = f"input {name!r} does not hold what its shape and type say: {error}"
    raise _Refused(_Code.INVALID_ARGUMENT, reason) from None
