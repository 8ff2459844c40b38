"""Parsing of '::'-separated text."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_twostage.data.sets.raw_table import RawTable, parse
from tf_twostage.errors import InputError

COLUMNS = {"number": int, "text": str}


def read(data: bytes) -> pd.DataFrame:
  return parse(data, COLUMNS, "toy.dat", "ask again").frame


# The format itself forbids these inside a field.
_field = st.text(st.characters(max_codepoint=255, exclude_characters=":\n\r\x1f"))


@given(st.lists(st.tuples(st.integers(0, 10**18 - 1), _field), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_reads_back_what_was_written(rows):
  text = "".join(f"{number}::{text}\n" for number, text in rows)
  frame = read(text.encode("latin-1"))
  assert list(frame.itertuples(index=False, name=None)) == rows


def test_counts_lines_from_one():
  frame = read(b"5::a\n6::b\n")
  assert frame.index.tolist() == [1, 2]
  assert frame.index.name == "line"


def test_windows_line_ends_read_the_same():
  pd.testing.assert_frame_equal(read(b"1::a\r\n2::b\r\n"), read(b"1::a\n2::b\n"))


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", "toy.dat: the file is empty; ask again"),
    (b"\n \n", "toy.dat: the file is empty; ask again"),
    (b"1::a\n2::b", "toy.dat: cut off in line 2, which has no newline; ask again"),
    (b"1::a\n2\n3::c::d\n", r"needs 2 fields .*; 2 of 3 lines differ \(first: line 2 has 1\)"),
    (b"1::a\n2::b::b\n3::c\n", r"1 of 3 lines differ \(first: line 2 has 3\); ask again"),
    (b"1::a\n\n3::c\n", r"1 of 3 lines differ \(first: line 2 has 1\)"),
    (b"1,a\n", r"1 of 1 lines differ \(first: line 1 has 1\)"),
  ],
)
def test_refuses_malformed_text(data, message):
  with pytest.raises(InputError, match=message):
    read(data)


@pytest.mark.parametrize("value", ["", "x", "1.5", "-1", "0x10", "²", "nan", "9" * 19, "9" * 40])
def test_refuses_what_is_no_whole_number(value):
  message = rf"'number' must be a whole number; 1 of 3 rows do not \(first: line 2, '{value}'\)"
  with pytest.raises(InputError, match=message):
    read(f"1::a\n{value}::b\n3::c\n".encode("latin-1"))


def test_require_counts_all_offenders_and_names_the_first():
  frame = pd.DataFrame({"n": [1, 7, 9]}, index=pd.Index([4, 8, 15], name="row"))
  table = RawTable("here", frame, "mend it")
  message = r"here: column 'n' must be small; 2 of 3 rows do not \(first: row 8, '7'\); mend it"
  with pytest.raises(InputError, match=message):
    table.require(frame["n"] < 5, "n", "be small")


def test_require_passes_when_all_rows_are_valid():
  frame = pd.DataFrame({"n": [1]})
  RawTable("here", frame, "mend it").require(np.array([True]), "n", "be small")
