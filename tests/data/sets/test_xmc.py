"""Extreme multi-label data: the text format, the files, and the invented set."""

import dataclasses
import gzip
import time
import tracemalloc

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from tests.data.sets import xmc_files
from tf_twostage.data.sets import load_xmc, make_xmc
from tf_twostage.data.sets.xmc import XmcData, read_xmc
from tf_twostage.errors import InputError

# 4 documents, 5 features, 3 labels: plain, without features, without labels, without either.
TEXT = b"4 5 3\n0,2 1:0.5 4:-2e-1\n1\n 0:1 3:.25\n \n"
DOCUMENTS = [([0, 2], [(1, 0.5), (4, -0.2)]), ([1], []), ([], [(0, 1.0), (3, 0.25)]), ([], [])]


def build(documents, num_features, num_labels, num_train=None) -> XmcData:
  labels = np.zeros((len(documents), num_labels), bool)
  features = np.zeros((len(documents), num_features), np.float32)
  for row, (of_document, pairs) in enumerate(documents):
    labels[row, of_document] = True
    for feature, value in pairs:
      features[row, feature] = value
  num_train = len(documents) if num_train is None else num_train
  return XmcData("built", csr_array(features), csr_array(labels), num_train)


def assert_same(one: XmcData, other: XmcData):
  for ours, theirs in ((one.features, other.features), (one.labels, other.labels)):
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours.toarray(), theirs.toarray())
  assert one.fingerprint() == other.fingerprint()


@pytest.fixture
def read(tmp_path):
  def read_bytes(content: bytes) -> XmcData:
    (tmp_path / "toy.txt").write_bytes(content)
    return read_xmc(tmp_path / "toy.txt")

  return read_bytes


# --- reading -------------------------------------------------------------------------------------


def test_reads_every_kind_of_document(read):
  data = read(TEXT)
  assert_same(data, build(DOCUMENTS, 5, 3))
  assert (data.name, data.num_documents, data.num_train) == ("toy.txt", 4, 4)


@pytest.mark.parametrize(
  "content",
  [
    TEXT.replace(b"\n", b"\r\n"),
    TEXT.removesuffix(b"\n"),
    TEXT.replace(b" ", b"  ").replace(b"4  5  3", b"4 5 3 "),
    TEXT.replace(b"1\n", b"1 \n"),
    TEXT.replace(b"1:0.5", b"01:+.5e0"),
    TEXT.replace(b"0,2 1:0.5 4:-2e-1", b"2,0 4:-2e-1 1:0.5"),
    gzip.compress(TEXT),
  ],
  ids=["windows", "no last newline", "spaces", "space at end", "numbers", "unsorted", "gzip"],
)
def test_harmless_variants_read_the_same(read, content):
  assert_same(read(content), build(DOCUMENTS, 5, 3))


def test_unsorted_features_may_follow_an_empty_document(read):
  data = read(b"3 5 3\n \n 4:2 1:1\n0\n")
  assert_same(data, build([([], []), ([], [(1, 1), (4, 2)]), ([0], [])], 5, 3))


def test_a_file_may_hold_no_document(read):
  assert_same(read(b"0 5 3\n"), build([], 5, 3))


@st.composite
def _data(draw):
  values = st.floats(width=32, allow_nan=False, allow_infinity=False).filter(bool)
  values |= st.sampled_from([np.float32(0.1), np.float32(1234.567), 1.0, 1e-45])
  document = st.tuples(
    st.lists(st.integers(0, 6), unique=True, max_size=5),
    st.lists(st.tuples(st.integers(0, 11), values), max_size=5),
  )
  return build(draw(st.lists(document, max_size=8)), 12, 7)


