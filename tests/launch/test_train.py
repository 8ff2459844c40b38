"""The commands, run as a user runs them."""

import json
import os
import pathlib
import re
import shutil
import signal
import time

import pandas as pd
import pytest
import tensorflow as tf

from tests import commands, prepared_environment
from tests.commands import run

# Everything as in the embedded default, only shorter.
SHORT = (
  "--flagfile=launch/synthetic.flags",
  "--epochs=2",
  "--simulator_epochs=1",
  "--behavior_epochs=2",
  "--ranker_epochs=2",
  "--loss=two_stage_ips:num_slates=5",
)


STAGES = {"simulator", "full_information", "behavior_policy", "log", "ranker", "baselines"}
COMMANDS = ("train", "experiment")


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
  assert stages == STAGES
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
  assert config["loss"] == "two_stage_ips"
  assert config["loss_options"] == {"num_slates": 5}


@pytest.fixture(scope="module")
def another_loss(finished):
  """The same run with cross-entropy, and the metrics that were there before."""
  root, _ = finished
  before = {p: p.read_bytes() for p in (root / "run" / "generators").glob("*/metrics.json")}
  done = run(*SHORT, "--loss=cross_entropy", *directories(root))
  assert done.returncode == 0, done.stderr
  return root, before


def test_another_loss_reuses_every_stage_and_keeps_earlier_results(another_loss):
  root, before = another_loss
  timings = json.loads((root / "run" / "metrics.json").read_text())["timings"]
  assert {name for name, t in timings.items() if t["reused"]} == STAGES
  assert len(list((root / "run" / "generators").iterdir())) == 2
  assert all(path.read_bytes() == content for path, content in before.items())
  assert (root / "export" / "2").is_dir()


def test_overwrite_starts_anew(finished, tmp_path):
  (tmp_path / "run" / "stages" / "stale").mkdir(parents=True)
  done = run(*SHORT, "--overwrite", "--dataset=nonsense", *directories(tmp_path))
  assert done.returncode == 2
  assert "error: unknown data set 'nonsense'" in done.stderr
  assert not (tmp_path / "run" / "stages" / "stale").exists()


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--loss=nonsense"], "unknown loss 'nonsense'"),
    (["--epochs=0"], "epochs must be at least 1"),
    (["--nonsense=1"], "Unknown command line flag"),
    (["nonsense"], "unknown argument"),
    (["--slate_size=5"], "slate_size is 5"),
    (["--validation_users=400"], "validation_users is 400"),
    (["--dataset=movielens_1m", "--data_dir=/does/not/exist"], "/does/not/exist"),
    (["--environment=/does/not/exist"], "environment=/does/not/exist: no full_information.npz"),
    (["--flagfile=/does/not/exist"], "no flag file /does/not/exist; presets are delicious, jester"),
    (["--loss=ips", "--alpha=1"], "loss 'ips' has no option alpha, so it would change nothing"),
    (["--loss=ips:policy"], "'policy' in 'ips:policy': write option=value"),
    (["--loss=ips:baseline=low"], "loss 'ips': baseline must be of type float, got 'low'"),
    (["--hard_candidates=8"], "hard_candidates=8 changes nothing without a support"),
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


@pytest.mark.parametrize("name", COMMANDS)
def test_help_groups_all_flags(name):
  done = run("--help", name=name)
  assert done.returncode == 0
  for words in ("The run:", "--workdir", "--seed", "Ranker (second stage):", "--ranker_epochs"):
    assert words in done.stdout
  own = ("This command:", "--losses", "--seeds", "--sweep", "--processes")
  assert [words in done.stdout for words in own] == [name == "experiment"] * len(own)
  assert ("\n  --export_dir" in done.stdout) == (name == "train")


# A ready environment


