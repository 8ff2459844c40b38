"""Rankers that somebody else made: what is called, what is refused."""

import numpy as np
import pytest
import tensorflow as tf

from tests import user_logs
from tests.data.files import small_log
from tests.external_rankers import Ranker, keras_model
from tests.serving import small
from tf_twostage import serving
from tf_twostage.config import EncoderConfig
from tf_twostage.errors import InputError
from tf_twostage.models import external
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.models.external import ExternalRanker

USERS = 8  # who ask
TEXT, NUMBER = tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  world = user_logs.make(50)
  world.schema["context_features"] = {"hour": "numeric"}
  world.log["hour"] = np.arange(50) % 24
  directory = world.write(tmp_path_factory.mktemp("log"))
  names = ("log.csv", "items.csv", "schema.yaml", "users.csv")
  return small_log.read(*(directory / name for name in names))


def save(function, directory, **specs):
  """A SavedModel whose signature takes these inputs."""
  module = tf.Module()
  module.score = tf.function(function).get_concrete_function(
    **{name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in specs.items()}
  )
  tf.saved_model.save(module, str(directory), signatures=module.score)
  return directory


def expected(data):
  return Ranker().reference(data.users["segment"], data.items["genre"], data.items["price"])


def test_a_saved_model_scores_every_pair(data, tmp_path):
  ranker = ExternalRanker(Ranker().save(tmp_path / "model"), data.schema, data.items)
  np.testing.assert_allclose(ranker.scores(data.users), expected(data), rtol=1e-5)


@pytest.mark.parametrize("pairs", [1, 30, 70])
def test_chunks_of_users_do_not_matter(data, tmp_path, monkeypatch, pairs):
  monkeypatch.setattr(external, "_PAIRS_PER_CALL", pairs)
  ranker = ExternalRanker(Ranker().save(tmp_path / "model"), data.schema, data.items)
  np.testing.assert_allclose(ranker.scores(data.users), expected(data), rtol=1e-5)


@pytest.mark.parametrize("name", ["model.keras", "directory"])
@pytest.mark.parametrize("inputs", ["dict", "list"])
def test_a_keras_model_scores_as_it_does_itself(data, tmp_path, name, inputs):
  model = keras_model(inputs)
  model.save(tmp_path / name)
  ranker = ExternalRanker(tmp_path / name, data.schema, data.items)
  row = {
    "segment": tf.repeat(data.users["segment"][3:4], user_logs.ITEMS),
    "genre": tf.constant(data.items["genre"]),
    "price": tf.constant(data.items["price"][:, None], tf.float32),
  }
  np.testing.assert_allclose(ranker.scores(data.users)[3], model(row)[:, 0], rtol=1e-4, atol=1e-5)


def test_an_export_calls_it_on_the_candidates(data, tmp_path, monkeypatch):
  small.skip_replay(monkeypatch.setattr)  # environment/test_user_log.py replays a given ranker
  ranker = ExternalRanker(Ranker().save(tmp_path / "model"), data.schema, data.items)
  tables = EncodedTables.encode(data.schema, data.users, data.items)
  generator = TwoTower(tables, EncoderConfig(), l2=0.0)
  recommender = serving.ServableRecommender(data.schema, generator, ranker, data.titles, 6)
  requests = {name: data.users[name][:USERS] for name in ("user_id", "segment", "age")}
  requests |= {"hour": np.zeros(USERS), "exclude": np.full((USERS, 1), "")}
  exported = serving.export(recommender, tmp_path / "e", requests)
  recommend = tf.saved_model.load(str(exported)).signatures["recommend"]
  inputs = {name: tf.constant(values) for name, values in requests.items()}
  answer = recommend(**inputs, k=tf.constant(6))
  place = {item: i for i, item in enumerate(data.items["item_id"])}
  shown = np.vectorize(place.get)(answer["item_id"].numpy().astype(str))
  scores = np.take_along_axis(expected(data)[:USERS], shown, axis=1)
  np.testing.assert_allclose(answer["score"], scores, rtol=1e-5)
  assert (np.diff(scores, axis=1) <= 1e-6).all()


def test_the_digest_follows_contents(tmp_path):
  paths = [Ranker(seed).save(tmp_path / name / "m") for name, seed in (("a", 0), ("b", 1))]
  assert external.digest(paths[0]) == external.digest(paths[0]) != external.digest(paths[1])


