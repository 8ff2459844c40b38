"""MovieLens-1M from its files: values, sources and error messages."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.sets import mini_movielens as mini
from tf_twostage.data.sets import movielens
from tf_twostage.data.sets.movielens import load_movielens_1m
from tf_twostage.errors import InputError


@pytest.fixture
def directory(tmp_path):
  return mini.write_directory(tmp_path / "data")


@pytest.fixture
def data(directory):
  return load_movielens_1m(str(directory))


def test_users_are_ordered_by_number_with_readable_features(data):
  assert data.users["user_id"].tolist() == ["2", "3", "10"]
  assert data.users["gender"].tolist() == ["M", "M", "F"]
  assert data.users["age"].tolist() == ["56+", "25-34", "Under 18"]
  expected = ["self-employed", "other/not specified", "K-12 student"]
  assert data.users["occupation"].tolist() == expected
  assert data.users["zip_code"].tolist() == ["70072-1234", "55117", "48067"]


def test_movies_are_ordered_by_number_and_kept_unrated(data):
  assert data.items["movie_id"].tolist() == ["1", "9", "10", "20", "100"]
  assert data.items["year"].tolist() == ["1926", "1995", "1995", "2000", "1968"]
  assert data.titles[1] == "Misérables, Les (1995)"
  unrated = data.items["movie_id"].tolist().index("20")
  assert unrated not in data.item_index


def test_genres_are_padded_to_the_longest(data):
  assert data.items["genres"].shape == (5, 4)
  assert data.items["genres"][2].tolist() == ["Animation", "Children's", "Comedy", ""]


def test_ratings_are_ordered_by_user_time_and_movie(data):
  ids = [
    (int(data.users["user_id"][user]), int(when), int(data.items["movie_id"][item]), int(stars))
    for user, when, item, stars in zip(
      data.user_index, data.context["timestamp"], data.item_index, data.rating, strict=True
    )
  ]
  written = [tuple(map(int, line.split(b"::"))) for line in mini.RATINGS.splitlines()]
  assert ids == sorted((user, when, movie, stars) for user, movie, stars, when in written)


def test_the_order_of_lines_does_not_matter(tmp_path, data):
  def backwards(content):
    return b"".join(reversed(content.splitlines(keepends=True)))

  changed = {name.removesuffix(".dat"): backwards(text) for name, text in mini.FILES.items()}
  other = mini.write_directory(tmp_path / "backwards", **changed)
  assert load_movielens_1m(str(other)).fingerprint() == data.fingerprint()


def test_vocabularies_of_codes_are_complete_and_those_of_ids_follow_the_tables(data):
  vocabulary = {f.name: f.vocabulary for f in (*data.schema.user, *data.schema.item)}
  sizes = {"gender": 2, "age": 7, "occupation": 21, "genres": 18}
  assert {name: len(vocabulary[name]) for name in sizes} == sizes
  assert vocabulary["user_id"] == ("2", "3", "10")
  assert vocabulary["movie_id"] == ("1", "9", "10", "20", "100")
  assert vocabulary["year"] == ("1926", "1968", "1995", "2000")
  assert vocabulary["zip_code"] == ("48067", "55117", "70072-1234")


def test_every_value_is_in_its_vocabulary(data):
  for features, table in ((data.schema.user, data.users), (data.schema.item, data.items)):
    for feature in features:
      assert np.isin(table[feature.name], [*feature.vocabulary, ""]).all(), feature.name


def test_time_reads_as_zero_to_one_over_the_ratings(data):
  (feature,) = data.schema.context
  scaled = (data.context["timestamp"] - feature.offset) / feature.scale
  assert (scaled.min(), scaled.max()) == (0.0, 1.0)


@pytest.mark.parametrize("form", ["subdirectory", "zip", "directory with zip", "flat zip", "~"])
def test_every_form_gives_the_same_data(form, tmp_path, data, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  source = {
    "subdirectory": lambda: mini.write_directory(tmp_path / "ml-1m").parent,
    "zip": lambda: mini.write_zip(tmp_path / "any_name.zip"),
    "directory with zip": lambda: mini.write_zip(tmp_path / "ml-1m.zip").parent,
    "flat zip": lambda: mini.write_zip(tmp_path / "flat.zip", folder=""),
    "~": lambda: "~/data",
  }[form]()
  assert load_movielens_1m(str(source)).fingerprint() == data.fingerprint()


USERS, MOVIES, RATINGS = mini.USERS, mini.MOVIES, mini.RATINGS


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"users": None}, r"data: missing users.dat; download"),
    ({"users": None, "ratings": None}, r"data: missing users.dat, ratings.dat; download"),
    ({"movies": b""}, r"movies.dat: the file is empty; use"),
    ({"ratings": RATINGS[:-1]}, r"ratings.dat: cut off in line 6"),
    ({"ratings": RATINGS + b"3::1::5\n"}, r"ratings.dat: .*1 of 7 lines .*line 7 has 3"),
    (
      {"ratings": RATINGS + b"3::1::five::9\n"},
      r"ratings.dat: column 'rating'.*line 7, value 'five'",
    ),
    (
      {"ratings": RATINGS + b"3::1::4.5::9\n"},
      r"ratings.dat: column 'rating'.*line 7, value '4.5'",
    ),
    ({"ratings": RATINGS + b"3::1::0::9\n"}, r"'rating' must be 1, .*1 of 7 .*line 7, value '0'"),
    ({"ratings": RATINGS + b"3::1::6::9\n"}, r"'rating' must be 1, .*1 of 7 .*line 7, value '6'"),
    ({"ratings": RATINGS + b"4::1::5::9\n"}, r"'user_id' must occur in .*users.dat; .*'4'"),
    ({"ratings": RATINGS + b"3::2::5::9\n"}, r"'movie_id' must occur in .*movies.dat; .*'2'"),
    ({"ratings": RATINGS + b"3::10::5::9\n"}, r"'movie_id' must be unique for a user; 1 of 7"),
    ({"users": USERS + b"3::M::1::1::1\n"}, r"users.dat: column 'user_id' must be unique; 1 of 4"),
    ({"users": USERS + b"4::X::1::1::1\n"}, r"users.dat: column 'gender'.*line 4, value 'X'"),
    (
      {"users": USERS + b"4::M::19::1::1\n"},
      r"users.dat: column 'age'.*README.*line 4, value '19'",
    ),
    ({"users": USERS + b"4::M::1::21::1\n"}, r"users.dat: column 'occupation'.*line 4, value '21'"),
    ({"users": USERS + b"4::M::1::1::\n"}, r"users.dat: column 'zip_code'.*line 4, value ''"),
    (
      {"users": USERS + b"x::M::1::1::1\n"},
      r"users.dat: column 'user_id'.*number.*line 4, value 'x'",
    ),
    ({"movies": MOVIES + b"1::A (1990)::War\n"}, r"movies.dat: column 'movie_id' must be unique"),
    ({"movies": MOVIES + b"2::A::War\n"}, r"movies.dat: column 'title' must end in a year.*'A'"),
    ({"movies": MOVIES + b"2::A (1990)::\n"}, r"movies.dat: column 'genres'.*line 6, value ''"),
    ({"movies": MOVIES + b"2::A (1990)::War|Golf\n"}, r"movies.dat: column 'genres'.*'War.Golf'"),
  ],
)
def test_bad_files_are_reported_with_the_remedy(changed, message, tmp_path):
  directory = mini.write_directory(tmp_path / "data", **changed)
  with pytest.raises(InputError, match=message) as caught:
    load_movielens_1m(str(directory))
  assert "https://files.grouplens.org/datasets/movielens/ml-1m.zip" in str(caught.value)


def test_an_unreadable_file_is_named(tmp_path):
  directory = mini.write_directory(tmp_path / "data", users=None)
  (directory / "users.dat").mkdir()
  with pytest.raises(InputError, match=r"users.dat: cannot be read"):
    load_movielens_1m(str(directory))


def damage(path, old: bytes, new: bytes) -> None:
  content = path.read_bytes()
  assert old in content
  path.write_bytes(content.replace(old, new))


def test_a_zip_with_a_flipped_byte_is_refused(tmp_path):
  path = mini.write_zip(tmp_path / "ml-1m.zip")
  damage(path, b"Toy Story", b"Boy Story")
  with pytest.raises(InputError, match=r"ml-1m.zip: not an intact zip file \(Bad CRC-32.*download"):
    load_movielens_1m(str(path))


def test_a_cut_off_zip_is_refused(tmp_path):
  path = mini.write_zip(tmp_path / "ml-1m.zip")
  path.write_bytes(path.read_bytes()[:-30])
  with pytest.raises(InputError, match=r"ml-1m.zip: not an intact zip file"):
    load_movielens_1m(str(tmp_path))


def test_a_file_that_is_no_zip_is_refused(directory):
  with pytest.raises(InputError, match=r"users.dat: not an intact zip file .*download"):
    load_movielens_1m(str(directory / "users.dat"))


def test_a_zip_without_a_member_is_refused(tmp_path):
  path = mini.write_zip(tmp_path / "ml-1m.zip", leave_out="movies.dat")
  with pytest.raises(InputError, match=r"ml-1m.zip: missing movies.dat; download"):
    load_movielens_1m(str(path))


@pytest.mark.parametrize(
  ("name", "message"), [("", "holds no users.dat"), ("none", "No such file")]
)
def test_a_wrong_path_fails_at_once(name, message, tmp_path):
  start = time.perf_counter()
  with pytest.raises(InputError, match=f"{message}.*set data_dir to"):
    load_movielens_1m(str(tmp_path / name))
  assert time.perf_counter() - start < 1.0


def test_the_real_data_have_their_published_counts_and_load_quickly(test_data):
  start = time.perf_counter()
  data = load_movielens_1m(str(test_data))
  seconds = time.perf_counter() - start
  assert (data.num_users, data.num_items, len(data.rating)) == (6040, 3883, 1_000_209)
  assert np.bincount(data.user_index).min() >= 20  # as the README promises
  assert np.mean(data.rating > 3) == pytest.approx(0.575, abs=0.001)
  assert seconds < 15.0  # about one second on an idle machine


# --- the text format -----------------------------------------------------------------------------


def parse(data: bytes):
  return movielens._parse(data, {"number": int, "text": str}, "toy.dat").frame


# The format itself forbids these inside a field.
_field = st.text(st.characters(max_codepoint=255, exclude_characters=":\n\r\x1f"))


@given(st.lists(st.tuples(st.integers(0, 10**18 - 1), _field), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_reads_back_what_was_written(rows):
  text = "".join(f"{number}::{text}\n" for number, text in rows)
  frame = parse(text.encode("latin-1"))
  assert list(frame.itertuples(index=False, name=None)) == rows
  assert frame.index.tolist() == list(range(1, len(rows) + 1))
  windows = parse(text.replace("\n", "\r\n").encode("latin-1"))
  assert windows.equals(frame)


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"\n \n", "toy.dat: the file is empty; use the files"),
    (b"1::a\n2::b", "toy.dat: cut off in line 2, which has no newline; use the files"),
    (
      b"1::a\n2\n3::c::d\n",
      r"needs 2 fields .*; 2 of 3 lines differ \(first: line 2 has 1 fields\)",
    ),
    (
      b"1::a\n2::b::b\n3::c\n",
      r"1 of 3 lines differ \(first: line 2 has 3 fields\); use the files",
    ),
    (b"1::a\n\n3::c\n", r"1 of 3 lines break this \(first: line 2, value ''\)"),
    (b"1,a\n", r"1 of 1 lines differ \(first: line 1 has 1 fields\)"),
  ],
)
def test_refuses_malformed_text(data, message):
  with pytest.raises(InputError, match=message):
    parse(data)


@pytest.mark.parametrize("value", ["", "x", "1.5", "-1", "0x10", "²", "nan", "9" * 19, "9" * 40])
def test_refuses_values_that_are_not_whole_numbers(value):
  message = (
    rf"'number' must be a whole number; 1 of 3 lines break this \(first: line 2, value '{value}'\)"
  )
  with pytest.raises(InputError, match=message):
    parse(f"1::a\n{value}::b\n3::c\n".encode("latin-1"))