def test_a_ready_environment_trains_and_exports(tmp_path):
  users, items = 400, 300  # of the embedded data set
  prepared_environment.contents(users, items, rows=2000).write(tmp_path / "ready")
  done = run(
    *SHORT,
    f"--environment={tmp_path / 'ready'}",
    "--loss=cross_entropy",
    "--item_bias",
    "--nopositives_only",
    *directories(tmp_path),
  )
  assert done.returncode == 0, done.stderr
  assert [p.name.split("-")[0] for p in (tmp_path / "run" / "stages").iterdir()] == ["baselines"]
  metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
  assert set(metrics["baselines"]) == {"popularity", "ranker, all items", "random"}
  assert "simulator_auc" not in metrics
  recommend = tf.saved_model.load(str(tmp_path / "export" / "1")).signatures["recommend"]
  names = set(recommend.structured_input_signature[1])
  assert names == {"user_id", "age", "region", "exclude", "k"}  # no context


# Exports


@pytest.fixture(scope="module")
def exported_again(finished, tmp_path_factory):
  """A finished run, exported with another catalogue, and what the command said."""
  root, changes = finished[0], tmp_path_factory.mktemp("changes")
  (changes / "new.csv").write_text(
    "item_id,decade,topics,title\nnew_1,1990s,Art|Music,Fresh\nnew_2,2030s,,Odd\n"
  )
  (changes / "gone.txt").write_text("item_0\nitem_1\n")
  export = changes / "export"
  done = run(
    *SHORT,
    f"--workdir={root / 'run'}",
    f"--export_dir={export}",
    f"--add_items={changes / 'new.csv'}",
    f"--remove_items={changes / 'gone.txt'}",
    "--index_cells=16",
    "--index_probes=8",
    name="export",
  )
  assert done.returncode == 0, done.stderr
  return export, done


def test_a_finished_run_is_found_and_exported_with_the_items_of_today(exported_again):
  export, done = exported_again
  assert f"SavedModel: {export / '1'}" in done.stdout
  for stage in STAGES - {"baselines"}:
    assert f"{stage}: reused" in done.stderr
  retrieve = tf.saved_model.load(str(export / "1")).signatures["retrieve"]
  user = {name: tf.constant(["user_0"]) for name in ("user_id", "age", "region")}
  answer = retrieve(**user, exclude=tf.constant([[""]]), k=tf.constant([1000]))
  items = set(answer["item_id"].numpy().astype(str)[0])
  assert items == {"new_1", "new_2", *(f"item_{i}" for i in range(2, 300))}


def test_an_export_is_checked(exported_again):
  export, _ = exported_again
  done = run(f"--model={export}", "--repeats=3", name="serve_check", replay=True)
  assert done.returncode == 0, done.stderr
  for words in ("sample", "propensity", "p99", "24 calls answered as in the exporting process"):
    assert words in done.stdout
  recall = re.search(r"recall@(\d+) of the approximate index against exact: ([\d.]+)", done.stdout)
  assert recall
  assert 0.5 < float(recall[2]) <= 1


@pytest.mark.parametrize(
  ("name", "arguments", "words"),
  [
    ("export", ["--epochs=3"], "no finished generator of these settings"),
    ("export", ["--workdir=/does/not/exist"], "/does/not/exist has no finished generator"),
    ("export", ["--overwrite"], "Unknown command line flag 'overwrite'"),
    ("export", ["--keep=0"], "keep"),
    ("export", ["--index_probes=8"], "--index_probes changes nothing without --index_cells"),
    ("export", ["--index_cells=301"], "index_cells must lie between 2 and the 300 items"),
    ("serve_check", [], "--model must be given"),
  ],
)
def test_wrong_exports_and_checks_end_in_one_message(finished, tmp_path, name, arguments, words):
  root, _ = finished
  given = [*SHORT, *directories(root)] if name == "export" else []
  done = run(*given, f"--export_dir={tmp_path}" if given else "--repeats=1", *arguments, name=name)
  assert done.returncode == 2
  (message,) = (line for line in done.stderr.splitlines() if line.startswith("error:"))
  assert words in message
  assert "Traceback" not in done.stderr
  assert not list(tmp_path.iterdir())


