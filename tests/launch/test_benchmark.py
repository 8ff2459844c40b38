"""The benchmark: its list of environments, what runs, what is summed up."""

import subprocess
import sys

import pytest
from absl import flags

from launch import benchmark
from launch import config as launch_config
from launch import experiment as experiment_command
from tests import commands
from tests.data.sets import jester_files
from tf_twostage import experiment
from tf_twostage.errors import InputError, RunError

SHORT = "--losses=cross_entropy,ips --epochs=1 --logs=2 --ranker_epochs=1 --behavior_epochs=1"


def listed(tmp_path, text):
  path = tmp_path / "list.yaml"
  path.write_text(text)
  return path


def fitted_here(config, cells, workdir, processes):
  """Fits cells in this process, not in several that first import TensorFlow."""
  for key, own in cells.items():
    yield key, *experiment._fit_cell(key, own, experiment._with_log(config, key.log), workdir)


def start(arguments):
  """Runs an experiment in this process."""
  return commands.run(*arguments, name="experiment").returncode


def test_every_environment_of_the_list_has_valid_flags():
  if "losses" not in flags.FLAGS:
    experiment_command.define_flags()
  found = benchmark.read_list(benchmark._LIST, "DIR")
  assert len(found) >= 6
  for arguments in found.values():
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["experiment", *launch_config._expanded(arguments)])
    config = launch_config.config_from_flags()
    assert launch_config.plan_variants(config, flags.FLAGS.losses, "")[0][0] == "cross_entropy"


def test_flags_of_an_environment_win_over_those_of_all(tmp_path):
  path = listed(tmp_path, "all: --logs=10\nenvironments:\n  a: --logs=1 --data_dir={data}/x\n")
  assert benchmark.read_list(path, "DIR") == {"a": ["--logs=10", "--logs=1", "--data_dir=DIR/x"]}


@pytest.mark.parametrize(
  ("text", "chosen", "message"),
  [
    ("all: --logs=1\n", [], "not a list of environments"),
    ("[", [], "not a list of environments"),
    ("all: ''\nenvironments: {a: --seed=1}", ["b"], "no environment b; there are a"),
    ("all: ''\nenvironments: {a: '--x={data}', b: ''}", [], "--data_dir must be given: a read"),
  ],
)
def test_wrong_lists_are_refused(tmp_path, text, chosen, message):
  with pytest.raises(InputError, match=message):
    benchmark.read_list(listed(tmp_path, text), None, chosen)


def test_environments_without_files_need_no_directory(tmp_path):
  path = listed(tmp_path, "all: ''\nenvironments: {a: '--x={data}', b: ''}")
  assert benchmark.read_list(path, None, ["b"])["b"] == []


def test_environments_are_compared_one_by_one_and_others_go_on_after_a_failure(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(experiment, "_fitted", fitted_here)
  jester_files.write(tmp_path)
  known = {
    "jokes": [
      "--flagfile=jester",
      *SHORT.split(),
      f"--data_dir={tmp_path}",
      "--validation_users=10",
      "--behavior_pairs=200",
    ],
    "broken": ["--flagfile=jester", f"--data_dir={tmp_path}/none"],
  }
  workdir = tmp_path / "run"
  with pytest.raises(RunError, match="broken failed"):
    benchmark.run(known, ["broken", "jokes"], [], workdir, start)
  table = (workdir / "table.md").read_text()
  assert "| jokes | 2 logs |" in table
  assert "broken" not in table
  assert (workdir / "benchmark.png").is_file()

  runs = list((workdir / "jokes" / "generators").iterdir())
  ages = [path.stat().st_mtime for path in runs]
  assert table in benchmark.run(known, ["jokes"], ["--processes=1"], workdir, start)
  assert [path.stat().st_mtime for path in runs] == ages  # nothing is fitted twice


def test_the_command_passes_flags_on_and_needs_known_environments(tmp_path, monkeypatch):
  done = commands.run("--environments=moon", f"--workdir={tmp_path}/run", name="benchmark")
  assert done.returncode == 2
  assert "no environment moon; there are ml1m_published" in done.stderr

  (tmp_path / "list.yaml").write_text("all: --seed=1\nenvironments: {a: --loss=ips}")
  own = f"--benchmark={tmp_path}/list.yaml", f"--workdir={tmp_path}/run"
  started = []
  monkeypatch.setattr(subprocess, "Popen", lambda command: started.append(command) or Failed())
  done = commands.run("--logs", "2", *own, "--epochs=3", name="benchmark")
  assert (done.returncode, started[0][-6:]) == (
    1,
    ["--seed=1", "--loss=ips", "--logs", "2", "--epochs=3", f"--workdir={tmp_path}/run/a"],
  )


class Failed:
  def wait(self):
    return 1


def test_the_command_does_not_load_tensorflow():
  code = "import sys, launch.benchmark; assert 'tensorflow' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True)
