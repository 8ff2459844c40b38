"""The commands, run as a user runs them."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
# Everything as in the embedded default, only shorter.
SHORT = (
  "--flagfile=launch/synthetic.flags",
  "--epochs=2",
  "--simulator_epochs=1",
  "--behavior_epochs=2",
  "--ranker_epochs=2",
  "--num_slates=5",
)


def command(*arguments):
  return [sys.executable, "-m", "launch.train", *map(str, arguments)]


def run(*arguments):
  return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True)


def directories(root):
  return f"--workdir={root / 'run'}", f"--export_dir={root / 'export'}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A short run of the embedded default, and where it worked."""
  root = tmp_path_factory.mktemp("launch")
  done = run(*SHORT, *directories(root))
  assert done.returncode == 0, done.stderr
  return root, done


def test_a_run_prints_one_table_with_baselines(finished):
  _, done = finished
  for words in (
    "two_stage_ips",
    "popularity",
    "logging policy",
    "generator + ranker",
    "Best epoch",
  ):
    assert words in done.stdout


def test_a_run_leaves_its_files(finished):
  root, _ = finished
  for name in ("config.json", "metrics.json", "table.csv", "curves.png"):
    assert (root / "run" / name).stat().st_size > 0
  stages = {p.name.rsplit("-", 1)[0] for p in (root / "run" / "stages").iterdir()}
  assert stages == {"simulator", "full_information", "behavior_policy", "log", "ranker"}
  assert list((root / "run" / "tensorboard").rglob("events.out.tfevents.*"))
  assert (root / "export" / "1" / "saved_model.pb").exists()


def test_metrics_name_the_best_epoch_splits_stages_and_timings(finished):
  root, _ = finished
  metrics = json.loads((root / "run" / "metrics.json").read_text())
  assert metrics["best_epoch"] in (1, 2)
  for split in ("validation", "test"):
    for stage in ("one_stage", "two_stage"):
      for metric in ("precision", "recall", "ndcg"):
        for cutoff in (1, 5, 10):
          assert 0 <= metrics[split][stage][f"{metric}@{cutoff}"] <= 1
  assert {"simulator", "full_information", "ranker", "generator", "total"} <= set(
    metrics["timings"]
  )


def test_the_config_says_what_was_asked(finished):
  root, _ = finished
  config = json.loads((root / "run" / "config.json").read_text())
  assert config["generator"]["epochs"] == 2
  assert config["ranker"]["epochs"] == 2
  assert config["loss"]["num_slates"] == 5


def test_another_loss_reuses_every_stage_and_keeps_earlier_results(finished):
  root, _ = finished
  before = {p: p.read_bytes() for p in (root / "run" / "generators").glob("*/metrics.json")}
  done = run(*SHORT, "--loss=cross_entropy", *directories(root))
  assert done.returncode == 0, done.stderr
  timings = json.loads((root / "run" / "metrics.json").read_text())["timings"]
  reused = {name for name, t in timings.items() if t["reused"]}
  assert reused == {"simulator", "full_information", "behavior_policy", "log", "ranker"}
  assert len(list((root / "run" / "generators").iterdir())) == 2
  assert all(path.read_bytes() == content for path, content in before.items())
  assert (root / "export" / "2").is_dir()


def test_the_seed_fixes_the_run(finished, tmp_path):
  root, _ = finished
  done = run(*SHORT, *directories(tmp_path))
  assert done.returncode == 0, done.stderr
  name = next((tmp_path / "run" / "generators").iterdir()).name
  first, second = (
    json.loads((r / "run" / "generators" / name / "metrics.json").read_text())
    for r in (root, tmp_path)
  )
  assert first["test"] == second["test"]
  assert first["baselines"] == second["baselines"]


def test_a_killed_run_goes_on_from_its_last_checkpoint(finished):
  root, _ = finished
  arguments = (*SHORT, "--loss=ips", "--epochs=300", *directories(root))
  with subprocess.Popen(
    command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
  ) as process:
    deadline = time.monotonic() + 90
    pattern = "generators/ips-*/checkpoints/ckpt-*.index"
    while not list((root / "run").glob(pattern)) and time.monotonic() < deadline:
      time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
  assert list((root / "run").glob(pattern)), "no checkpoint was written in time"
  history = next((root / "run").glob("generators/ips-*/history.json"))
  epochs_before = len(json.loads(history.read_text()))
  assert 0 < epochs_before < 300
  resumed = subprocess.Popen(
    command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
  )
  with resumed:
    line = next(line for line in resumed.stderr if "going on after epoch" in line)
    resumed.kill()
  assert int(line.split("epoch ")[1].split()[0]) in (epochs_before, epochs_before - 1)


def test_overwrite_starts_anew(finished, tmp_path):
  (tmp_path / "run" / "stages" / "stale").mkdir(parents=True)
  done = run(*SHORT, "--overwrite", "--dataset=nonsense", *directories(tmp_path))
  assert done.returncode == 2
  assert not (tmp_path / "run" / "stages" / "stale").exists()


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--loss=nonsense"], "unknown loss 'nonsense'"),
    (["--dataset=nonsense"], "unknown data set 'nonsense'"),
    (["--epochs=0"], "epochs must be at least 1"),
    (["--nonsense=1"], "Unknown command line flag"),
    (["nonsense"], "unknown argument"),
    (["--slate_size=5"], "slate_size is 5"),
    (["--validation_users=400"], "validation_users is 400"),
    (["--dataset=movielens_1m", "--data_dir=/does/not/exist"], "/does/not/exist"),
    (["--flagfile=/does/not/exist"], "/does/not/exist"),
  ],
)
def test_wrong_input_ends_in_one_message(tmp_path, arguments, words):
  done = run("--flagfile=launch/synthetic.flags", *arguments, *directories(tmp_path))
  assert done.returncode == 2
  message = done.stderr[done.stderr.index("error:") :]
  assert words in message
  assert "Traceback" not in done.stderr
  assert not list((tmp_path / "run").rglob("*.json"))


def test_overwrite_spares_directories_that_hold_no_run(tmp_path):
  precious = tmp_path / "run" / "thesis.txt"
  precious.parent.mkdir()
  precious.write_text("years of work")
  done = run(*SHORT, "--overwrite", *directories(tmp_path))
  assert done.returncode == 2
  assert precious.read_text() == "years of work"


def test_help_groups_all_flags():
  done = run("--help")
  assert done.returncode == 0
  for words in ("The run:", "--workdir", "--seed", "Ranker (second stage):", "--ranker_epochs"):
    assert words in done.stdout


def test_movielens_from_a_directory_trains(test_data, tmp_path):
  """The real files, cut to fewer slates and epochs; the whole run is in the README."""
  done = run(
    "--flagfile=launch/ml1m.flags",
    f"--data_dir={test_data / 'ml-1m'}",
    "--simulator_epochs=1",
    "--simulator_batch_size=2048",
    "--behavior_epochs=5",
    "--ranker_epochs=2",
    "--epochs=1",
    "--num_slates=2",
    *directories(tmp_path),
  )
  assert done.returncode == 0, done.stderr
  metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
  assert metrics["simulator_auc"] > 0.7
  two_stage, random = (
    m["test"]["two_stage"]["precision@10"] for m in (metrics, metrics["baselines"]["random"])
  )
  assert np.isfinite(two_stage)
  assert two_stage > random
