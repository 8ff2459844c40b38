"""The wheel, used from an empty directory as somebody who has never seen the repository would."""

import json
import os
import subprocess
import sys

import pytest

from tests.commands import ROOT

SHORT = (
  *("--epochs=1", "--simulator_epochs=1", "--behavior_epochs=1", "--ranker_epochs=1"),
  "--loss=two_stage_ips:num_slates=2",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """Where a wheel of this repository is installed."""
  root = tmp_path_factory.mktemp("wheel")
  source = root / "source"
  source.mkdir()
  for name in ("setup.py", "pyproject.toml", "README.md", "launch", "tf_twostage"):
    (source / name).symlink_to(ROOT / name)
  pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
  build = ["wheel", "--no-deps", "--no-build-isolation", "-w", root, source]
  subprocess.run([*pip, *build], check=True, capture_output=True)
  (file,) = root.glob("*.whl")
  install = ["install", "--no-deps", "--no-index", "--target", root / "installed", file]
  subprocess.run([*pip, *install], check=True, capture_output=True)
  return root / "installed"


@pytest.fixture
def installed(wheel, tmp_path):
  """Runs Python in an empty directory, with nothing but the wheel and its dependencies."""

  def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    return subprocess.run(
      [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )

  return run


def test_a_wheel_has_presets_types_and_a_command(wheel):
  presets = {path.name for path in (ROOT / "launch").glob("*.flags")}
  assert {path.name for path in (wheel / "launch").glob("*.flags")} == presets
  assert (wheel / "launch" / "benchmark.yaml").exists()
  assert (wheel / "tf_twostage" / "py.typed").exists()
  assert (wheel / "bin" / "twostage").exists()


def test_training_without_flags_runs_the_embedded_default(installed, tmp_path):
  done = installed("-m", "launch.train", *SHORT)
  assert done.returncode == 0, done.stderr
  metrics = json.loads((tmp_path / "runs" / "synthetic" / "metrics.json").read_text())
  assert metrics["best_epoch"] == 1
  assert (tmp_path / "saved_models" / "synthetic" / "1" / "saved_model.pb").exists()
  for noise in ("oneDNN", "cuda", "cuInit", "absl::InitializeLog", "AVX"):
    assert noise not in done.stderr


def test_one_command_lists_and_runs_all(installed):
  done = installed("-m", "launch")
  assert done.returncode == 0
  names = [line.split()[0] for line in done.stdout.splitlines()[2:]]
  files = {path.stem for path in (ROOT / "launch").glob("*.py")}
  assert names == sorted(files - {"__init__", "__main__", "config", "output"})
  assert installed("-m", "launch", "nonsense").returncode == 2
  done = installed("-m", "launch", "convert_log", "--log=x.csv")  # it starts without TensorFlow
  assert (done.returncode, done.stderr) == (2, "error: --output must be given; see --help\n")
