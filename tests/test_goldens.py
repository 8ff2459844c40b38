"""A restructuring gives the same numbers as before; see `goldens`."""

import json

import numpy as np
import pytest

from tests import goldens

GOLDEN = json.loads(goldens.FILE.read_text(encoding="utf-8"))


def assert_same(found, golden, where=""):
  """Texts are equal and numbers agree to float32's accuracy, in whatever they are nested."""
  if isinstance(golden, dict):
    assert sorted(found) == sorted(golden), where
    for name, value in golden.items():
      assert_same(found[name], value, f"{where}/{name}")
  elif isinstance(golden, list) and golden and isinstance(golden[0], str | list):
    assert len(found) == len(golden), where
    for i, (one, other) in enumerate(zip(found, golden, strict=True)):
      assert_same(one, other, f"{where}/{i}")
  elif isinstance(golden, str):
    assert found == golden, where
  else:
    np.testing.assert_allclose(found, golden, rtol=1e-4, atol=1e-6, err_msg=where)


@pytest.mark.parametrize("name", GOLDEN["losses"])
def test_a_loss_and_its_gradient_are_as_before(name):
  assert_same(goldens.loss_values()[name], GOLDEN["losses"][name])


def test_the_embedded_run_scores_and_answers_as_before(tmp_path):
  assert_same(goldens.synthetic(tmp_path), GOLDEN["synthetic"])


def test_a_slice_of_movielens_scores_as_before(test_data, tmp_path):
  assert_same(goldens.movielens_slice(test_data, tmp_path), GOLDEN["movielens_slice"])
