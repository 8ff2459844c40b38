"""Extreme multi-label data: the text format both ways, the files, and the invented set."""

import dataclasses
import gzip
import re
import time
import tracemalloc

import numpy as np
import pytest
import scipy.sparse
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tf_twostage.data.sets import xmc_text
from tf_twostage.data.sets.xmc import XmcData, load_wiki10, load_xmc, make_xmc, read_xmc, write_xmc
from tf_twostage.errors import InputError

ARRAYS = ("feature_splits", "feature_ids", "feature_values", "label_splits", "label_ids")

# 4 documents, 5 features, 3 labels: plain, without features, without labels, without either.
TEXT = b"4 5 3\n0,2 1:0.5 4:-2e-1\n1\n 0:1 3:.25\n \n"
DOCUMENTS = [([0, 2], [(1, 0.5), (4, -0.2)]), ([1], []), ([], [(0, 1.0), (3, 0.25)]), ([], [])]


def build(documents, num_features, num_labels, num_train=None) -> XmcData:
  labels = [label for of_document, _ in documents for label in of_document]
  features = [feature for _, of_document in documents for feature in of_document]

  def splits(lengths):
    return np.array([0, *np.cumsum(lengths)], np.int64)

  return XmcData(
    name="built",
    num_features=num_features,
    num_labels=num_labels,
    num_train=len(documents) if num_train is None else num_train,
    feature_splits=splits([len(of_document) for _, of_document in documents]),
    feature_ids=np.array([feature for feature, _ in features], np.int32),
    feature_values=np.array([value for _, value in features], np.float32),
    label_splits=splits([len(of_document) for of_document, _ in documents]),
    label_ids=np.array(labels, np.int32),
  )


def assert_same(one: XmcData, other: XmcData):
  for column in ARRAYS:
    ours, theirs = getattr(one, column), getattr(other, column)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs, err_msg=column)
  assert one.fingerprint() == other.fingerprint()


@pytest.fixture
def read(tmp_path):
  def read_bytes(content: bytes) -> XmcData:
    (tmp_path / "toy.txt").write_bytes(content)
    return read_xmc(tmp_path / "toy.txt")

  return read_bytes


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
  return tmp_path_factory.mktemp("xmc") / "file.txt"


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
    gzip.compress(TEXT),
  ],
  ids=["windows", "no last newline", "spaces", "space at the end", "other numbers", "gzip"],
)
def test_harmless_variants_read_the_same(read, content):
  assert_same(read(content), build(DOCUMENTS, 5, 3))


def test_a_feature_may_repeat(read):
  assert read(b"1 2 1\n0 1:2 1:3\n").feature_values.tolist() == [2, 3]


def test_a_file_may_hold_no_document(read):
  assert_same(read(b"0 5 3\n"), build([], 5, 3))


@pytest.mark.parametrize("block", [1, 7, 1 << 22])
def test_blocks_do_not_show(read, monkeypatch, block):
  monkeypatch.setattr(xmc_text, "_BLOCK_BYTES", block)
  assert_same(read(TEXT), build(DOCUMENTS, 5, 3))
  with pytest.raises(InputError, match=r"2 of 4 documents are wrong \(first: line 3, label '3' is"):
    read(TEXT.replace(b"\n1\n", b"\n3\n").replace(b".25", b"nan"))


_LABELS, _FEATURES = 3, 4


def plain_read(text: str):
  """The format once more, by the book: labels and features of each line, or ValueError."""
  documents = []
  for line in text.split("\n"):
    if not line:
      raise ValueError("empty line")
    labels, *features = line.split(" ")
    ids = [] if not labels else [whole(label) for label in labels.split(",")]
    pairs = [feature.split(":") for feature in features if feature]
    with np.errstate(over="ignore"):
      entries = [(whole(feature), np.float32(number(value))) for feature, value in pairs]
    if len(set(ids)) < len(ids) or any(label >= _LABELS for label in ids):
      raise ValueError("labels")
    if any(feature >= _FEATURES or not np.isfinite(value) for feature, value in entries):
      raise ValueError("features")
    documents.append((ids, entries))
  return documents


def whole(token: str) -> int:
  if not re.fullmatch("[0-9]+", token):
    raise ValueError(token)
  return int(token)


def number(token: str) -> float:
  if not set(token) <= set("0123456789+-.eE"):
    raise ValueError(token)
  return float(token)


_pieces = st.sampled_from(["0", "1", "2", "3", "10", ",", ":", " ", ".", "-", "+", "e", "nan", "é"])
_entries = st.sampled_from(["0,1", "2", " ", " 0:1", " 1:-.5", " 3:2e3", " 2:1.", "1,1", " 4:1"])
_lines = st.lists(st.one_of(_entries, _entries, _pieces), min_size=1, max_size=6).map("".join)


