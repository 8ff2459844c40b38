"""The commands with --generator=casmos, run as a user runs them."""

import json

import pandas as pd
import pytest

from tests.commands import run
from tests.launch.test_train import SHORT, directories

ASKED = (*SHORT, "--generator=casmos", "--clause_support=10")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("casmos")
  done = run(*ASKED, *directories(root))
  assert done.returncode == 0, done.stderr
  return root


def test_a_run_leaves_its_clauses_and_what_the_threshold_costs(root):
  query = json.loads((root / "run" / "clauses.json").read_text())
  assert query["threshold"] > 0
  weights = [clause["weight"] for clause in query["clauses"]]
  assert weights == sorted(weights, reverse=True)
  assert weights[-1] > 0
  curve = pd.read_csv(root / "run" / "threshold.csv")
  assert curve["threshold"].is_monotonic_increasing
  for column in ("scored", "recall", "touched"):
    assert curve[column].is_monotonic_decreasing
    assert curve[column].between(0, 1).all()
  assert (root / "run" / "threshold.png").exists()


def test_policies_with_clauses_are_evaluated_alone_and_in_a_mixture(root):
  done = run(*ASKED, f"--workdir={root / 'run'}", "--mixture=1", name="evaluate")
  assert done.returncode == 0, done.stderr
  assert "two_stage_ips" in done.stdout
  assert "mixture" in done.stdout


def test_an_export_is_checked_and_explained(root):
  done = run(f"--model={root / 'export'}", "--repeats=1", name="serve_check", replay=True)
  assert done.returncode == 0, done.stderr
  _, why = done.stdout.split("is a candidate of the first call's user")
  assert " x " in why or "=" in why
