"""Damaged work directories: `python -m tests.damage` tries more files of more kinds of runs."""

import pytest

from tests import damage
from tf_twostage.data import sets


@pytest.mark.parametrize(("kind", "mutations"), [("prepared", 3), ("streamed", 2)])
def test_a_damaged_file_changes_no_number(kind, mutations, tmp_path, monkeypatch):
  monkeypatch.setattr(sets, "DATASETS", {**sets.DATASETS})
  found = list(damage.trials(kind, tmp_path, mutations, seed=1))
  assert found
  assert [trial for trial in found if trial[-1]] == []
