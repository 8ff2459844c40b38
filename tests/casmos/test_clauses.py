import pytest

from tests.casmos import small
from tf_twostage.casmos.clauses import Clause, Query
from tf_twostage.errors import InputError


def test_a_file_holds_what_was_written(tmp_path):
  ranges = Clause((("age", (None, 20.0)), ("words", 3)), (("genres", "a"), ("genres", "b")), 0.25)
  query = Query((*small.TRUTH, ranges), 1.5)
  path = tmp_path / "clauses.json"
  path.write_text(query.to_json())
  read = Query.read(path)
  assert set(read.clauses) == set(query.clauses)
  assert read.threshold == 1.5


def test_clauses_read_as_a_person_writes_them(tmp_path):
  path = tmp_path / "clauses.json"
  path.write_text(
    '{"clauses": [{"user": {"job": "student"}, "item": {"year": {"from": 1990}}, "weight": 2}]}'
  )
  (clause,) = Query.read(path).clauses
  assert clause == Clause((("job", "student"),), (("year", (1990.0, None)),), 2.0)
  assert str(clause) == "job=student x 1990 <= year"


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{", "not readable as clauses"),
    ('{"clauses": [{"user": {}, "item": {"a": true}, "weight": 1}]}', "a value is a text"),
    ('{"clauses": [{"user": {}, "item": {"a": {"to": 1}}, "weight": 1}]}', "from and below"),
    ('{"clauses": [{"user": {}, "item": {"a": "b"}, "weight": -1}]}', "1 of 1 clauses .*a=b"),
    ('{"clauses": [{"user": {"a": "b"}, "item": {}, "weight": 1}]}', "no condition on the item"),
    ('{"clauses": []}', "0 of 0 clauses"),
  ],
)
def test_wrong_files_are_refused(tmp_path, text, message):
  path = tmp_path / "clauses.json"
  path.write_text(text)
  with pytest.raises(InputError, match=message):
    Query.read(path)
