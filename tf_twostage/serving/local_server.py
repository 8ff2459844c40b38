"""TensorFlow Serving's gRPC interface over an export, in this process: for tests and trying out.

    with serve(pathlib.Path("saved_models/ml1m")) as address:
      client = RecommenderClient(address, "ml1m")

It answers, and refuses, as the server does, but neither batches nor looks for new versions. Needs
the extra [serving].
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from concurrent import futures
from typing import Any, NoReturn

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tf_twostage.serving import versions

_THREADS = 4
_GRACE = 1.0  # seconds that calls under way may take when the server stops


@contextlib.contextmanager
def serve(path: pathlib.Path, *, port: int = 0) -> Iterator[str]:
  """Serves the newest version of a directory, or one version, on loopback.

  Args:
    path: the directory, whose name is the model's; or the version.
    port: 0 takes any that is free.

  Yields:
    "localhost:<port>".

  Raises:
    InputError: there is no version.
  """
  version = versions.latest(path.resolve())
  server = grpc.server(futures.ThreadPoolExecutor(_THREADS))
  prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Service(version), server)
  port = server.add_insecure_port(f"localhost:{port}")
  server.start()
  try:
    yield f"localhost:{port}"
  finally:
    server.stop(_GRACE).wait()


class _Service(prediction_service_pb2_grpc.PredictionServiceServicer):
  def __init__(self, version: pathlib.Path):
    self._name, self._version = version.parent.name, int(version.name)
    self._model = tf.saved_model.load(str(version))

  def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
    code = grpc.StatusCode
    asked = request.model_spec
    number = asked.version.value if asked.HasField("version") else self._version
    if (asked.name, number) != (self._name, self._version):
      _refuse(context, code.NOT_FOUND, f"no servable {asked.name!r}, version {number}")
    signature = asked.signature_name or "serving_default"
    if signature not in self._model.signatures:
      _refuse(context, code.FAILED_PRECONDITION, f"no signature {signature!r}")
    run = self._model.signatures[signature]
    specs = run.structured_input_signature[1]
    try:
      outputs = run(**_tensors(request.inputs, specs))
    except (tf.errors.InvalidArgumentError, ValueError) as error:
      _refuse(context, code.INVALID_ARGUMENT, str(error))
    except tf.errors.OpError as error:
      _refuse(context, code.INTERNAL, str(error))
    response = predict_pb2.PredictResponse(
      outputs={name: tf.make_tensor_proto(value.numpy()) for name, value in outputs.items()}
    )
    response.model_spec.CopyFrom(asked)
    response.model_spec.signature_name = signature
    response.model_spec.version.value = self._version
    return response


def _tensors(inputs: Mapping[str, Any], specs: Mapping[str, tf.TensorSpec]) -> dict[str, tf.Tensor]:
  """Raises ValueError where the inputs are not those of the signature."""
  if set(inputs) != set(specs):
    raise ValueError(
      f"inputs do not match the signature: extra {sorted(set(inputs) - set(specs))}, missing"
      f" {sorted(set(specs) - set(inputs))}"
    )
  tensors = {name: tf.constant(tf.make_ndarray(value)) for name, value in inputs.items()}
  for name, tensor in tensors.items():
    spec = specs[name]
    if tensor.dtype != spec.dtype or not spec.shape.is_compatible_with(tensor.shape):
      raise ValueError(
        f"input {name!r} must be {spec.dtype.name} {spec.shape}, got {tensor.dtype.name}"
        f" {tensor.shape}"
      )
  return tensors


def _refuse(context: grpc.ServicerContext, code: grpc.StatusCode, message: str) -> NoReturn:
  context.abort(code, message)
  raise AssertionError("abort raises")