@given(st.lists(_lines, min_size=1, max_size=4), st.sampled_from([1, 1 << 22]))
@example(["0 1:1.2.3"], 1)
@example(["0 1:1-2"], 1)
@example(["0 1:1e39"], 1)
@example(["0 1:3.4028235677973366e38"], 1)
@example(["0 1:3.4028235677973362e38"], 1)
@example(["0 1:1e400"], 1)
@example(["0 1:1e-400"], 1)
@example(["0 1:0x1"], 1)
@example(["0 1:1_0"], 1)
@example(["0 1e0:1"], 1)
@example(["0 1:\N{ARABIC-INDIC DIGIT ONE}"], 1)
@example(["0" * 500 + "1"], 1)
@settings(max_examples=600, deadline=None)
def test_reads_what_the_plain_reader_reads_and_refuses_what_it_refuses(scratch, lines, block):
  text = "\n".join(lines)
  scratch.write_text(f"{len(lines)} {_FEATURES} {_LABELS}\n{text}\n", encoding="utf-8")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(xmc_text, "_BLOCK_BYTES", block)
    try:
      expected = build(plain_read(text), _FEATURES, _LABELS)
    except (ValueError, OverflowError):
      with pytest.raises(InputError, match=r"are wrong \(first: line \d+, .+\); mend"):
        read_xmc(scratch)
    else:
      assert_same(read_xmc(scratch), expected)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "the file is empty; download or unpack the file again"),
    (b"\n", "line 1 must count documents, features and labels, .* got ''; the format is"),
    (b"0,2 1:1\n1\n", "line 1 must count .* got '0,2 1:1'"),
    (b"2 5\n0\n1\n", "line 1 must count .* got '2 5'"),
    (b"2 5 3 4\n0\n1\n", "line 1 must count .* got '2 5 3 4'"),
    (b"2 5 3.0\n0\n1\n", "line 1 must count .* got '2 5 3.0'"),
    (b"-2 5 3\n0\n1\n", "line 1 must count .* got '-2 5 3'"),
    (b"\xff\xfe2\x00 \x005\n", "line 1 must count"),
    (b"9" * 2000, r"line 1 must count .* got '9{40}\.\.\.'"),
    (b"2 0 3\n \n \n", "line 1 counts 0 features; there must be at least 1"),
    (b"2 5 2147483648\n0\n1\n", r"counts 2147483648 labels; .* fewer than 2\*\*31"),
    (b"3 5 3\n0\n1\n", "line 1 promises 3 documents, but the file ends with 2, in line 3; down"),
    (b"3 5 3\n0\n1", "ends with 2, in line 3, which has no newline; download"),
    (b"3 5 3\n0\n1 2:", "ends with 2, in line 3, which has no newline; download"),
    (b"3 5 3\n", "line 1 promises 3 documents, but the file ends with 0, in line 1"),
    (b"1 5 3\n0\n1\n2\n", r"promises 1 documents, but 3 follow \(line 3 is the first too many\)"),
    (b"1 5 3\n0\n\n", r"promises 1 documents, but 2 follow \(line 3 is .* drop the surplus lines"),
  ],
)
def test_refuses_a_wrong_first_line_or_count(read, content, message):
  with pytest.raises(InputError, match=rf"toy\.txt: .*{message}"):
    read(content)


@pytest.mark.parametrize(
  ("line", "complaint"),
  [
    (b"", "which is empty: a document without labels starts with a space"),
    (b"0 1:1 2:\xe9", "which is not UTF-8 text: byte 9 is 0xe9"),
    (b"1:1 2:1", "feature '1:1' among the labels: no labels means a space at the start"),
    (b"x 1:1", "label 'x' is not a whole number"),
    (b"-1 1:1", "label '-1' is not a whole number"),
    (b"1.0 1:1", "label '1.0' is not a whole number"),
    (b"0, 1:1", "label '' is not a whole number"),
    (b"0\t1:1", r"feature '0\\t1:1' among the labels"),
    (b"0,3 1:1", "label '3' is not below 3, the number of labels in line 1"),
    (b"9" * 5000, r"label '9{40}\.\.\.' is not below 3"),
    (b"1,0,1 1:1", "label 1 stands there twice"),
    (b"1," + b"0" * 5000 + b"1 1:1", "label 1 stands there twice"),
    (b"0 1", "'1' is not of the form feature:value"),
    (b"0 1:1 2:", "value '' of feature 2 is not a number"),
    (b"0 :1", "feature '' of ':1' is not a whole number"),
    (b"0 1e0:1", "feature '1e0' of '1e0:1' is not a whole number"),
    (b"0 5:1", "feature '5' is not below 5, the number of features in line 1"),
    (b"0 1:x", "value 'x' of feature 1 is not a number"),
    (b"0 1:2:3", "value '2:3' of feature 1 is not a number"),
    (b"0 1:1.2.3", "value '1.2.3' of feature 1 is not a number"),
    (b"0 1:nan", "value 'nan' of feature 1 is not finite"),
    (b"0 1:-Inf", "value '-Inf' of feature 1 is not finite"),
    (b"0 1:1e39", "value '1e39' of feature 1 is beyond float32"),
    (b"0 1:1\r 2:1", r"value '1\\r' of feature 1 is not a number"),
  ],
)
def test_refuses_a_malformed_document(read, line, complaint):
  message = rf"toy\.txt: 2 of 4 documents are wrong \(first: line 3, {complaint}.*\); mend those"
  with pytest.raises(InputError, match=message):
    read(b"4 5 3\n0 1:1\n" + line + b"\n1 2:1\n" + line + b"\n")


