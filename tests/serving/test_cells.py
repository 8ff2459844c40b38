"""An approximate index of the catalogue, in an export and alone."""

import numpy as np
import pytest
import tensorflow as tf

from tests.serving import small
from tests.serving.small import IDS, SLATE, ask
from tf_twostage import serving
from tf_twostage.errors import InputError
from tf_twostage.models.two_stage import PADDING
from tf_twostage.serving.cells import Cells

ITEMS = 2_000


@pytest.fixture(scope="module")
def vectors():
  """Clusters of very different sizes, and vectors of very different lengths."""
  rng = np.random.default_rng(0)
  centers = rng.normal(size=(20, 8))
  cluster = rng.choice(20, ITEMS, p=np.arange(1, 21) / 210)
  lengths = rng.exponential(size=(ITEMS, 1))
  return (lengths * (centers[cluster] + 0.3 * rng.normal(size=(ITEMS, 8)))).astype(np.float32)


@pytest.fixture(scope="module")
def users():
  return np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)


def test_every_item_is_in_one_cell(vectors, users):
  cells = Cells(vectors, 20, 1)
  ids = cells.items.numpy()
  assert sorted(ids[ids != PADDING]) == list(range(ITEMS))
  assert ids.shape[1] == ITEMS / 20


def test_who_visits_all_cells_scores_all_items(vectors, users):
  few = Cells(vectors, 20, 1)
  cells = Cells(vectors, 20, few.items.shape[0])
  ids, scores = (x.numpy() for x in cells(tf.constant(users)))
  expected = users @ vectors.T
  for row in range(len(users)):
    present = ids[row] != PADDING
    assert sorted(ids[row][present]) == list(range(ITEMS))
    np.testing.assert_allclose(
      scores[row][present], expected[row, ids[row][present]], rtol=1e-4, atol=1e-5
    )
    assert (scores[row][~present] == -np.inf).all()


def test_a_few_cells_hold_most_of_the_best(vectors, users):
  best = np.argsort(-users @ vectors.T, axis=1)[:, :20]
  recalls = []
  for probes in (1, 4, 16):
    ids, _ = Cells(vectors, 40, probes)(tf.constant(users))
    recalls.append(np.mean([np.isin(b, i).mean() for b, i in zip(best, ids.numpy(), strict=True)]))
  assert recalls == sorted(recalls)
  assert recalls[1] > 0.8  # of a tenth of the items
  assert recalls[2] > 0.97


@pytest.mark.parametrize(
  ("cells", "probes", "words"),
  [
    (1, 1, "index_cells must lie between 2 and"),
    (9_999, 1, "the 2000 items"),
    (20, 0, "index_probes"),
    (20, 99, "index_probes must lie between 1 and the"),
  ],
)
def test_impossible_settings_are_refused(vectors, cells, probes, words):
  with pytest.raises(InputError, match=words):
    Cells(vectors, cells, probes)


@pytest.fixture(scope="module")
def indexed():
  """Of 15 items in 4 clusters, all of whose cells are visited."""
  probes = Cells(small.pair().generator.candidates().numpy(), 4, 1).items.shape[0]
  return small.recommender(index=(4, probes))


@pytest.mark.parametrize("k", [1, SLATE, 15])
@pytest.mark.parametrize("excluded", [("",), ("", *IDS[2:5], "unknown"), (*IDS[3:],)])
def test_an_index_of_all_cells_recommends_as_the_whole_catalogue(indexed, k, excluded):
  request = {**small.requests(3, excluded), "k": np.array([k, 2, 1], np.int32)}
  found, expected = (ask(model.recommend, **request) for model in (indexed, small.recommender()))
  for name, values in expected.items():
    if values.dtype.kind == "f":
      np.testing.assert_allclose(found[name][:, : values.shape[1]], values, rtol=1e-4)
    else:
      np.testing.assert_array_equal(found[name][:, : values.shape[1]], values)


def test_items_that_are_not_there_are_not_visited():
  gone = np.array([[0.0, 10.0]] * 15)
  gone[4:9] = [0.0, 5.0]
  probes = Cells(small.pair().generator.candidates().numpy(), 4, 1).items.shape[0]
  models = small.recommender(index=(4, probes), interval=gone), small.recommender(interval=gone)
  request = {**small.requests(), "k": [15], "time": np.array([1.0, 7.0, 20.0])}
  found, expected = (ask(model.recommend, **request)["item_id"] for model in models)
  np.testing.assert_array_equal(found, expected)
  assert not np.isin(IDS[4:9], found[1]).any()


def test_an_index_is_of_operations_that_a_stock_server_has(exported, tmp_path):
  version = serving.export(small.recommender(index=(4, 2)), tmp_path / "indexed", small.requests())
  assert hasattr(tf.saved_model.load(str(version)), "cells")
  assert not hasattr(tf.saved_model.load(str(exported)), "cells")
