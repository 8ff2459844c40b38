"""SavedModels: what goes in, what comes out, what a server needs."""

import numpy as np
import pytest
import tensorflow as tf

from tf_twostage import serving
from tf_twostage.config import EncoderConfig
from tf_twostage.datasets import make_synthetic
from tf_twostage.errors import InputError
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.models.slate_ranker import TowerRanker

DATA = make_synthetic(num_users=20, num_items=15, num_ratings=200)
SCHEMA = DATA.schema
IDS = np.asarray(SCHEMA.item_id.vocabulary)
SLATE = 6


@pytest.fixture(scope="module")
def recommender():
  tf.keras.utils.set_random_seed(0)
  tables = EncodedTables.encode(SCHEMA, DATA.users, DATA.items)
  return serving.Recommender(
    SCHEMA,
    TwoTower(tables, EncoderConfig(), l2=0.0),
    TowerRanker(TwoTower(tables, EncoderConfig(), l2=0.0, use_context=True)),
    DATA.titles,
    SLATE,
  )


@pytest.fixture(scope="module")
def exported(recommender, tmp_path_factory):
  return serving.export(recommender, tmp_path_factory.mktemp("saved_models"))


def requests(rows=3, exclude=(("",),)):
  features = {f.name: np.asarray(DATA.users[f.name])[:rows] for f in SCHEMA.user}
  context = {f.name: np.full(rows, f.offset) for f in SCHEMA.context}
  exclude = np.broadcast_to(np.array(exclude, dtype=str), (rows, len(exclude[0])))
  return {**features, **context, "exclude": exclude}


def recommend(exported, request):
  signature = tf.saved_model.load(str(exported)).signatures["recommend"]
  return {
    k: v.numpy() for k, v in signature(**{k: tf.constant(v) for k, v in request.items()}).items()
  }


def expected_slate(recommender, row, excluded=()):
  codes = recommender._lookup({k: v[row : row + 1] for k, v in requests(row + 1).items()})
  logits = np.asarray(
    recommender._generator_items @ recommender._generator_query(codes)[0][:, None]
  )
  ranker = recommender._ranker({}, codes, np.arange(15)[None]).numpy()[0]
  allowed = [i for i in range(15) if IDS[i] not in excluded]
  slate = sorted(allowed, key=lambda i: -logits[i, 0])[:SLATE]
  return [IDS[i] for i in sorted(slate, key=lambda i: -ranker[i])]


def test_recommends_the_rankers_order_of_the_generators_slate(recommender, exported):
  answers = recommend(exported, requests())
  for row in range(3):
    assert [i.decode() for i in answers["item_id"][row]] == expected_slate(recommender, row)


def test_excluded_ids_are_not_recommended(recommender, exported):
  best = expected_slate(recommender, 0)[:2]
  answers = recommend(exported, requests(1, exclude=[[*best, ""]]))
  expected = expected_slate(recommender, 0, excluded=best)
  assert [i.decode() for i in answers["item_id"][0]] == expected


def test_unknown_excluded_ids_are_ignored(recommender, exported):
  answers = recommend(exported, requests(1, exclude=[["no such item"]]))
  assert [i.decode() for i in answers["item_id"][0]] == expected_slate(recommender, 0)


def test_titles_travel_with_ids(exported):
  answers = recommend(exported, requests())
  title = dict(zip(IDS, DATA.titles, strict=True))
  for ids, titles in zip(answers["item_id"], answers["title"], strict=True):
    assert [title[i.decode()] for i in ids] == [t.decode() for t in titles]


def test_an_exhausted_catalogue_is_padded(exported):
  keep = 2
  answers = recommend(exported, requests(1, exclude=[list(IDS[keep:])]))
  assert {i.decode() for i in answers["item_id"][0, :keep]} == set(IDS[:keep])
  assert list(answers["item_id"][0, keep:]) == [b""] * (SLATE - keep)
  assert np.all(np.isneginf(answers["score"][0, keep:]))


def test_no_exclusions_may_have_no_width(exported):
  request = {**requests(2), "exclude": np.zeros((2, 0), dtype=str)}
  np.testing.assert_array_equal(
    recommend(exported, request)["item_id"], recommend(exported, requests(2))["item_id"]
  )


@pytest.mark.parametrize("rows", [1, 7])
def test_any_batch_size(exported, rows):
  assert recommend(exported, requests(rows))["item_id"].shape == (rows, SLATE)


def test_unknown_users_get_an_answer(exported):
  request = requests(1)
  for f in SCHEMA.user:
    request[f.name] = np.array(["never seen"])
  assert np.all(recommend(exported, request)["item_id"] != b"")


def test_signature_names_are_those_of_the_features(exported):
  signature = tf.saved_model.load(str(exported)).signatures["serving_default"]
  names = set(signature.structured_input_signature[1])
  assert names == {f.name for f in (*SCHEMA.user, *SCHEMA.context)} | {"exclude"}
  assert set(signature.structured_outputs) == {"item_id", "title", "score"}


def test_versions_count_up_and_nothing_else_is_left(recommender, exported):
  second = serving.export(recommender, exported.parent)
  assert (exported.name, second.name) == ("1", "2")
  assert {p.name for p in exported.parent.iterdir()} == {"1", "2"}


def test_a_failed_export_leaves_no_version(recommender, tmp_path, monkeypatch):
  def fails(*args, **kwargs):
    raise OSError("disk full")

  monkeypatch.setattr(tf.saved_model, "save", fails)
  with pytest.raises(OSError, match="disk full"):
    serving.export(recommender, tmp_path)
  assert not list(tmp_path.glob("[0-9]*"))


def test_a_fresh_process_repeats_the_answers(recommender, exported):
  serving.check(exported, recommender, requests())


def test_the_check_notices_another_model(exported):
  tables = EncodedTables.encode(SCHEMA, DATA.users, DATA.items)
  tf.keras.utils.set_random_seed(5)
  other = serving.Recommender(
    SCHEMA,
    TwoTower(tables, EncoderConfig(), l2=0.0),
    TowerRanker(TwoTower(tables, EncoderConfig(), l2=0.0, use_context=True)),
    DATA.titles,
    SLATE,
  )
  with pytest.raises(RuntimeError, match="does not repeat"):
    serving.check(exported, other, requests())


def test_a_slate_larger_than_the_catalogue_is_refused(recommender):
  with pytest.raises(InputError, match="exceeds the catalogue of 15 items"):
    serving.Recommender(SCHEMA, recommender, recommender, DATA.titles, 16)