def test_refuses_a_broken_gzip_file(read):
  packed = gzip.compress(TEXT * 50)
  for content in (packed[:-20], packed[:10] + b"xx" + packed[12:], packed + b"more"):
    with pytest.raises(InputError, match=r"toy.txt: not an intact gzip file .* again"):
      read(content)


def test_refuses_what_is_no_file(tmp_path):
  for path in (tmp_path, tmp_path / "none.txt"):
    with pytest.raises(InputError, match=rf"{path}: cannot be read \(.*\); pass the path"):
      read_xmc(path)


def test_memory_is_the_result_and_a_block(tmp_path, monkeypatch):
  write_xmc(make_xmc(2_000, 0), tmp_path / "train.txt")
  monkeypatch.setattr(xmc_text, "_BLOCK_BYTES", 1 << 16)
  tracemalloc.start()
  try:
    data = read_xmc(tmp_path / "train.txt")
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  result = sum(getattr(data, column).nbytes for column in ARRAYS)
  # A second copy of one column, half the result, and the work on a block (measured: 20 times it).
  assert peak < 1.6 * result + 30 * (1 << 16)


# --- writing -------------------------------------------------------------------------------------


@st.composite
def _data(draw):
  num_features = draw(st.integers(1, 12) | st.just(2**31 - 1))
  num_labels = draw(st.integers(1, 8) | st.just(2**31 - 1))
  values = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(
    [np.float32(0.1), np.float32(1234.567), 1.0, -0.0, 1e-45]
  )
  document = st.tuples(
    st.lists(st.integers(0, num_labels - 1), unique=True, max_size=5),
    st.lists(st.tuples(st.integers(0, num_features - 1), values), max_size=5),
  )
  return build(draw(st.lists(document, max_size=8)), num_features, num_labels)


