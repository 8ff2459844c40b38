"""The commands on logs, run as a user runs them."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests import commands
from tests.commands import ROOT
from tests.data.files import small_log
from tf_twostage.data.log_schema import PRESETS, LogSchema


def run(name, *arguments, how=commands.run):
  return how(*arguments, name=name)


@pytest.fixture(scope="module")
def open_bandit_files():
  root = pathlib.Path(os.environ.get("TF_TWOSTAGE_TEST_DATA", "")) / "open-bandit/bts/all"
  if not (root / "all.csv").exists():
    pytest.skip("set TF_TWOSTAGE_TEST_DATA to a directory that holds open-bandit/bts/all/")
  return root / "all.csv", root / "item_context.csv"


def test_open_bandit_goes_through_all_commands(open_bandit_files, tmp_path):
  log, items = open_bandit_files
  draft = run("infer_schema", f"--log={log}", f"--items={items}", how=commands.cold)
  assert draft.returncode == 0, draft.stderr
  (tmp_path / "schema.yaml").write_text(draft.stdout)
  assert LogSchema.from_file(tmp_path / "schema.yaml") == PRESETS["open_bandit"]

  arguments = f"--log={log}", f"--schema={tmp_path / 'schema.yaml'}"
  policy = tmp_path / "policy.csv"
  rows = [f"{item},{position},{1 / 80}" for item in range(80) for position in (1, 2, 3)]
  policy.write_text("\n".join(["item_id,position,probability", *rows]))
  report = run(
    "validate_log", *arguments, f"--items={items}", f"--output={tmp_path}", f"--policy={policy}"
  )
  assert (report.returncode, report.stderr) == (0, "")
  assert "\nUsable.\n\nNext: python -m launch.train" in report.stdout
  facts = json.loads((tmp_path / "report.json").read_text())["facts"]
  assert facts["Rows"]["rows"] == 10_000
  assert facts["Propensity"]["mean of 1/propensity"] == pytest.approx(80, abs=3 * 4.3)
  for name, value in facts["Uniform policy on this log"].items():
    assert facts["Given policy on this log"][name] == pytest.approx(value)
  assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")

  done = run("convert_log", *arguments, f"--output={tmp_path / 'new'}", "--num_shards=2", "--gzip")
  assert done.returncode == 0, done.stderr
  assert "10,000 rows in 2 shards" in done.stdout
  native = small_log.read(tmp_path / "new", items, tmp_path / "new" / "schema.yaml")
  assert native.fingerprint() == small_log.read(log, items, "open_bandit").fingerprint()


def test_bad_rows_decide_the_exit_code(tmp_path):
  frame = small_log.frame()
  frame.loc[3, "click"] = -1
  log, items, schema = small_log.write(tmp_path, frame)
  arguments = f"--log={log}", f"--schema={schema}", f"--items={items}"
  refused = run("validate_log", *arguments, f"--output={tmp_path / 'report'}")
  assert refused.returncode == 1
  assert "column 'click' must be >= 0 and at most 1e15; 1 of 8" in " ".join(refused.stdout.split())
  assert "Not usable: 1 bad rows." in refused.stdout
  assert refused.stderr == ""
  written = json.loads((tmp_path / "report" / "report.json").read_text())
  assert written["faults"][0]["line"] == 5

  skipped = run(
    "validate_log", *arguments, "--on_bad_rows=skip", "--split=user", "--environment_seed=3"
  )
  assert skipped.returncode == 0
  assert "launch.train" in skipped.stdout
  assert "--split=user --environment_seed=3" in skipped.stdout  # training splits as was reported
  assert "Split by user" in skipped.stdout
  assert "\nUsable, without 1 bad rows.\n" in skipped.stdout

  converted = run("convert_log", *arguments[:2], f"--output={tmp_path / 'new'}")
  assert converted.returncode == 1
  assert "line 5, row 3, value '-1'" in converted.stderr
  assert "Traceback" not in converted.stderr
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
  ("name", "arguments", "words"),
  [
    ("validate_log", [], "--log must be given"),
    ("validate_log", ["--log=nowhere.csv"], "nowhere.csv: no such file"),
    ("convert_log", ["--log=x.csv"], "--output must be given"),
    ("infer_schema", ["--loggg=x"], "Unknown command line flag 'loggg'"),
  ],
)
def test_wrong_usage_ends_in_one_message(name, arguments, words):
  done = run(name, *arguments)
  assert done.returncode == 2
  assert done.stderr.startswith("error: ")
  assert words in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1


def test_a_report_starts_fast_because_tensorflow_stays_out_of_it():
  code = "import sys, tf_twostage.data.check.examine; assert 'tensorflow' not in sys.modules"
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_help_lists_what_the_command_takes_and_no_more():
  done = run("validate_log", "--help")
  assert done.returncode == 0
  for flag in ("--log", "--schema", "--items", "--users", "--on_bad_rows", "--policy", "--split"):
    assert flag in done.stdout
  assert "--epochs" not in done.stdout
  assert "Exit code 0: usable; 1: unusable" in done.stdout