@given(_data(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_reads_back_what_was_written(tmp_path_factory, data, packed):
  path = tmp_path_factory.mktemp("xmc") / ("toy.gz" if packed else "toy.txt")
  xmc_files.write(data, path)
  assert_same(read_xmc(path), data)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "line 1 must count documents, features and labels, .* got ''; the format is"),
    (b"\n", "line 1 must count documents, features and labels, .* got ''; the format is"),
    (b"0,2 1:1\n1\n", "line 1 must count .* got '0,2 1:1'"),
    (b"2 5\n0\n1\n", "line 1 must count .* got '2 5'"),
    (b"2 5 3.0\n0\n1\n", "line 1 must count .* got '2 5 3.0'"),
    (b"2 0 3\n \n \n", "line 1 must count .* got '2 0 3'"),
    (b"9" * 2000, r"line 1 must count .* got '9{40}'"),
    (b"3 5 3\n0\n1\n", "line 1 promises 3 documents, but 2 follow; download or unpack .* correct"),
    (b"1 5 3\n0\n1\n2\n", r"line 1 promises 1 documents, but 3 follow"),
  ],
)
def test_refuses_a_wrong_first_line_or_count(read, content, message):
  with pytest.raises(InputError, match=rf"toy\.txt: .*{message}"):
    read(content)


@pytest.mark.parametrize(
  ("line", "complaint"),
  [
    (b"x 1:1", "could not convert string to float"),
    (b"0, 1:1", "could not convert string to float"),
    (b"0 1", "need more than 1 value"),
    (b"0 1:1 2:", "could not convert string to float"),
    (b"0 :1", "invalid literal for int"),
    (b"0 1e0:1", "invalid literal for int"),
    (b"0 -1:1", "Invalid index -1"),
    (b"0 1:1.2.3", "could not convert string to float"),
    (b"0 9999999999:1", "value too large to convert to int"),
    (b"0 1:1 2:\xe9", "could not convert string to float"),
    (b"0 1:1 1:2", "Feature indices .* should be sorted and unique"),
    (b"0 3:1 1:1 1:2", "Feature indices .* should be sorted and unique"),
  ],
)
def test_refuses_a_malformed_document(read, line, complaint):
  message = (
    rf"toy\.txt: 2 of 4 documents are malformed \(first: line 3, '.*': {complaint}.*\); mend"
  )
  with pytest.raises(InputError, match=message):
    read(b"4 5 3\n0 1:1\n" + line + b"\n1 2:1\n" + line + b"\n")


@pytest.mark.parametrize(
  ("line", "rule", "value"),
  [
    (b"1.5 1:1", "label must be a whole number", "1.5"),
    (b"-1 1:1", r"label must be in \[0, 3\)", "-1"),
    (b"0,3 1:1", r"label must be in \[0, 3\), the count in line 1", "3"),
    (b"nan 1:1", "label must be a whole number", "nan"),
    (b"inf 1:1", r"label must be in \[0, 3\)", "inf"),
    (b"1,0,1 1:1", "label must not repeat within a document", "1"),
    (b"0 5:1", r"feature must be in \[0, 5\), the count in line 1", "5"),
    (b"0 1:nan", "value must fit into float32", "nan"),
    (b"0 1:1e39", "value must fit into float32", "inf"),
  ],
)
def test_refuses_values_out_of_range(read, line, rule, value):
  message = rf"every {rule}.*; 2 of 5 documents break this \(first: line 4, {value}\); mend those"
  with pytest.raises(InputError, match=message):
    read(b"5 5 3\n0 1:1\n \n" + line + b"\n1 2:1\n" + line + b"\n")


def test_refuses_a_broken_gzip_file(read):
  packed = gzip.compress(TEXT * 50)
  for content in (packed[:-20], packed[:10] + b"xx" + packed[12:]):
    with pytest.raises(InputError, match=r"toy.txt: not an intact gzip file .* again"):
      read(content)


def test_refuses_an_unreadable_path(tmp_path):
  for path in (tmp_path, tmp_path / "none.txt"):
    with pytest.raises(InputError, match=rf"{path}: cannot be read \(.*\); pass the path"):
      read_xmc(path)


# --- the arrays ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"features": csr_array((4, 5))}, "features must be float32 with 4 rows, got float64"),
    ({"labels": csr_array((3, 3), dtype=bool)}, r"labels must be bool with 4 rows, got .*\(3, 3"),
    ({"num_train": 5}, r"num_train must be in \[0, 4\], the number of documents, got 5"),
  ],
)
def test_refuses_arrays_that_do_not_fit(changes, message):
  with pytest.raises(InputError, match=f"built: .*{message}"):
    dataclasses.replace(build(DOCUMENTS, 5, 3), **changes)


