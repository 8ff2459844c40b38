"""Documents as users: padding, the largest weights, labels of pairs."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from tf_twostage.data.schema import check_table
from tf_twostage.data.sets import make_xmc
from tf_twostage.data.sets.xmc import document_tables, padded_rows


@pytest.fixture(scope="module")
def data():
  return make_xmc(30, 12, 50, 20, labels_per_document=3, features_per_document=8)


def expected_row(ids, values, width):
  entries = list(zip(ids.tolist(), values.tolist(), strict=True))
  if len(entries) > width:
    entries = sorted(entries, key=lambda entry: -abs(entry[1]))[:width]  # a stable sort
  return entries + [(-1, 0.0)] * (width - len(entries))


@given(st.lists(st.integers(0, 7), max_size=8), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_rows_keep_their_largest_weights(lengths, max_width, seed):
  rng = np.random.default_rng(seed)
  splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
  ids = rng.integers(0, 100, splits[-1]).astype(np.int32)
  values = rng.integers(-3, 4, splits[-1]).astype(np.float32)  # with ties
  padded_ids, padded_values = padded_rows(
    csr_array((values, ids, splits), shape=(len(lengths), 100)), max_width
  )
  width = min(max_width, max([1, *lengths]))
  assert padded_ids.shape == padded_values.shape == (len(lengths), width)
  assert (padded_ids.dtype, padded_values.dtype) == (np.int64, np.float32)
  for row, (start, stop) in enumerate(itertools.pairwise(splits)):
    found = list(zip(padded_ids[row].tolist(), padded_values[row].tolist(), strict=True))
    assert found == expected_row(ids[start:stop], values[start:stop], width)


def test_the_given_arrays_are_left_alone(data):
  before = data.fingerprint()
  document_tables(data, 2)
  assert data.fingerprint() == before


def test_documents_become_users_and_labels_items(data):
  schema, documents, labels = document_tables(data, 1000)
  assert check_table(schema.user, documents, "documents") == 42
  assert check_table(schema.item, labels, "labels") == 20
  assert [f.name for f in schema.user_inputs] == ["words"]
  assert schema.user_id.vocabulary[-1] == "41"
  longest = np.diff(data.features.indptr).max()
  assert documents["words_ids"].shape == (42, longest)
  assert (documents["words_ids"] >= 0).sum() == data.features.nnz


def test_labels_of_pairs_are_those_of_the_documents(data):
  relevance = data.relevance()
  assert relevance.shape == (42, 20)
  for document in range(42):
    labels = data.labels[[document]].indices
    assert set(np.flatnonzero(relevance[document])) == set(labels)
  documents, labels = (grid.ravel() for grid in np.indices(relevance.shape))
  np.testing.assert_array_equal(data.has_label(documents, labels), relevance.ravel())


def test_a_part_has_its_own_labels(data):
  np.testing.assert_array_equal(data.test.relevance(), data.relevance()[data.num_train :])