def score_pair(segment, genre):
  return {"score": tf.strings.to_hash_bucket_fast(segment + genre, 100) / 100}


def refuse(path, data):
  with pytest.raises(InputError) as error:
    ExternalRanker(path, data.schema, data.items).check(data.users)
  message = str(error.value)
  assert message.startswith(f"ranker {path}: ")
  assert "\n" not in message
  return message


def test_what_is_no_model_is_refused(data, tmp_path):
  assert "no such file or directory" in refuse(tmp_path / "nowhere", data)
  (tmp_path / "empty").mkdir()
  assert "no model; a SavedModel is a directory with saved_model.pb" in refuse(
    tmp_path / "empty", data
  )
  Ranker().save(tmp_path / "versions" / "3")
  assert f"did you mean {tmp_path / 'versions' / '3'}?" in refuse(tmp_path / "versions", data)
  (tmp_path / "broken").mkdir()
  (tmp_path / "broken" / "saved_model.pb").write_bytes(b"no model")
  assert "does not load" in refuse(tmp_path / "broken", data)
  (tmp_path / "broken.keras").write_bytes(b"no model")
  assert "Keras 2 does not load it" in refuse(tmp_path / "broken.keras", data)


def number(**inputs):
  (first, *_) = inputs.values()
  return {"score": tf.ones(tf.shape(first)[:1])}


SIGNATURES = {
  "unknown": ({"segment": TEXT, "genre": TEXT, "brand": TEXT}, "takes 'brand', but no user or"),
  "context": ({"segment": TEXT, "genre": TEXT, "hour": NUMBER}, "'hour' is a context feature"),
  "text for number": (
    {"segment": TEXT, "price": TEXT},
    "'price' is string, but the feature is a n",
  ),
  "number for text": (
    {"segment": NUMBER, "genre": TEXT},
    "'segment' is float32, but the feature i",
  ),
  "fixed batch": (
    {"segment": tf.TensorSpec([8], tf.string), "genre": TEXT},
    "'segment' has shape (8,), expected [n] or [n, 1] for any n",
  ),
  "wide": (
    {"segment": tf.TensorSpec([None, 3], tf.string), "genre": TEXT},
    "'segment' has shape (None, 3), expected [n] or [n, 1]",
  ),
  "no item": ({"segment": TEXT}, "takes no item feature, only ['segment']"),
  "no user": ({"genre": TEXT}, "takes no user feature, only ['genre']"),
}


@pytest.mark.parametrize("case", SIGNATURES)
def test_a_signature_that_does_not_fit_is_refused(data, tmp_path, case):
  specs, message = SIGNATURES[case]
  assert message in refuse(save(number, tmp_path / "model", **specs), data)


OUTPUTS = {
  "several": (lambda segment, genre: {"a": tf.ones(2), "b": tf.ones(2)}, "returns ['a', 'b']"),
  "one number": (lambda segment, genre: {"s": tf.constant(1.0)}, "2 pairs got 1 scores"),
  "too many": (lambda segment, genre: {"s": tf.ones([tf.size(segment), 3])}, "2 pairs got 6"),
  "not finite": (
    lambda segment, genre: {"s": tf.math.log(tf.zeros(tf.size(segment)))},
    "scores must be finite; 2 of 2 pairs",
  ),
  "fails": (
    lambda segment, genre: {"s": tf.strings.to_number(segment)},
    "the model fails on users and items of the log (",
  ),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_answers_that_are_no_scores_are_refused(data, tmp_path, case):
  function, message = OUTPUTS[case]
  assert message in refuse(save(function, tmp_path / "model", segment=TEXT, genre=TEXT), data)


def test_one_of_several_signatures_must_be_the_default(data, tmp_path):
  module = tf.Module()
  module.score = tf.function(score_pair).get_concrete_function(
    tf.TensorSpec([None], tf.string, "segment"), tf.TensorSpec([None], tf.string, "genre")
  )
  signatures = {"first": module.score, "second": module.score}
  tf.saved_model.save(module, str(tmp_path / "model"), signatures=signatures)
  assert "signatures are ['first', 'second']" in refuse(tmp_path / "model", data)


def test_more_pairs_than_are_kept_are_refused_with_two_ways_out(data, tmp_path, monkeypatch):
  monkeypatch.setattr(external, "MAX_PAIRS", 100)
  message = refuse(Ranker().save(tmp_path / "model"), data)
  assert "120 users x 25 items are more than 100 pairs" in message
  assert "`ranker_score`" in message