@pytest.mark.parametrize(
  ("side", "part", "values", "message"),
  [
    ("labels", "indices", [0, 3, 1], "labels are not a valid sparse array"),
    ("labels", "indices", [2, 2, 1], "labels of a document must differ and rise"),
    ("features", "data", [1, np.nan, 1, 1], "features hold values that are not finite"),
  ],
)
def test_refuses_entries_that_do_not_fit(side, part, values, message):
  data = build(DOCUMENTS, 5, 3)
  matrix = getattr(data, side)
  parts = {name: getattr(matrix, name) for name in ("data", "indices", "indptr")}
  parts[part] = np.array(values, parts[part].dtype)
  changed = csr_array(matrix.shape, dtype=matrix.dtype)
  changed.data, changed.indices, changed.indptr = parts.values()
  with pytest.raises(InputError, match=message):
    dataclasses.replace(data, **{side: changed})


def test_documents_of_one_part():
  data = build(DOCUMENTS, 5, 3, num_train=3)
  assert_same(data.train, build(DOCUMENTS[:3], 5, 3))
  assert_same(data.test, build(DOCUMENTS[3:], 5, 3, num_train=0))
  assert_same(data.part(1, 4), build(DOCUMENTS[1:], 5, 3, num_train=2))
  assert_same(data.part(2, 2), build([], 5, 3))


def test_the_fingerprint_sees_every_change():
  data = build(DOCUMENTS, 5, 3)
  others = [
    build(DOCUMENTS, 6, 3),
    build(DOCUMENTS, 5, 4),
    build(DOCUMENTS, 5, 3, num_train=2),
    build([*DOCUMENTS[:2], ([], [(0, 1.0), (3, 0.5)]), ([], [])], 5, 3),
    build([*DOCUMENTS[:1], ([], []), ([1], DOCUMENTS[2][1]), ([], [])], 5, 3),
  ]
  assert len({one.fingerprint() for one in (data, *others)}) == 1 + len(others)
  assert dataclasses.replace(data, name="other").fingerprint() == data.fingerprint()


# --- loading -------------------------------------------------------------------------------------


def write_pair(folder, train_name, test_name):
  folder.mkdir(parents=True, exist_ok=True)
  whole_set = build(DOCUMENTS, 5, 3, num_train=3)
  xmc_files.write(whole_set.train, folder / train_name)
  xmc_files.write(whole_set.test, folder / test_name)
  return whole_set


@pytest.mark.parametrize("folder", ["", "Wiki10", "Wiki10.bow", "Wiki10-31K", "wiki10_31k"])
@pytest.mark.parametrize(
  ("train", "test"),
  [
    ("train.txt", "test.txt"),
    ("wiki10_train.txt", "wiki10_test.txt"),
    ("Wiki10-31K_train.txt", "Wiki10-31K_test.txt"),
    ("train.txt.gz", "test.txt.gz"),
  ],
)
def test_finds_wiki10_under_its_real_names(tmp_path, folder, train, test):
  expected = write_pair(tmp_path / folder, train, test)
  data = load_xmc("wiki10", str(tmp_path))
  assert_same(data, expected)
  assert (data.name, data.num_train) == ("wiki10", 3)


def test_files_of_the_own_name_and_plain_ones_come_first(tmp_path):
  for name in ("train.txt", "other_train.txt", "test.txt", "wiki10_test.txt.gz"):
    (tmp_path / name).write_text("wrong")
  expected = write_pair(tmp_path, "wiki10_train.txt.gz", "wiki10_test.txt")
  assert_same(load_xmc("wiki10", str(tmp_path)), expected)


