"""Malformed requests to a local server: each must be refused for a reason, or have a finite answer.

python -m tests.malformed --requests=2000     # prints those that were not
"""

import argparse
import pathlib
import tempfile

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import predict_pb2

from tests.serving import small
from tf_twostage import serving
from tf_twostage.serving import local_server

PREDICT = "/tensorflow.serving.PredictionService/Predict"
REFUSALS = {
  grpc.StatusCode.INVALID_ARGUMENT,
  grpc.StatusCode.RESOURCE_EXHAUSTED,
  grpc.StatusCode.NOT_FOUND,
  grpc.StatusCode.FAILED_PRECONDITION,
}
NOISE = ("node", "Op:", "Traceback", "Graph")
NUMBERS = [np.nan, np.inf, -np.inf, 1.7e308, -1.7e308, 3e38, 1e-45, 5e-324, -0.0, 2**31, -(2**63)]
TEXTS = [b"", b"\xff\xfe", b"\x00", b"a\x00", b"]] [[node", b"x" * 100_000, "日本".encode()]
SIZES = [-1, 0, 2, 20_000_000, 2**31, 2**62]


def valid(name, rows=2):
  """A request to a signature that has an answer."""
  settings = {
    **small.requests(rows),
    "k": np.full(rows, 3, np.int32),
    "temperature": np.ones(rows, np.float32),
    "seed": np.arange(rows),
    "candidates": small.exclude(rows, small.IDS[:3]),
  }
  _, specs = small.recommender().signatures()[name]
  asked = predict_pb2.PredictRequest(
    inputs={column: tf.make_tensor_proto(settings[column]) for column in specs}
  )
  asked.model_spec.name, asked.model_spec.signature_name = "movies", name
  return asked


def _value(rng, request, name):
  """Another number or text in place of the first one."""
  old = tf.make_ndarray(request.inputs[name])
  new = old.copy()
  if new.dtype == object:
    new.flat[0] = TEXTS[rng.integers(len(TEXTS))]
  elif new.dtype.kind == "f":
    with np.errstate(over="ignore"):
      new.flat[0] = NUMBERS[rng.integers(len(NUMBERS))]
  else:
    bounds = np.iinfo(new.dtype)
    new.flat[0] = rng.choice([bounds.min, -1, 0, bounds.max])
  request.inputs[name].CopyFrom(tf.make_tensor_proto(new))


def _type(rng, request, name):
  """A type that the values do not have, or that does not exist."""
  request.inputs[name].dtype = int(rng.choice([0, 1, 2, 3, 7, 8, 9, 14, 20, 21, 23, 101, 999]))


def _converted(rng, request, name):
  """Values of another type."""
  shape = tf.make_ndarray(request.inputs[name]).shape
  dtype = [np.bool_, np.int8, np.float16, np.complex64, np.int64, np.float32][rng.integers(6)]
  request.inputs[name].CopyFrom(tf.make_tensor_proto(np.zeros(shape, dtype)))


def _size(rng, request, name):
  """A shape that the values do not have."""
  dims = request.inputs[name].tensor_shape.dim
  dims[rng.integers(len(dims))].size = SIZES[rng.integers(len(SIZES))]


def _rank(rng, request, name):
  """More dimensions, fewer, or an unknown number."""
  shape = request.inputs[name].tensor_shape
  how = rng.integers(3)
  if how == 0:
    shape.unknown_rank = True
  elif how == 1:
    del shape.dim[-1]
  else:
    shape.dim.extend([type(shape).Dim(size=1)] * int(rng.choice([1, 70, 300])))


def _content(rng, request, name):
  """Random bytes as the values."""
  request.inputs[name].tensor_content = rng.bytes(int(rng.integers(1, 40)))


def _dropped(rng, request, name):
  """A type and a shape without values."""
  proto = request.inputs[name]
  kept = tensor_pb2.TensorProto(dtype=proto.dtype, tensor_shape=proto.tensor_shape)
  request.inputs[name].CopyFrom(kept)


def _rows(rng, request, name):
  """Another number of rows than the other inputs have."""
  old = tf.make_ndarray(request.inputs[name])
  new = old[: rng.integers(len(old))] if rng.random() < 0.5 else np.concatenate([old, old])
  request.inputs[name].CopyFrom(tf.make_tensor_proto(new))


def _missing(rng, request, name):
  del request.inputs[name]


def _extra(rng, request, name):
  for number in range(int(rng.choice([1, 1000]))):
    request.inputs[f"{name}{number}" * int(rng.choice([1, 50]))].CopyFrom(request.inputs[name])


def _spec(rng, request, name):
  spec = request.model_spec
  how = rng.integers(3)
  if how == 0:
    spec.name = "m" * int(rng.choice([0, 10, 100_000]))
  elif how == 1:
    spec.signature_name = "s" * int(rng.choice([10, 100_000]))
  else:
    spec.version.value = int(rng.choice([-1, 0, 2**62]))


CHANGES = [
  *(_value, _type, _converted, _size, _rank, _content, _dropped, _rows, _missing, _extra, _spec),
  None,  # the bytes of the request
]


def requests(count, seed=0):
  """Yields (description, bytes of a request) `count` times."""
  rng = np.random.default_rng(seed)
  names = [*small.recommender().signatures()]
  for number in range(count):
    request = valid(names[rng.integers(len(names))])
    change = CHANGES[number % len(CHANGES)]
    name = str(rng.choice(sorted(request.inputs)))
    about = f"{number}: {request.model_spec.signature_name}.{name}"
    if change:
      change(rng, request, name)
      yield f"{about} {change.__name__}", request.SerializeToString()
    else:
      sent = bytearray(request.SerializeToString())
      sent[rng.integers(len(sent))] ^= 1 << rng.integers(8)
      yield f"{about} bit", bytes(sent)


def problem(channel, request):
  """What is wrong with the answer to a request; None: nothing."""
  predict = channel.unary_unary(
    PREDICT, response_deserializer=predict_pb2.PredictResponse.FromString
  )
  try:
    answer = predict(request, timeout=60)
  except grpc.RpcError as error:
    details = error.details()
    if details == "Exception deserializing request!":  # gRPC's own answer
      return None
    noise = [word for word in NOISE if word in details]
    return f"{error.code()}: {details}" if error.code() not in REFUSALS or noise else None
  numbers = {name: tf.make_ndarray(value) for name, value in answer.outputs.items()}
  infinite = [n for n, v in numbers.items() if v.dtype.kind == "f" and not np.isfinite(v).all()]
  return f"not finite: {infinite}" if infinite else None


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--requests", type=int, default=2000)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as root:
    version = pathlib.Path(root, "movies", "1")
    serving.save(small.recommender(), version)
    with local_server.serve(version) as address, grpc.insecure_channel(address) as channel:
      tried = [
        (about, problem(channel, r)) for about, r in requests(arguments.requests, arguments.seed)
      ]
  wrong = [f"  {about}: {found}" for about, found in tried if found]
  print("\n".join([f"{len(tried)} requests, {len(wrong)} answered wrongly", *wrong]))


if __name__ == "__main__":
  main()
