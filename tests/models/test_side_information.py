"""Features as columns of numbers."""

import numpy as np

from tf_twostage.data.schema import Bag, Categorical, Embedding, Id, Numeric, SparseVector
from tf_twostage.models import side_information
from tf_twostage.models.encoders import FeatureLookup


def matrix(feature, raw):
  return side_information.feature_matrix([feature], FeatureLookup([feature])(raw))


def test_every_kind_becomes_columns():
  rows = 2
  color = matrix(Categorical("c", ("red", "blue")), {"c": np.array(["blue", "?"])})
  np.testing.assert_array_equal(color, [[1], [0]])  # nothing is red
  bag = matrix(Bag("b", ("x", "y"), 2), {"b": np.array([["x", "y"], ["y", ""]])})
  np.testing.assert_allclose(bag, [[0.5, 0.5], [0, 1]])
  number = matrix(Numeric("n"), {"n": np.array([1.0, 3.0])})
  np.testing.assert_allclose(number, [[-1], [1]])
  vector = matrix(Embedding("e", 4), {"e": np.ones((rows, 4), np.float32)})
  np.testing.assert_allclose(vector, np.full((rows, 4), 0.5))
  words = {"w_ids": np.array([[2, -1], [0, 2]]), "w_weights": np.array([[3.0, 0], [4.0, 3.0]])}
  sparse = matrix(SparseVector("w", 3, 2), words)
  np.testing.assert_allclose(sparse, [[0, 1], [0.8, 0.6]], rtol=1e-6)


def test_ids_have_no_columns():
  assert matrix(Id("u", ("1", "2")), {"u": np.array(["1", "2"])}).shape == (2, 0)


def test_rare_values_have_no_columns(monkeypatch):
  monkeypatch.setattr(side_information, "MIN_SHARE", 0.3)
  city = Categorical("c", ("a", "b", "c"))
  found = matrix(city, {"c": np.array(["b", "b", "c", "c", "a"])})
  np.testing.assert_array_equal(found, [[1, 0], [1, 0], [0, 1], [0, 1], [0, 0]])