def test_missing_files_are_named_with_the_remedy(tmp_path):
  remedy = (
    "download Wiki10-31K with .* from the Extreme Classification Repository, .*set data_dir to"
  )
  for data_dir, problem in (
    (None, "data set 'wiki10' is read from files, and data_dir is not set"),
    (str(tmp_path / "none"), r"none: cannot be read \(No such file"),
    (str(tmp_path), "holds no train.txt and test.txt"),
  ):
    with pytest.raises(InputError, match=f"{problem}.*; {remedy}"):
      load_xmc("wiki10", data_dir)
  write_pair(tmp_path / "Wiki10", "wiki10_train.txt", "elsewhere.txt")
  with pytest.raises(InputError, match=f"Wiki10: missing test.txt; {remedy}"):
    load_xmc("wiki10", str(tmp_path))


def test_files_of_different_sets_are_refused(tmp_path):
  xmc_files.write(build(DOCUMENTS, 5, 3), tmp_path / "train.txt")
  xmc_files.write(build(DOCUMENTS, 5, 4), tmp_path / "test.txt")
  with pytest.raises(InputError, match="training file counts 3 labels and the test file 4; take"):
    load_xmc("any", str(tmp_path))


def test_delicious_has_the_published_counts(test_data):
  if not (test_data / "delicious").is_dir():
    pytest.skip("TF_TWOSTAGE_TEST_DATA holds no delicious/")
  start = time.process_time()
  data = load_xmc("delicious", str(test_data))
  assert time.process_time() - start < 20  # measured: 0.4 s, and up to 5 s to load scikit-learn
  assert (data.num_train, data.num_documents) == (12_920, 12_920 + 3_185)
  assert (data.features.shape[1], data.num_labels) == (500, 983)
  per_document = np.diff(data.labels.indptr)
  assert per_document.mean() == pytest.approx(19.02, abs=0.005)
  assert np.count_nonzero(per_document == 0) == 14
  assert np.unique(data.features.data).tolist() == [1.0]
  # The first document of delicious_train.txt and the labels of the last of delicious_test.txt.
  assert data.features.indices[:5].tolist() == [60, 248, 279, 316, 490]
  first, last = data.part(0, 1), data.part(data.num_documents - 1, data.num_documents)
  assert first.labels.indices.tolist() == [77, 91, 315, 544, 575, 621, 718, 818, 819, 834, 908]
  text = (test_data / "delicious" / "delicious_test.txt").read_text().splitlines()[-1]
  assert last.labels.indices.tolist() == [int(label) for label in text.split()[0].split(",")]


# --- the invented set ----------------------------------------------------------------------------

SMALL = {"labels_per_document": 5, "features_per_document": 30}


@pytest.fixture(scope="module")
def invented():
  return make_xmc(2_000, 400, 1_000, 200, **SMALL)


def test_the_same_seed_gives_the_same_data(invented):
  again = make_xmc(2_000, 400, 1_000, 200, seed=0, **SMALL)
  assert again.fingerprint() == invented.fingerprint()
  assert make_xmc(2_000, 400, 1_000, 200, seed=1, **SMALL).fingerprint() != again.fingerprint()


def test_has_the_numbers_asked_for(invented):
  assert (invented.num_train, invented.test.num_documents) == (2_000, 400)
  assert (invented.features.shape[1], invented.num_labels) == (1_000, 200)
  for matrix, mean in ((invented.labels, 5), (invented.features, 30)):
    assert np.diff(matrix.indptr).mean() == pytest.approx(mean, rel=0.03)
    assert np.diff(matrix.indptr).min() >= 1


def matrices(data):
  return data.features, data.labels.astype(float)


def test_features_differ_within_a_document_and_have_length_one(invented):
  features, _ = matrices(invented)
  assert features.has_canonical_format
  np.testing.assert_allclose(scipy.sparse.linalg.norm(features, axis=1), 1, atol=1e-4)
  assert invented.features.data.min() > 0


def test_values_have_six_decimals(invented):
  values = invented.features.data
  np.testing.assert_array_equal(np.round(values.astype(float), 6).astype(np.float32), values)


