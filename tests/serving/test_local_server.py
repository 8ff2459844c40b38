"""The limits of the local server, and what it answers beyond them."""

import logging
import shutil
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf

from tests import malformed
from tests.serving import small
from tf_twostage import serving
from tf_twostage.errors import InputError
from tf_twostage.serving import local_server
from tf_twostage.serving.client import RecommenderClient, ServingError
from tf_twostage.serving.exporting import EXTRA

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def everything(rows):
  return {**small.users(rows), **small.context(rows)}


@pytest.fixture
def client(server):
  with RecommenderClient(server, "movies", timeout=60) as client:
    yield client


def refused(client, rows=2, **arguments):
  """The error of a call that the server has no room for."""
  with pytest.raises(ServingError) as caught:
    client.recommend(everything(rows), **{"k": 1, **arguments})
  assert caught.value.code == EXHAUSTED
  return str(caught.value)


def test_malformed_requests_are_refused_or_have_finite_answers(server):
  with grpc.insecure_channel(server) as channel:
    tried = [(about, malformed.problem(channel, r)) for about, r in malformed.requests(72)]
    assert [(about, problem) for about, problem in tried if problem] == []
    valid = malformed.valid("sample").SerializeToString()
    assert malformed.problem(channel, valid) is None


def test_ids_that_are_no_text_are_refused_with_the_reason(server):
  request = malformed.valid("rank")
  request.inputs["candidates"].CopyFrom(tf.make_tensor_proto([[b"\xff"], [b"item_1"]]))
  predict = local_server.prediction_service_pb2_grpc.PredictionServiceStub
  with grpc.insecure_channel(server) as channel, pytest.raises(grpc.RpcError) as caught:
    predict(channel).Predict(request)
  assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
  assert caught.value.details() == "candidates must be ids of the catalogue, got \ufffd"


def test_a_malformed_request_is_noticed(server, monkeypatch):
  monkeypatch.setattr(malformed, "REFUSALS", set())
  with grpc.insecure_channel(server) as channel:
    request = malformed.valid("recommend")
    del request.inputs["k"]
    assert "INVALID_ARGUMENT" in malformed.problem(channel, request.SerializeToString())


def test_a_tensor_is_refused_by_the_size_that_it_claims(server):
  """Before it is expanded, which would take seconds."""
  request = malformed.valid("recommend")
  request.inputs["exclude"].CopyFrom(tf.make_tensor_proto(["gone"], shape=[1, 1]))
  request.inputs["exclude"].tensor_shape.dim[1].size = 20_000_000
  predict = local_server.prediction_service_pb2_grpc.PredictionServiceStub
  start = time.monotonic()
  with grpc.insecure_channel(server) as channel, pytest.raises(grpc.RpcError) as caught:
    predict(channel).Predict(request)
  assert caught.value.code() == EXHAUSTED
  assert "20000" in caught.value.details()
  assert time.monotonic() - start < 1


def test_a_request_may_have_so_many_bytes(client):
  refused(client, rows=1, exclude=[["x" * local_server._BYTES]])


def test_a_request_may_score_so_many_pairs(client, monkeypatch):
  monkeypatch.setattr(local_server, "_LARGE", 15)
  monkeypatch.setattr(local_server, "_PAIRS", 3 * 15)
  assert "4 users and 15 items are 60 pairs, of which a request may have 45" in refused(client, 4)
  assert len(client.recommend(everything(3), k=1)) == 3
  assert len(client.rank(everything(4), [["item_1"]] * 4)) == 4  # 8 pairs, with padding


class Slow:
  """A model whose first calls last until they are released."""

  def __init__(self, model, calls):
    self.signatures = {"recommend": self}
    self._run, self._ids = model.signatures["recommend"], model._ids
    self.structured_input_signature = self._run.structured_input_signature
    self.started, self.released = threading.Semaphore(0), threading.Event()
    self._slow = calls

  def __call__(self, **inputs):
    self._slow -= 1
    if self._slow >= 0:
      self.started.release()
      self.released.wait(60)
    return self._run(**inputs)


@pytest.fixture
def slow(exported, monkeypatch):
  """Serves a model whose first two calls wait; yields the model and a client."""
  model = Slow(serving.exporting.load(exported), 2)
  monkeypatch.setattr(local_server, "load_latest", lambda path: (exported, model))
  with (
    local_server.serve(exported) as address,
    RecommenderClient(address, "movies", timeout=60) as client,
  ):
    yield model, client
    model.released.set()


def start(client, rows, count):
  """Starts calls and returns their threads."""
  threads = [
    threading.Thread(target=client.recommend, args=(everything(rows),), kwargs={"k": 1})
    for _ in range(count)
  ]
  for thread in threads:
    thread.start()
  return threads


def test_large_requests_leave_room_for_small_ones(slow, monkeypatch):
  model, client = slow
  monkeypatch.setattr(local_server, "_LARGE", 2 * 15)
  threads = start(client, 3, 2)
  for _ in threads:
    assert model.started.acquire(timeout=60)
  assert "too many large requests are running" in refused(client, 3)
  assert len(client.recommend(everything(2), k=1)) == 2
  model.released.set()
  for thread in threads:
    thread.join()
  assert len(client.recommend(everything(3), k=1)) == 3


def test_so_many_calls_may_wait(exported, monkeypatch):
  monkeypatch.setattr(local_server, "_CALLS", 0)
  with (
    local_server.serve(exported) as address,
    RecommenderClient(address, "movies", timeout=60) as client,
  ):
    refused(client)


def test_an_unexpected_failure_is_internal_and_logged(slow, caplog, monkeypatch):
  model, client = slow

  def fail(**_):
    raise KeyError("surprise")

  monkeypatch.setattr(model, "_run", fail)
  model.released.set()
  with caplog.at_level(logging.ERROR), pytest.raises(ServingError, match="surprise") as caught:
    client.recommend(everything(1), k=1)
  assert caught.value.code == grpc.StatusCode.INTERNAL
  assert "a request failed" in caplog.text


def cut(file):
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
  content = np.fromfile(file, np.uint8)
  content[len(content) // 2] ^= 1
  content.tofile(file)


DAMAGES = {
  "empty": lambda version: shutil.rmtree(version) or version.mkdir(),
  "cut graph": lambda version: cut(version / "saved_model.pb"),
  "cut variables": lambda version: cut(version / "variables" / "variables.data-00000-of-00001"),
  "flipped variables": lambda version: flip(
    version / "variables" / "variables.data-00000-of-00001"
  ),
  "flipped index": lambda version: flip(version / "variables" / "variables.index"),
}


@pytest.mark.parametrize(
  ("damage", "with_digests"),
  [
    *(("empty", True), ("flipped variables", True)),
    *(("cut graph", False), ("cut variables", False), ("flipped index", False)),
  ],
)
def test_the_newest_version_that_loads_is_served(exported, tmp_path, caplog, damage, with_digests):
  for version in ("1", "2"):
    shutil.copytree(exported, tmp_path / "movies" / version)
  newest = tmp_path / "movies" / "2"
  if not with_digests:
    (newest / EXTRA / "digests.json").unlink()
  DAMAGES[damage](newest)
  with (
    local_server.serve(tmp_path / "movies") as address,
    RecommenderClient(address, "movies", timeout=60) as client,
  ):
    assert len(client.recommend(everything(1), k=1)) == 1
  assert "version 2 is not used" in caplog.text
  assert str(newest) in caplog.text
  with pytest.raises(InputError, match="no"), local_server.serve(newest):
    pass
