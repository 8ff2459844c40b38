"""The client and the local server, over gRPC on loopback."""

import socket
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tests.serving import small
from tests.serving.small import IDS, SLATE
from tf_twostage.errors import InputError
from tf_twostage.serving import local_server
from tf_twostage.serving.client import (
  InvalidRequest,
  RecommenderClient,
  ServingError,
  TimedOut,
  Unavailable,
)

K = 4


@pytest.fixture
def client(server):
  with RecommenderClient(server, "movies", timeout=60) as client:
    yield client


@pytest.fixture(scope="module")
def stub(server):
  with grpc.insecure_channel(server) as channel:
    yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def everything(rows):
  return {**small.users(rows), **small.context(rows)}


def expected(method, **inputs):
  return small.ask(getattr(small.recommender(), method), **inputs)


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("history", [0, 3, 500])
def test_all_signatures_answer(client, rows, history):
  excluded = [*IDS[:3], *(f"gone {i}" for i in range(500))][:history]
  own, raw = [excluded] * rows, small.requests(rows, ["", *excluded])
  wanted = expected("recommend", **raw, k=np.int32(100))
  slates = client.recommend(everything(rows), k=100, exclude=own)
  assert len(slates) == rows
  for row, slate in enumerate(slates):
    assert [item.id for item in slate] == [i for i in wanted["item_id"][row] if i]
    assert [item.title for item in slate] == [small.TITLE[item.id] for item in slate]
    assert slate[0].score == pytest.approx(wanted["score"][row, 0], rel=1e-4)
    assert slate[0].generator_score == pytest.approx(wanted["generator_score"][row, 0], rel=1e-4)
  for row in client.retrieve(small.users(rows), k=100, exclude=own):
    assert len(row) == 15 - min(history, 3)
    assert sum(candidate.probability for candidate in row) == pytest.approx(1, abs=1e-4)
  for row in client.rank(everything(rows), [list(IDS[:5])] * rows):
    assert {item.id for item in row} == set(IDS[:5])
    assert [item.score for item in row] == sorted((item.score for item in row), reverse=True)
  seeds = np.arange(rows)
  wanted = expected("sample", **raw, temperature=np.float32(2), seed=seeds)
  for row, shown in enumerate(
    client.sample(everything(rows), seed=seeds, temperature=2.0, exclude=own)
  ):
    assert shown.id == wanted["item_id"][row]
    assert shown.slate == tuple(wanted["slate"][row])
    assert shown.propensity == pytest.approx(wanted["propensity"][row], rel=1e-3)
    assert shown.id not in excluded


def test_users_may_have_histories_of_their_own_and_a_k_of_their_own(client):
  slates = client.recommend(everything(3), k=[1, 2, 15], exclude=[[], list(IDS[:6]), list(IDS)])
  assert [len(slate) for slate in slates] == [1, 2, 0]


def test_nothing_to_show_is_none(client):
  assert client.sample(everything(2), seed=[1, 2], exclude=[list(IDS), []])[0] is None


def test_plain_python_values_find_their_types(client):
  users = {name: list(map(str, values)) for name, values in small.users(2).items()}
  (first, _) = client.recommend({**users, "timestamp": [10**9, 10**9]}, k=3)
  assert len(first) == 3


def test_padding_comes_first_as_servers_that_batch_pad_with_it(client, monkeypatch):
  sent = {}

  def predict(request, timeout):
    sent.update({name: tf.make_ndarray(value) for name, value in request.inputs.items()})
    names = ("item_id", "title", "score", "generator_score")
    return predict_pb2.PredictResponse(
      outputs={name: tf.make_tensor_proto(np.zeros([0, 0])) for name in names}
    )

  monkeypatch.setattr(client._stub, "Predict", predict)
  users = {
    "tags": [["x", "y"], ["z", ""]],
    "words_ids": np.array([[3, 5], [2, -1]]),
    "words_weights": np.array([[0.5, 1.0], [2.0, 0.0]], np.float32),
  }
  client.recommend(users, k=3, exclude=[["a"], ["b", "c"]])
  assert sent["exclude"].tolist() == [[b"", b"a", b""], [b"", b"b", b"c"]]
  assert sent["tags"].tolist() == [[b"", b"x", b"y"], [b"", b"z", b""]]
  assert sent["words_ids"].tolist() == [[-1, 3, 5], [-1, 2, -1]]
  assert sent["words_weights"].tolist() == [[0, 0.5, 1], [0, 2, 0]]
  assert [sent[name].dtype for name in ("words_ids", "words_weights")] == [np.int64, np.float32]
  assert list(sent["k"]) == [3, 3]  # a batch has a value for each row


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda c: c.recommend(everything(2), k=-1), "k must be at least 1, got -1"),
    (lambda c: c.recommend(everything(2), k=[3, 0]), "k must be at least 1, got 0"),
    (
      lambda c: c.recommend({**everything(2), "timestamp": [np.nan, 1.0]}, k=1),
      "timestamp must be finite, got nan",
    ),
    (lambda c: c.rank(everything(1), [["item_0", "x y"]]), "ids of the catalogue, got x y"),
    (lambda c: c.sample(everything(1), seed=1, temperature=0), "temperature must be above 0"),
    (lambda c: c.sample(everything(1), seed=1, temperature=np.nan), "temperature must be above 0"),
    (lambda c: c.retrieve(everything(1), k=1), r"extra \['timestamp'\]"),
    (lambda c: c.recommend(small.users(1), k=1), r"missing \['timestamp'\]"),
    (
      lambda c: c.recommend({**everything(1), "timestamp": ["noon"]}, k=1),
      "input 'timestamp' must be float64",
    ),
    (
      lambda c: c.recommend({**everything(2), "age": [["a"], ["b"]]}, k=1),
      "input 'age' must be string",
    ),
  ],
)
def test_wrong_requests_say_why_and_the_service_goes_on(client, call, words):
  with pytest.raises(InvalidRequest, match=words) as caught:
    call(client)
  assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
  assert "movies." in str(caught.value)
  assert "node" not in str(caught.value)  # the graph is none of the caller's business
  assert len(client.recommend(everything(1), k=K)[0]) == K


