"""Calls a server that serves an export, over gRPC, and says clearly what went wrong.

    with RecommenderClient("localhost:8500", "ml1m", timeout=0.2) as client:
      (slate,) = client.recommend({"user_id": ["42"], ...}, k=10, exclude=[["1", "260"]])
      print([item.title for item in slate])

Needs the extra [serving].
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

# Raw features by name, a value for each user. Text and Python's numbers find their types; a NumPy
# array keeps its own. Bags are [users, n], padded with ""; sparse vectors are int64 and float32
# arrays [users, n], padded with -1 and 0.
Users = Mapping[str, Any]
Ids = Sequence[Sequence[str]]  # some item ids for each user, of any number
Each = float | Sequence[float] | np.ndarray  # one value for all users, or one for each


@dataclasses.dataclass(frozen=True)
class Recommended:
  """An item of a slate, with the scores of the ranker and of the generator."""

  id: str
  title: str
  score: float
  generator_score: float


@dataclasses.dataclass(frozen=True)
class Candidate:
  """An item as the generator sees it."""

  id: str
  score: float
  probability: float


@dataclasses.dataclass(frozen=True)
class Ranked:
  """An item as the ranker sees it."""

  id: str
  title: str
  score: float


@dataclasses.dataclass(frozen=True)
class Shown:
  """The item to show and the propensity to log with it; `slate` holds the candidates it beat."""

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
  """The request is wrong; sent again it fails again."""


class Unavailable(ServingError):
  """There is no such server, model, version or signature, or not yet."""


class TimedOut(ServingError):
  """No answer in time."""


_KINDS = {
  grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
  grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
  grpc.StatusCode.UNAVAILABLE: Unavailable,
  grpc.StatusCode.NOT_FOUND: Unavailable,
  grpc.StatusCode.FAILED_PRECONDITION: Unavailable,  # no such signature
}


class RecommenderClient:
  """One model of one server; usable from several threads, and as a context manager."""

  def __init__(self, server: str, model: str, *, timeout: float = 1.0):
    """Args:
    server: "host:port".
    model: its name on the server.
    timeout: seconds that a call may take, connecting included.
    """
    self._server, self._model, self._timeout = server, model, timeout
    self._channel = grpc.insecure_channel(server)
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
      exclude: what not to return.

    Raises:
      ServingError: or one of its kinds, as all calls do.
    """
    rows, inputs = _features(users)
    answer = self._call(
      "recommend", {**inputs, **_excluding(exclude, rows), "k": _each(k, rows, np.int32)}
    )
    return _items(Recommended, answer, "item_id", "title", "score", "generator_score")

  def retrieve(self, users: Users, *, k: Each, exclude: Ids | None = None) -> list[list[Candidate]]:
    """Up to k candidates for each user, the generator's best first.

    Args:
      users: user features; the generator reads no context.
      k, exclude: as for `recommend`.
    """
    rows, inputs = _features(users)
    answer = self._call(
      "retrieve", {**inputs, **_excluding(exclude, rows), "k": _each(k, rows, np.int32)}
    )
    return _items(Candidate, answer, "item_id", "score", "probability")

  def rank(self, users: Users, candidates: Ids) -> list[list[Ranked]]:
    """Each user's candidates in the ranker's order."""
    rows, inputs = _features(users)
    answer = self._call("rank", {**inputs, "candidates": _padded(candidates, rows)})
    return _items(Ranked, answer, "item_id", "title", "score")

  def sample(
    self,
    users: Users,
    *,
    seed: Each,
    temperature: Each = 1.0,
    exclude: Ids | None = None,
  ) -> list[Shown | None]:
    """An item for each user, drawn; None for one to whom nothing can be shown.

    Args:
      users: user and context features.
      seed: one for each user, different in each request; users with the same one draw alike.
      temperature: above 1 explores more, below less.
      exclude: as for `recommend`.
    """
    rows, inputs = _features(users)
    answer = self._call(
      "sample",
      {
        **inputs,
        **_excluding(exclude, rows),
        "seed": _each(seed, rows, np.int64),
        "temperature": _each(temperature, rows, np.float32),
      },
    )
    columns = (answer[name] for name in ("item_id", "title", "propensity", "slate"))
    return [
      Shown(item.decode(), title.decode(), float(propensity), tuple(map(bytes.decode, slate)))
      if item
      else None
      for item, title, propensity, slate in zip(*columns, strict=True)
    ]

  def _call(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = self._model
    request.model_spec.signature_name = signature
    for name, value in inputs.items():
      request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    try:
      response = self._stub.Predict(request, timeout=self._timeout)
    except grpc.RpcError as error:
      raise self._error(signature, error) from error
    return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}

  def _error(self, signature: str, error: grpc.RpcError) -> ServingError:
    code = error.code()
    place = f"{self._model}.{signature} at {self._server}"
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
      return TimedOut(f"{place}: no answer within {self._timeout:g} s", code)
    return _KINDS.get(code, ServingError)(f"{place}: {_reason(error.details())}", code)


def _reason(details: str | None) -> str:
  """What a check in the graph says, without the graph; or all there is."""
  found = re.search(r"assertion failed: ((?:\[.*?\] ?)+)", details or "")
  if not found:
    return details or "no reason given"
  return " ".join(part.strip("[] ") for part in found[1].split("] ["))


def _features(users: Users) -> tuple[int, dict[str, np.ndarray]]:
  inputs = {}
  for name, values in users.items():
    array = np.asarray(values)
    if array.ndim == 2:
      array = _padding_first(array)
    elif array.dtype.kind in "iuf" and not isinstance(values, np.ndarray):
      array = array.astype(np.float64)
    inputs[name] = array
  if not inputs:
    raise ValueError("users: no features; see the signature's inputs")
  return len(next(iter(inputs.values()))), inputs


def _excluding(exclude: Ids | None, rows: int) -> dict[str, np.ndarray]:
  return {"exclude": _padded([[]] * rows if exclude is None else exclude, rows)}


def _padding_first(values: np.ndarray) -> np.ndarray:
  """[rows, W] with a column before it: "" for bags, -1 and 0.0 for sparse vectors.

  A server that batches requests pads each with its own first element, so that must be padding.
  """
  padding = {"i": -1, "f": 0.0}.get(values.dtype.kind, "")
  return np.insert(values, 0, padding, axis=1)


def _padded(ids: Ids, rows: int) -> np.ndarray:
  """[rows, W], padded before and behind."""
  if len(ids) != rows:
    raise ValueError(f"item ids for {len(ids)} users, but features of {rows}")
  width = max(map(len, ids), default=0)
  padded = [[*some, *[""] * (width - len(some))] for some in ids]
  return _padding_first(np.array(padded, dtype=object).reshape(rows, width))


def _each(value: Each, rows: int, dtype: type) -> np.ndarray:
  """One for each row, which a server that batches insists on."""
  return np.broadcast_to(np.asarray(value, dtype), [rows])


def _items(kind: Any, answer: Mapping[str, np.ndarray], *columns: str) -> list[list[Any]]:
  """Rows of objects made of columns [B, W], without the padding."""

  def row(*values: np.ndarray) -> Iterator[Any]:
    for fields in zip(*values, strict=True):
      if fields[0]:
        yield kind(*(f.decode() if isinstance(f, bytes) else float(f) for f in fields))

  return [list(row(*values)) for values in zip(*(answer[c] for c in columns), strict=True)]
