"""A gRPC client of a server that serves an export. Needs the extra [serving].

with RecommenderClient("localhost:8500", "ml1m", timeout=0.2) as client:
  (slate,) = client.recommend({"user_id": ["42"], ...}, k=10, exclude=[["1", "260"]])
  print([item.title for item in slate])
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tf_twostage.errors import InputError

# Raw features by name, a value for each user. Text and Python numbers are converted; a NumPy array
# keeps its type. Bags are [users, n], padded with ""; embeddings float32 [users, width]; sparse
# vectors int64 and float32 arrays [users, n], padded with -1 and 0.
Users = Mapping[str, Any]
Ids = Sequence[Sequence[str]]  # any number of item ids for each user
Each = float | Sequence[float] | np.ndarray  # one value for all users, or one for each


class Recommended(NamedTuple):
  """An item of a slate, with the scores of the ranker and of the generator."""

  id: str
  title: str
  score: float
  generator_score: float


class Candidate(NamedTuple):
  """An item with the generator's score."""

  id: str
  score: float
  probability: float


class Ranked(NamedTuple):
  """An item with the ranker's score."""

  id: str
  title: str
  score: float


class Shown(NamedTuple):
  """The item to show, the propensity to log with it, and the candidates it was drawn from."""

  id: str
  title: str
  propensity: float
  slate: tuple[str, ...]


class ServingError(Exception):
  """The server did not answer. `code` is gRPC's."""

  def __init__(self, message: str, code: grpc.StatusCode):
    super().__init__(message)
    self.code = code


class InvalidRequest(ServingError):
  """The request is wrong, and would fail again."""


class Unavailable(ServingError):
  """There is no such server, model, version or signature, or not yet."""


class TimedOut(ServingError):
  """No answer in time."""


_ERRORS = {
  grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
  grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
  grpc.StatusCode.UNAVAILABLE: Unavailable,
  grpc.StatusCode.NOT_FOUND: Unavailable,
  grpc.StatusCode.FAILED_PRECONDITION: Unavailable,  # no such signature
}

# What TensorFlow adds to the message of an operation.
_GRAPH = re.compile(
  r"^(Graph execution error:|Detected at node.*|<stack traces unavailable>|\s*\[\[\{\{node.*)$"
  r"|\[Op:\S*\]( name:)?",
  re.MULTILINE,
)


class RecommenderClient:
  """One model of one server; usable from several threads, and as a context manager."""

  def __init__(self, server: str, model: str, *, timeout: float = 1.0):
    """Args:
    server: "host:port".
    model: its name on the server.
    timeout: seconds that a call may take, connecting included.
    """
    self._server, self._model, self._timeout = server, model, timeout
    # An answer of many items exceeds gRPC's limit of 4 MiB.
    options = [("grpc.max_receive_message_length", -1)]
    self._channel = grpc.insecure_channel(server, options)
    self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

  def __enter__(self) -> RecommenderClient:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def close(self) -> None:
    self._channel.close()

  def recommend(
    self, users: Users, *, k: Each, exclude: Ids | None = None
  ) -> list[list[Recommended]]:
    """Up to k items for each user, best first.

    Args:
      users: user and context features.
      k: at least 1.
      exclude: ids not to return.

    Raises:
      InputError: an argument has the wrong type, length or range; so do all calls.
      ServingError: or a subclass; so do all calls.
    """
    answer = self._call("recommend", users, {"exclude": exclude}, k=(k, np.int32))
    return _items(Recommended, answer, "item_id", "title", "score", "generator_score")

  def retrieve(self, users: Users, *, k: Each, exclude: Ids | None = None) -> list[list[Candidate]]:
    """Up to k candidates for each user, the generator's best first.

    Args:
      users: user features; the generator reads no context.
      k, exclude: as for `recommend`.
    """
    answer = self._call("retrieve", users, {"exclude": exclude}, k=(k, np.int32))
    return _items(Candidate, answer, "item_id", "score", "probability")

  def rank(self, users: Users, candidates: Ids) -> list[list[Ranked]]:
    """Each user's candidates in the ranker's order."""
    answer = self._call("rank", users, {"candidates": candidates})
    return _items(Ranked, answer, "item_id", "title", "score")

  def sample(
    self,
    users: Users,
    *,
    seed: Each,
    temperature: Each = 1.0,
    exclude: Ids | None = None,
  ) -> list[Shown | None]:
    """Draws an item for each user; None if all items are excluded.

    Args:
      users: user and context features.
      seed: one for each user, different in each request; equal requests with equal seeds draw the
        same.
      temperature: above 1 explores more, below less.
      exclude: as for `recommend`.
    """
    settings = {"seed": (seed, np.int64), "temperature": (temperature, np.float32)}
    answer = self._call("sample", users, {"exclude": exclude}, **settings)
    columns = (answer[name] for name in ("item_id", "title", "propensity", "slate"))
    return [
      Shown(item.decode(), title.decode(), float(propensity), tuple(i.decode() for i in slate if i))
      if item
      else None
      for item, title, propensity, slate in zip(*columns, strict=True)
    ]

  def _call(
    self,
    signature: str,
    users: Users,
    items: Mapping[str, Ids | None],
    **settings: tuple[Each, type],
  ) -> dict[str, np.ndarray]:
    """Sends a request and returns its answer, a row for each user."""
    if not isinstance(users, Mapping) or not users:
      raise InputError(
        f"users must be a dict of features, see the signature's inputs; got {users!r}"
      )
    inputs = {name: _feature(name, values, users) for name, values in users.items()}
    sizes = {name: len(values) for name, values in inputs.items()}
    rows = next(iter(sizes.values()))
    if set(sizes.values()) != {rows}:
      raise InputError(
        f"users: features must have a value for each user; their numbers are {sizes}"
      )
    for name, ids in items.items():
      inputs[name] = _padded(name, [[]] * rows if ids is None else ids, rows)
    for name, (value, dtype) in settings.items():
      inputs[name] = _setting(name, value, dtype, rows)
    request = predict_pb2.PredictRequest(
      inputs={name: tf.make_tensor_proto(value) for name, value in inputs.items()}
    )
    request.model_spec.name = self._model
    request.model_spec.signature_name = signature
    try:
      response = self._stub.Predict(request, timeout=self._timeout)
    except grpc.RpcError as error:
      code = error.code()
      late = code == grpc.StatusCode.DEADLINE_EXCEEDED
      reason = f"no answer within {self._timeout:g} s" if late else reason_in(error.details())
      message = f"{self._model}.{signature} at {self._server}: {reason}"
      raise _ERRORS.get(code, ServingError)(message, code) from error
    return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}