@given(_data(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_reads_back_what_was_written(scratch, data, packed):
  path = scratch.with_suffix(".gz") if packed else scratch
  write_xmc(data, path)
  assert (path.read_bytes()[:2] == b"\x1f\x8b") == packed
  assert_same(read_xmc(path), data)


def test_writes_the_format_as_short_as_it_can(tmp_path):
  data = build([([0, 2], [(1, 0.5), (4, 0.1)]), ([1], []), ([], [(0, 1)]), ([], [])], 5, 3)
  write_xmc(data, tmp_path / "toy.txt")
  assert (tmp_path / "toy.txt").read_bytes() == b"4 5 3\n0,2 1:0.5 4:0.1\n1\n 0:1\n \n"


def test_writing_replaces_the_file_and_leaves_nothing_else(tmp_path):
  (tmp_path / "toy.txt").write_text("earlier")
  write_xmc(build(DOCUMENTS, 5, 3), tmp_path / "toy.txt")
  assert [path.name for path in tmp_path.iterdir()] == ["toy.txt"]
  assert_same(read_xmc(tmp_path / "toy.txt"), build(DOCUMENTS, 5, 3))


def test_a_failed_write_leaves_the_earlier_file(tmp_path, monkeypatch):
  (tmp_path / "toy.txt").write_text("earlier")

  def full(data, file):
    file.write(b"4 5")
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(xmc_text, "_write", full)
  with pytest.raises(InputError, match=r"cannot be written \(No space left on device\); name"):
    write_xmc(build(DOCUMENTS, 5, 3), tmp_path / "toy.txt")
  assert [path.read_text() for path in tmp_path.iterdir()] == ["earlier"]


def test_refuses_to_write_where_there_is_no_directory(tmp_path):
  (tmp_path / "a_file").touch()
  for folder, reason in (("none", "No such file"), ("a_file", "Not a directory")):
    with pytest.raises(InputError, match=rf"toy.txt: cannot be written \({reason}"):
      write_xmc(build(DOCUMENTS, 5, 3), tmp_path / folder / "toy.txt")


# --- the arrays ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"feature_ids": np.zeros(4)}, "feature_ids must be int32 of rank 1, got float64"),
    ({"label_ids": np.zeros((3, 1), np.int32)}, r"label_ids must be int32 of rank 1, got .*\(3, 1"),
    ({"feature_values": np.zeros(3, np.float32)}, "3 feature values for 4 feature ids"),
    ({"label_splits": np.array([0, 2, 3])}, "5 feature splits and 3 label splits"),
    ({"label_splits": np.array([0, 2, 1, 3, 3])}, "label_splits must rise from 0 to .* entries, 3"),
    ({"label_splits": np.array([1, 2, 3, 3, 3])}, "label_splits must rise from 0"),
    ({"feature_splits": np.array([0, 2, 2, 4, 5])}, "feature_splits must rise .* entries, 4"),
    ({"num_features": 4}, r"feature_ids must be in \[0, 4\); 1 of 4 .* \(first: id 1, value '4'\)"),
    (
      {"label_ids": np.int32([0, -1, 1])},
      r"label_ids must be in \[0, 3\); 1 of 3 .* id 1, value '-1'",
    ),
    ({"label_ids": np.int32([2, 2, 1])}, r"1 of 4 documents .*\(first: document 0\)"),
    ({"feature_values": np.float32([1, np.nan, 1, 1])}, "feature_values must be finite"),
    ({"num_train": 5}, r"num_train must be in \[0, 4\], the number of documents, got 5"),
  ],
)
def test_refuses_arrays_that_do_not_fit(changes, message):
  with pytest.raises(InputError, match=f"built: .*{message}"):
    dataclasses.replace(build(DOCUMENTS, 5, 3), **changes)


def test_documents_of_one_part():
  data = build(DOCUMENTS, 5, 3, num_train=3)
  assert_same(data.train, build(DOCUMENTS[:3], 5, 3))
  assert_same(data.test, build(DOCUMENTS[3:], 5, 3, num_train=0))
  assert_same(data.part(1, 4), build(DOCUMENTS[1:], 5, 3, num_train=2))
  assert_same(data.part(2, 2), build([], 5, 3))
  assert np.shares_memory(data.part(1, 4).feature_values, data.feature_values)
  with pytest.raises(InputError, match=r"no documents \[3, 5\); it holds 4"):
    data.part(3, 5)


def test_the_fingerprint_sees_every_change():
  data = build(DOCUMENTS, 5, 3)
  others = [
    build(DOCUMENTS, 6, 3),
    build(DOCUMENTS, 5, 4),
    build(DOCUMENTS, 5, 3, num_train=2),
    build([([2, 0], DOCUMENTS[0][1]), *DOCUMENTS[1:]], 5, 3),
    build([*DOCUMENTS[:2], ([], [(0, 1.0), (3, 0.5)]), ([], [])], 5, 3),
    build([*DOCUMENTS[:1], ([], []), ([1], DOCUMENTS[2][1]), ([], [])], 5, 3),
  ]
  assert len({one.fingerprint() for one in (data, *others)}) == 1 + len(others)
  assert dataclasses.replace(data, name="other").fingerprint() == data.fingerprint()


# --- loading -------------------------------------------------------------------------------------


def write_pair(folder, train_name, test_name):
  folder.mkdir(parents=True, exist_ok=True)
  whole_set = build(DOCUMENTS, 5, 3, num_train=3)
  write_xmc(whole_set.train, folder / train_name)
  write_xmc(whole_set.test, folder / test_name)
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
  data = load_wiki10(str(tmp_path))
  assert_same(data, expected)
  assert (data.name, data.num_train) == ("wiki10", 3)


def test_files_of_the_own_name_and_plain_ones_come_first(tmp_path):
  for name in ("train.txt", "other_train.txt", "test.txt", "wiki10_test.txt.gz"):
    (tmp_path / name).write_text("wrong")
  expected = write_pair(tmp_path, "wiki10_train.txt.gz", "wiki10_test.txt")
  assert_same(load_wiki10(str(tmp_path)), expected)