def test_what_does_not_fit_together_is_not_even_sent(client):
  with pytest.raises(InputError, match="exclude must hold a list of item ids for each of the 2"):
    client.recommend(everything(2), k=1, exclude=[[]])
  with pytest.raises(InputError, match="users must be a dict of features"):
    client.recommend({}, k=1)


@pytest.mark.parametrize(
  ("wrong", "words"),
  [
    ({"exclude": ["item_284", "b"]}, "exclude .* got 'item_284' in place of a list"),
    ({"exclude": [["a"], [260]]}, "exclude .* got 260 in place of an id"),
    ({"exclude": "ab"}, "exclude must hold a list of item ids for each of the 2 users"),
    ({"k": 2.5}, "k must be a whole number of int32, .* got 2.5"),
    ({"k": True}, "k must be a whole number"),
    ({"k": None}, "k must be a whole number"),
    ({"k": [1, 2, 3]}, "k must be a whole number .* for each of the 2 users"),
    ({"k": 2**40}, "k must fit into int32, got 1099511627776"),
    ({"users": {"a": [1.0, 2.0], "b": [1.0]}}, r"their numbers are \{'a': 2, 'b': 1\}"),
    ({"users": {"a": "text"}}, "users: 'a' must hold a value or a list for each user"),
  ],
)
def test_wrong_arguments_are_refused_before_they_are_sent(wrong, words):
  with RecommenderClient("localhost:1", "movies") as client, pytest.raises(InputError, match=words):
    client.recommend(**{"users": everything(2), "k": 3, **wrong})


def test_a_seed_is_a_whole_number():
  with RecommenderClient("localhost:1", "movies") as client:
    with pytest.raises(InputError, match="seed must be a whole number of int64"):
      client.sample(everything(2), seed=0.5)
    with pytest.raises(InputError, match=r"seed must (fit into|be a whole number of) int64"):
      client.sample(everything(2), seed=2**70)
    with pytest.raises(InputError, match="temperature must be a number"):
      client.sample(everything(2), seed=1, temperature="warm")


def test_there_is_no_such_model_or_server(server):
  with RecommenderClient(server, "books") as client, pytest.raises(Unavailable, match="books"):
    client.recommend(everything(1), k=1)
  with RecommenderClient("localhost:1", "movies") as client, pytest.raises(Unavailable):
    client.recommend(everything(1), k=1)


def test_no_answer_in_time():
  with socket.create_server(("localhost", 0)) as silent:  # takes calls and never answers
    place = f"localhost:{silent.getsockname()[1]}"
    with RecommenderClient(place, "movies", timeout=0.2) as client:
      start = time.monotonic()
      with pytest.raises(TimedOut, match=r"no answer within 0.2 s"):
        client.recommend(everything(1), k=1)
      assert time.monotonic() - start < 5


def request(signature="recommend", model="movies", version=None, **changed):
  inputs = {**small.requests(1), "k": np.array([K], np.int32), **changed}
  asked = predict_pb2.PredictRequest(
    inputs={name: tf.make_tensor_proto(value) for name, value in inputs.items()}
  )
  asked.model_spec.name, asked.model_spec.signature_name = model, signature
  if version:
    asked.model_spec.version.value = version
  return asked


def test_the_server_names_the_version_and_knows_the_default_signature(stub):
  answer = stub.Predict(request(signature="", version=1))
  assert answer.model_spec.version.value == 1
  assert answer.model_spec.signature_name == "serving_default"
  assert tf.make_ndarray(answer.outputs["item_id"]).shape == (1, K)


@pytest.mark.parametrize(
  ("asked", "code"),
  [
    (request(version=8), grpc.StatusCode.NOT_FOUND),
    (request(model="books"), grpc.StatusCode.NOT_FOUND),
    (request(signature="nonsense"), grpc.StatusCode.FAILED_PRECONDITION),
    (request(k=np.array([K])), grpc.StatusCode.INVALID_ARGUMENT),
    (request(k=np.zeros(0, np.int32)), grpc.StatusCode.INVALID_ARGUMENT),
  ],
)
def test_the_server_refuses_with_the_codes_of_the_real_one(stub, asked, code):
  with pytest.raises(grpc.RpcError) as caught:
    stub.Predict(asked)
  assert caught.value.code() == code


def test_a_damaged_tensor_is_an_invalid_argument(stub):
  asked = request()
  asked.inputs["user_id"].tensor_shape.dim[0].size = 5
  with pytest.raises(grpc.RpcError) as caught:
    stub.Predict(asked)
  assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_other_failures_keep_their_code(client, monkeypatch):
  class Failed(grpc.RpcError):
    def code(self):
      return grpc.StatusCode.INTERNAL

    def details(self):
      return None

  def fail(*_, **__):
    raise Failed

  monkeypatch.setattr(client._stub, "Predict", fail)
  with pytest.raises(ServingError, match="no reason given") as caught:
    client.recommend(everything(1), k=1)
  assert caught.value.code == grpc.StatusCode.INTERNAL


def test_there_is_nothing_to_serve(tmp_path):
  with pytest.raises(InputError, match="no version"), local_server.serve(tmp_path):
    pass
  assert SLATE > K