# Experiments

COMPARED = ("cross_entropy", "two_stage_ips:sampling=systematic")


def compare(root, *arguments, how=run):
  return how(
    *SHORT,
    f"--losses={','.join(COMPARED)}",
    f"--workdir={root}",
    *arguments,
    name="experiment",
  )


def histories(root):
  """Paths of the histories of finished generators."""
  return [
    path
    for path in (root / "generators").glob("*/history.json")
    if len(json.loads(path.read_text())) == 2
  ]


def workers(process):
  """Process ids of an experiment's workers."""
  children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
  return [
    int(child)
    for child in children
    if b"spawn_main" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes()
  ]


def cut_short(root, seed, kill, *arguments):
  """Starts an experiment in two processes and lets `kill` loose on it while it fits that seed.

  Returns its exit code, its output and messages, and the ids of its workers.
  """
  running = compare(root, "--processes=2", *arguments, how=commands.start)
  running.wait_for(lambda: list(root.glob(f"generators/*-seed{seed}-*")), seconds=120)
  ids = workers(running.process)
  kill(running.process, ids)
  return *running.end(), ids


@pytest.fixture(scope="module")
def cut(finished, tmp_path_factory):
  """An experiment of two seeds on the stages of an earlier run, of which a process was killed.

  Where it worked, its exit code, output and messages.
  """
  if not os.path.exists("/proc/self/task"):
    pytest.skip("finds the processes of an experiment in /proc")
  root = tmp_path_factory.mktemp("experiment")
  shutil.copytree(finished[0] / "run" / "stages", root / "stages")
  code, out, said, _ = cut_short(
    root, 1, lambda process, ids: os.kill(ids[0], signal.SIGKILL), "--seeds=2"
  )
  return root, code, out, said


@pytest.fixture(scope="module")
def compared(cut):
  """The same experiment, resumed: where, what it said, and the files that had been finished."""
  root, _, _, _ = cut
  before = histories(root)
  written = {f: f.stat().st_mtime_ns for h in before for f in h.parent.rglob("*") if f.is_file()}
  done = compare(root, "--seeds=2", "--processes=1")
  assert done.returncode == 0, done.stderr
  assert f"4 cells, {len(before)} finished before" in done.stderr
  return root, done, written


def test_an_experiment_whose_process_is_killed_says_so(cut):
  root, code, _, said = cut
  assert code == 1
  assert "Traceback" not in said
  assert said.count("error:") == 1
  assert "a process of the experiment was killed" in said
  assert "the same call resumes the experiment" in said
  for stage in STAGES:
    assert f"{stage}: reused" in said
  assert 1 <= len(histories(root)) <= 4  # the resumed experiment may have finished them


def test_an_experiment_resumes_without_fitting_a_cell_twice(compared):
  root, _, written = compared
  assert written
  assert {file: file.stat().st_mtime_ns for file in written} == written
  assert len(histories(root)) == 4
  table = pd.read_csv(root / "experiment" / "table.csv")
  assert sorted(zip(table["variant"], table["seed"], strict=True)) == [
    (label, seed) for label in COMPARED for seed in range(2)
  ]


def test_an_experiment_prints_tables_and_tests(cut, compared):
  (_, _, *before), (root, done, _) = cut, compared
  for words in (
    "Test users, generator alone (%)",
    "Test users, generator + ranker (%)",
    *COMPARED,
    "logging policy",
    "Paired over seeds, precision@10",
    f"Tables and figures: {root / 'experiment'}",
  ):
    assert words in done.stdout
  said = "".join([*before, done.stdout, done.stderr])
  for label in COMPARED:  # a process may be killed between the end of a cell and its line
    assert re.search(rf"{re.escape(label)}, seed [01]: test precision@10", said)


