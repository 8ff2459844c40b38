"""TensorFlow Serving's gRPC interface over an export, in this process, for tests and trials.

    with serve(pathlib.Path("saved_models/ml1m")) as address:
      client = RecommenderClient(address, "ml1m")

Answers and error codes are the server's. It does not batch, nor look for new versions. Needs the
extra [serving].
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from concurrent import futures
from typing import Any

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tf_twostage.serving.exporting import latest, load

_THREADS = 4
_GRACE = 1.0  # seconds that running calls may take when the server stops


@contextlib.contextmanager
def serve(path: pathlib.Path, *, port: int = 0) -> Iterator[str]:
  """Serves the newest version of a directory, or one version, on loopback.

  The name of the directory is the model's. Port 0 takes any free port. Yields "localhost:<port>".
  """
  server = grpc.server(futures.ThreadPoolExecutor(_THREADS))
  service = _Service(latest(path.resolve()))
  prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
  port = server.add_insecure_port(f"localhost:{port}")
  server.start()
  try:
    yield f"localhost:{port}"
  finally:
    server.stop(_GRACE).wait()


class _Service(prediction_service_pb2_grpc.PredictionServiceServicer):
  def __init__(self, version: pathlib.Path):
    self._name, self._version = version.parent.name, int(version.name)
    self._model = load(version)

  def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
    """Answers a request. `context.abort` raises."""
    code, spec = grpc.StatusCode, request.model_spec
    number = spec.version.value if spec.HasField("version") else self._version
    if (spec.name, number) != (self._name, self._version):
      context.abort(code.NOT_FOUND, f"no servable {spec.name!r}, version {number}")
    signature = spec.signature_name or "serving_default"
    if signature not in self._model.signatures:
      context.abort(code.FAILED_PRECONDITION, f"no signature {signature!r}")
    run = self._model.signatures[signature]
    try:
      outputs = run(**_tensors(request.inputs, run.structured_input_signature[1]))
    except (tf.errors.InvalidArgumentError, ValueError) as error:
      context.abort(code.INVALID_ARGUMENT, str(error))
    except tf.errors.OpError as error:
      context.abort(code.INTERNAL, str(error))
    response = predict_pb2.PredictResponse(
      outputs={name: tf.make_tensor_proto(value.numpy()) for name, value in outputs.items()}
    )
    response.model_spec.CopyFrom(spec)
    response.model_spec.signature_name = signature
    response.model_spec.version.value = self._version
    return response


def _tensors(inputs: Mapping[str, Any], specs: Mapping[str, tf.TensorSpec]) -> dict[str, tf.Tensor]:
  """Raises ValueError if the inputs are not those of the signature."""
  extra, missing = sorted(set(inputs) - set(specs)), sorted(set(specs) - set(inputs))
  if extra or missing:
    raise ValueError(f"inputs do not match the signature: extra {extra}, missing {missing}")
  tensors = {name: tf.constant(tf.make_ndarray(value)) for name, value in inputs.items()}
  for name, tensor in tensors.items():
    spec = specs[name]
    if tensor.dtype != spec.dtype or not spec.shape.is_compatible_with(tensor.shape):
      raise ValueError(
        f"input {name!r} must be {spec.dtype.name} {spec.shape}, got {tensor.dtype.name}"
        f" {tensor.shape}"
      )
  return tensors