def reason_in(details: str | None) -> str:
  """What TensorFlow says without the names of the graph; of a failed check, its message alone."""
  found = re.search(r"assertion failed: ((?:\[.*?\] ?)+)", details or "")
  if found:
    return " ".join(part.strip("[] ") for part in found[1].split("] ["))
  lines = [line for line in _GRAPH.sub("", details or "").splitlines() if line.strip()]
  return " ".join(map(str.strip, lines)) or "no reason given"


def _setting(name: str, value: Any, dtype: type, rows: int) -> np.ndarray:
  """A setting with a value for each row, [rows], as a server requires that batches requests."""
  values = np.asarray(value)
  whole = np.issubdtype(dtype, np.integer)
  if values.dtype.kind not in ("iu" if whole else "iuf") or values.shape not in ((), (1,), (rows,)):
    kind = f"a whole number of {np.dtype(dtype).name}" if whole else "a number"
    raise InputError(f"{name} must be {kind}, or one for each of the {rows} users; got {value!r}")
  if whole and (values.min() < np.iinfo(dtype).min or values.max() > np.iinfo(dtype).max):
    raise InputError(f"{name} must fit into {np.dtype(dtype).name}, got {value!r}")
  return np.broadcast_to(values.astype(dtype), [rows])


def _feature(name: str, values: Any, users: Users) -> np.ndarray:
  array = np.asarray(values)
  if array.ndim not in (1, 2):
    raise InputError(f"users: {name!r} must hold a value or a list for each user, got {values!r}")
  if array.ndim == 2 and name.endswith("_ages") and name.removesuffix("_ages") in users:
    return _padding_first(array.astype(np.float64))  # beside the items of a sequence
  is_sparse = f"{name.removesuffix('_weights')}_ids" in users
  if array.ndim == 2 and array.dtype.kind == "f" and not is_sparse:
    return array.astype(np.float32)  # an embedding, which is never padded
  if array.ndim == 2:
    return _padding_first(array)
  if array.dtype.kind in "iuf" and not isinstance(values, np.ndarray):
    return array.astype(np.float64)
  return array


def _padding_first(values: np.ndarray) -> np.ndarray:
  """[rows, W] with a column before it: "" for bags, -1 and 0.0 for sparse vectors.

  A server that batches requests pads a tensor with its first element, which must be padding.
  """
  padding = {"i": -1, "f": 0.0}.get(values.dtype.kind, "")
  return np.insert(values, 0, padding, axis=1)


def _padded(name: str, ids: Ids, rows: int) -> np.ndarray:
  """[rows, W], padded at both ends."""
  lists = [*ids] if isinstance(ids, Sequence | np.ndarray) and not isinstance(ids, str) else []
  if len(lists) != rows or not all(isinstance(x, Sequence | np.ndarray) for x in lists):
    raise InputError(
      f"{name} must hold a list of item ids for each of the {rows} users, got {ids!r}"
    )
  texts = [x for x in lists if isinstance(x, str | bytes)]
  numbers = [i for x in lists for i in x if not isinstance(i, str)]
  if texts or numbers:
    raise InputError(
      f"{name} must hold a list of item ids, which are text, for each user; got"
      f" {(texts or numbers)[0]!r} in place of {'a list' if texts else 'an id'}"
    )
  width = max(map(len, ids), default=0)
  padded = [[*some, *[""] * (width - len(some))] for some in ids]
  return _padding_first(np.array(padded, dtype=object).reshape(rows, width))


def _items(kind: Any, answer: Mapping[str, np.ndarray], *columns: str) -> list[list[Any]]:
  """Rows of objects made of columns [B, W], without the padding."""
  return [
    [
      kind(*(f.decode() if isinstance(f, bytes) else float(f) for f in fields))
      for fields in zip(*values, strict=True)
      if fields[0]
    ]
    for values in zip(*(answer[c] for c in columns), strict=True)
  ]
