"""Damaged input files: `python -m tests.reader_damage` tries more of them."""

import pytest

from tests import reader_damage


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  return reader_damage.make(tmp_path_factory.mktemp("files"))


def test_a_damaged_file_is_read_or_refused_in_one_message(made):
  problems = {
    kind: [p for p in reader_damage.trials(kind, *of, mutations=6, seed=1) if p]
    for kind, of in made.items()
  }
  assert problems == {kind: [] for kind in made}


def test_a_cut_gzip_file_is_never_a_shorter_log(made):
  assert not any(reader_damage.cuts(*made["gzipped CSV"], step=9))


class _Hidden:
  def __del__(self):
    raise RuntimeError


@pytest.mark.parametrize(
  ("read", "expected"),
  [
    (lambda file: [][0], "0: IndexError: list index out of range"),
    (lambda file: _Hidden(), "0: printed Exception ignored in: "),
  ],
)
def test_a_reader_that_fails_in_another_way_is_noticed(made, read, expected):
  file, _ = made["CSV"]
  (problem,) = reader_damage.trials("CSV", file, read, mutations=1)
  assert problem.startswith(expected)
