"""Commands on documents with complete labels, run as a user runs them."""

import json
import re
import shutil

import pytest

from tests.commands import run
from tests.data.sets import xmc_files
from tf_twostage.data.sets import make_xmc

SHORT = (
  "--validation_users=20",
  "--supervised_documents=40",
  "--behavior_epochs=2",
  "--ranker_epochs=1",
  "--epochs=1",
  "--num_slates=3",
)


def directories(root):
  return f"--workdir={root / 'run'}", f"--export_dir={root / 'export'}"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """A small set under the real one's names."""
  folder = tmp_path_factory.mktemp("data") / "Wiki10"
  folder.mkdir()
  data = make_xmc(120, 60, 150, 50, labels_per_document=4, features_per_document=20)
  xmc_files.write(data.train, folder / "wiki10_train.txt")
  xmc_files.write(data.test, folder / "wiki10_test.txt")
  return folder.parent


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
  """Where a short run worked."""
  root = tmp_path_factory.mktemp("trained")
  done = run("--flagfile=launch/wiki10.flags", f"--data_dir={files}", *SHORT, *directories(root))
  assert done.returncode == 0, done.stderr
  return root


def test_wiki10_trains_evaluates_and_exports(trained):
  metrics = json.loads((trained / "run" / "metrics.json").read_text())
  assert 0 < metrics["logged_reward"] < 1
  for stage in ("one_stage", "two_stage"):
    assert {"precision@1", "precision@5", "precision@10"} <= set(metrics["test"][stage])
  stages = {p.name.rsplit("-", 1)[0] for p in (trained / "run" / "stages").iterdir()}
  assert stages == {"behavior_policy", "log", "ranker", "baselines"}
  assert (trained / "export" / "1" / "saved_model.pb").exists()


def test_wiki10_losses_are_compared(files, trained, tmp_path):
  shutil.copytree(trained / "run" / "stages", tmp_path / "stages")
  done = run(
    "--flagfile=launch/wiki10.flags",
    f"--data_dir={files}",
    "--losses=cross_entropy,two_stage_ips",
    "--seeds=1",
    "--processes=1",
    *SHORT,
    f"--workdir={tmp_path}",
    name="experiment",
  )
  assert done.returncode == 0, done.stderr
  table = (tmp_path / "experiment" / "table.md").read_text()
  assert "P@1" in table
  assert "two_stage_ips" in table


@pytest.mark.parametrize("name", ["wiki10", "delicious"])
def test_missing_files_are_named_with_the_remedy(name, tmp_path):
  done = run(f"--flagfile=launch/{name}.flags", *directories(tmp_path))
  assert done.returncode == 2
  title = {"wiki10": "Wiki10-31K"}.get(name, "Delicious")
  assert re.search(f"error: .*{name}.*download {title} .* set data_dir to", done.stderr)
  assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (
      ["--environment=somewhere"],
      "environment=somewhere: a prepared environment is one of ratings",
    ),
    (["--validation_users=60"], "validation_users is 60, but wiki10 has 60 test documents"),
    (["--slate_size=51"], "not exceed the 50 labels of wiki10"),
    (["--supervised_documents=121"], "supervised_documents is 121, but wiki10 has 120"),
    (["--max_features=0"], "max_features must be at least 1"),
    (["--dataset=wiki10_shape"], "'wiki10_shape' reads no files; leave data_dir"),
  ],
)
def test_wrong_input_ends_in_one_message(files, tmp_path, arguments, words):
  done = run(
    "--flagfile=launch/wiki10.flags",
    f"--data_dir={files}",
    *SHORT,
    *arguments,
    *directories(tmp_path),
  )
  assert done.returncode == 2
  assert words in done.stderr
  assert "Traceback" not in done.stderr


def test_delicious_from_a_directory_trains(test_data, tmp_path):
  """The real files, cut to one epoch."""
  if not (test_data / "delicious").is_dir():
    pytest.skip("TF_TWOSTAGE_TEST_DATA holds no delicious/")
  done = run(
    "--flagfile=launch/delicious.flags",
    f"--data_dir={test_data}",
    "--behavior_epochs=2",
    "--ranker_epochs=2",
    "--epochs=1",
    "--num_slates=2",
    *directories(tmp_path),
    export=False,
  )
  assert done.returncode == 0, done.stderr
  metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
  two_stage, random = (
    m["test"]["two_stage"]["precision@1"] for m in (metrics, metrics["baselines"]["random"])
  )
  assert two_stage > 2 * random