def test_labels_and_features_follow_a_power_law(invented):
  for ids, count in (
    (invented.labels.indices, 200),
    (invented.features.indices, 1_000),
  ):
    counts = np.sort(np.bincount(ids, minlength=count))[::-1]
    # The head saturates (one per document) and the tail is thin.
    middle = slice(count // 40, count // 3)
    rank = np.log(np.arange(1, count + 1))[middle]
    slope = np.polyfit(rank, np.log(counts[middle]), 1)[0]
    assert -1.3 < slope < -0.7


def test_labels_of_a_topic_occur_together():
  data = make_xmc(2_000, 0, 100, 1_000, **SMALL)
  _, labels = matrices(data)
  labels = labels.toarray()[:, labels.sum(axis=0) >= 50]  # chance rules rarer ones
  together = labels.T @ labels
  np.fill_diagonal(together, 0)
  by_chance = np.outer(labels.sum(axis=0), labels.sum(axis=0)) / data.num_documents
  # Without topics 1.2 is measured: pairs that chance favors weigh more.
  assert np.average(together / by_chance, weights=together) > 1.5


def test_ids_do_not_depend_on_popularity(invented):
  counts = np.bincount(invented.labels.indices, minlength=invented.num_labels)
  correlation = np.corrcoef(np.arange(len(counts)), np.argsort(np.argsort(counts)))[0, 1]
  assert abs(correlation) < 3 / np.sqrt(len(counts))


@pytest.mark.parametrize("seed", range(3))
def test_features_predict_the_labels_of_test_documents(seed):
  data = make_xmc(2_000, 400, 1_000, 200, seed=seed, **SMALL)
  (features, labels), (queries, relevant) = matrices(data.train), matrices(data.test)
  popularity = labels.sum(axis=0)
  # Each label is the mean of its documents, and a document the likelier label's of like words.
  centers = (labels.T @ features).toarray()
  centers /= np.linalg.norm(centers, axis=1, keepdims=True) + 1e-9
  scores = (queries @ centers.T) * np.log1p(popularity)

  def precision_at_1(chosen):
    return relevant.toarray()[np.arange(len(scores)), chosen].mean()

  popular = precision_at_1(np.full(len(scores), popularity.argmax()))
  assert precision_at_1(scores.argmax(axis=1)) > popular + 0.1
  # The same beyond the popular labels, where always naming the best of them gains little.
  scores[:, popularity > np.quantile(popularity, 0.9)] = -np.inf
  assert precision_at_1(scores.argmax(axis=1)) > 0.3


def test_default_is_as_large_as_wiki10_and_quick_to_make():
  tracemalloc.start()
  start = time.process_time()
  try:
    data = make_xmc()
    seconds = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert (data.num_train, data.test.num_documents) == (14_146, 6_616)
  assert (data.features.shape[1], data.num_labels) == (101_938, 30_938)
  assert np.diff(data.labels.indptr).mean() == pytest.approx(18.6, rel=0.02)
  assert np.diff(data.features.indptr).mean() == pytest.approx(673, rel=0.02)
  assert peak < 1 << 30
  assert seconds < 20  # measured: 3 s


@pytest.mark.parametrize(
  ("counts", "means"),
  [
    ((1, 0, 1, 1), (1, 1)),
    ((3, 2, 2, 5), (5, 2)),
    ((5, 5, 7, 3), (1, 7)),
    ((2, 0, 9, 150), (9, 3)),
  ],
)
def test_the_smallest_sets_work(counts, means):
  data = make_xmc(*counts, labels_per_document=means[0], features_per_document=means[1])
  assert data.num_documents == counts[0] + counts[1]
  assert np.diff(data.labels.indptr).min() >= 1
  assert np.diff(data.features.indptr).min() >= 1


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_train": 0}, "0 training and 5 test documents; ask for at least one"),
    ({"num_test": -1}, "5 training and -1 test documents"),
    ({"num_labels": 4}, "5 labels a document out of 4 are impossible; .* at most num_labels"),
    ({"num_features": 20}, "30 features a document out of 20 are impossible"),
    ({"labels_per_document": 0.5}, "0.5 labels a document"),
    ({"features_per_document": float("nan")}, "nan features a document"),
  ],
)
def test_impossible_counts_are_refused(changes, message):
  shape = {"num_train": 5, "num_test": 5, "num_features": 100, "num_labels": 50, **SMALL}
  with pytest.raises(InputError, match=message):
    make_xmc(**(shape | changes))