def test_missing_files_are_named_with_the_remedy(tmp_path):
  remedy = (
    "download Wiki10-31K with .* from the Extreme Classification Repository, .*--data_dir=DIR"
  )
  for data_dir, problem in (
    (None, "data set 'wiki10' is read from files, which are not named"),
    (str(tmp_path / "none"), r"none: cannot be read \(No such file"),
    (str(tmp_path), "holds no train.txt and test.txt"),
  ):
    with pytest.raises(InputError, match=f"{problem}.*; {remedy}"):
      load_wiki10(data_dir)
  write_pair(tmp_path / "Wiki10", "wiki10_train.txt", "elsewhere.txt")
  with pytest.raises(InputError, match=f"Wiki10: missing test.txt; {remedy}"):
    load_wiki10(str(tmp_path))


def test_files_of_different_sets_are_refused(tmp_path):
  write_xmc(build(DOCUMENTS, 5, 3), tmp_path / "train.txt")
  write_xmc(build(DOCUMENTS, 5, 4), tmp_path / "test.txt")
  with pytest.raises(InputError, match="training file counts 3 labels and the test file 4; take"):
    load_xmc("any", str(tmp_path))


def test_delicious_has_the_published_counts(test_data):
  if not (test_data / "delicious").is_dir():
    pytest.skip("TF_TWOSTAGE_TEST_DATA holds no delicious/")
  start = time.process_time()
  data = load_xmc("delicious", str(test_data))
  assert time.process_time() - start < 5  # measured: 0.2 s
  assert (data.num_train, data.num_documents) == (12_920, 12_920 + 3_185)
  assert (data.num_features, data.num_labels) == (500, 983)
  per_document = np.diff(data.label_splits)
  assert per_document.mean() == pytest.approx(19.02, abs=0.005)
  assert np.count_nonzero(per_document == 0) == 14
  assert np.unique(data.feature_values).tolist() == [1.0]
  # The first document of delicious_train.txt and the labels of the last of delicious_test.txt.
  assert data.feature_ids[:5].tolist() == [60, 248, 279, 316, 490]
  first, last = data.part(0, 1), data.part(data.num_documents - 1, data.num_documents)
  assert first.label_ids.tolist() == [77, 91, 315, 544, 575, 621, 718, 818, 819, 834, 908]
  text = (test_data / "delicious" / "delicious_test.txt").read_text().splitlines()[-1]
  assert last.label_ids.tolist() == [int(label) for label in text.split()[0].split(",")]


def test_delicious_is_written_as_it_was_read(test_data, tmp_path):
  source = test_data / "delicious" / "delicious_train.txt"
  if not source.is_file():
    pytest.skip("TF_TWOSTAGE_TEST_DATA holds no delicious/")
  write_xmc(read_xmc(source), tmp_path / "train.txt")
  assert (tmp_path / "train.txt").read_bytes() == source.read_bytes()


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
  assert (invented.num_features, invented.num_labels) == (1_000, 200)
  for splits, mean in ((invented.label_splits, 5), (invented.feature_splits, 30)):
    assert np.diff(splits).mean() == pytest.approx(mean, rel=0.03)
    assert np.diff(splits).min() >= 1


def matrices(data):
  shape = data.num_documents
  features = (data.feature_values, data.feature_ids, data.feature_splits)
  labels = (np.ones(len(data.label_ids)), data.label_ids, data.label_splits)
  return (
    scipy.sparse.csr_array(features, shape=(shape, data.num_features)),
    scipy.sparse.csr_array(labels, shape=(shape, data.num_labels)),
  )


def test_features_differ_within_a_document_and_have_length_one(invented):
  features, _ = matrices(invented)
  assert features.has_canonical_format
  np.testing.assert_allclose(scipy.sparse.linalg.norm(features, axis=1), 1, atol=1e-4)
  assert invented.feature_values.min() > 0


def test_values_have_six_decimals(invented, tmp_path):
  write_xmc(invented, tmp_path / "toy.txt")
  values = re.findall(rb":([0-9.e-]+)", (tmp_path / "toy.txt").read_bytes())
  assert max(map(len, values)) <= len("0.123456")


def test_labels_and_features_follow_a_power_law(invented):
  for ids, count in (
    (invented.label_ids, invented.num_labels),
    (invented.feature_ids, invented.num_features),
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


def test_ids_say_nothing_about_popularity(invented):
  counts = np.bincount(invented.label_ids, minlength=invented.num_labels)
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
  assert (data.num_features, data.num_labels) == (101_938, 30_938)
  assert np.diff(data.label_splits).mean() == pytest.approx(18.6, rel=0.02)
  assert np.diff(data.feature_splits).mean() == pytest.approx(673, rel=0.02)
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
  assert np.diff(data.label_splits).min() >= 1
  assert np.diff(data.feature_splits).min() >= 1


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