def test_an_experiment_leaves_its_files_and_exports_nothing(compared):
  root, *_ = compared
  assert {path.name for path in root.iterdir()} == {
    "stages",
    "generators",
    "tensorboard",
    "experiment",
  }
  assert {path.name for path in (root / "experiment").iterdir()} == {
    *("experiment.json", "plan.json", "table.csv", "table.md", "table.tex", "significance.csv"),
    *("curves.png", "losses.png", "stages.png", "seeds.png"),
  }


def test_an_experiment_scores_what_training_scores(compared, another_loss):
  """Whatever the number of processes, and of threads in each."""
  trained = json.loads((another_loss[0] / "run" / "metrics.json").read_text())
  table = pd.read_csv(compared[0] / "experiment" / "table.csv").set_index(["variant", "seed"])
  row = table.loc["cross_entropy", 0]
  assert row["best_epoch"] == trained["best_epoch"]
  for split in ("validation", "test"):
    for stage, scores in trained[split].items():
      for metric, value in scores.items():
        assert row[f"{split}/{stage}/{metric}"] == pytest.approx(100 * value, abs=1e-6)


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="finds its victims in /proc")
def test_a_killed_experiment_leaves_no_process_behind(finished, tmp_path):
  shutil.copytree(finished[0] / "run" / "stages", tmp_path / "stages")
  code, _, _, ids = cut_short(
    tmp_path, 0, lambda process, ids: process.kill(), "--seeds=1", "--epochs=1000", "--processes=1"
  )
  assert code == -signal.SIGKILL
  assert len(ids) == 1
  deadline = time.monotonic() + 10  # a cell takes minutes
  while (survivors := [i for i in ids if is_alive(i)]) and time.monotonic() < deadline:
    time.sleep(0.1)
  for survivor in survivors:
    os.kill(survivor, signal.SIGKILL)
  assert not survivors


def is_alive(process_id):
  """Whether a process runs; one that nobody has waited for yet does not."""
  try:
    status = pathlib.Path(f"/proc/{process_id}/stat").read_text()
  except FileNotFoundError:
    return False
  return status.rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--losses=nonsense"], "unknown loss 'nonsense'"),
    (["--losses=ips:nonsense=1"], "'nonsense' is no option of the loss 'ips'"),
    (["--losses=ips:environment_seed=1"], "'environment_seed' is no option of the loss"),
    (["--losses=ips:alpha=1"], "'alpha' is no option of the loss 'ips' (weight_method, "),
    (["--losses=ips:baseline"], "'baseline' in 'ips:baseline': write option=value"),
    (["--losses=ips:baseline=high"], "baseline must be of type float, got 'high'"),
    (["--losses=ips:hard_candidates=4"], "hard_candidates=4 changes nothing without a support"),
    (["--losses=ips", "--distillation=0.5"], "none of the losses has an option distillation"),
    (["--losses=ips:batch_size=0"], "batch_size must be at least 1"),
    (["--sweep=alpha"], "write setting=value"),
    (["--sweep=nonsense=1,2"], "'nonsense' is no option"),
    (["--sweep=ranker_epochs=1,2"], "'ranker_epochs' is no option"),
    (["--losses=ips", "--sweep=baseline=-1,high"], "baseline must be of type float, got 'high'"),
    (["--seeds=0"], "--seeds=0"),
    (["--processes=-1"], "--processes=-1"),
    (["--export_dir=x"], "Unknown command line flag 'export_dir'"),
  ],
)
def test_a_wrong_experiment_ends_in_one_message(tmp_path, arguments, words):
  done = run(*SHORT, f"--workdir={tmp_path}", *arguments, name="experiment")
  assert done.returncode == 2
  assert words in done.stderr[done.stderr.index("error:") :]
  assert done.stderr.count("error:") == 1
  assert "Traceback" not in done.stderr
  assert not list(tmp_path.iterdir())
