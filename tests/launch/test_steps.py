"""From one command to the next, with the flags that both have."""

import re
import shlex

import pytest

from launch import steps
from tests import commands
from tf_twostage.data.sets import make_slates


@pytest.mark.parametrize(
  ("arguments", "without", "line"),
  [
    (["--name=my run", "--policy_file", "a", "--epochs", "3"], ["policy_file"], "--epochs 3"),
    (["--name=my run", "--policy_file=b", "--all"], ["policy_file", "all"], ""),
    (["--name=my run", "--output", "d", "--log=x"], ["output"], "--log=x"),
  ],
)
def test_the_next_command_has_the_flags_of_this_one(monkeypatch, arguments, without, line):
  monkeypatch.setattr(steps, "_is_switch", lambda flag: flag == "all")
  found = steps.command_line("train", without=without, arguments=arguments)
  assert found == f"python -m launch.train '--name=my run' {line}".strip()


def test_each_command_prints_the_next_from_a_csv_of_impressions_to_a_tested_export(tmp_path):
  world = make_slates(num_users=30, num_items=20, slate_size=4)
  log = world.frame(600).rename(columns={"slot": "rank"})
  log.assign(rank=log["rank"] + 1).to_csv(tmp_path / "log.csv", index=False)
  world.items.to_csv(tmp_path / "items.csv", index=False)
  world.users.to_csv(tmp_path / "users.csv", index=False)

  files = [f"--{name}={tmp_path / name}.csv" for name in ("log", "items", "users")]
  line, ran = f"python -m launch.infer_schema {shlex.join(files)}", []
  short = ["--epochs=1", "--ranker_epochs=1", "--slate_size=4"]
  short += [f"--workdir={tmp_path / 'run'}", f"--export_dir={tmp_path / 'export'}"]
  while "serve_check" not in line:
    name, *arguments = re.sub(r".*launch\.", "", line).split(" ", 1)
    arguments = shlex.split(*arguments) + (short if name == "train" else [])
    done = commands.run(*arguments, name=name)
    assert done.returncode == 0, done.stderr
    if name == "infer_schema":
      (tmp_path / "schema.yaml").write_text(done.stdout)
    if name == "train":
      assert "loss ips trains the generator alone, from single items" in done.stderr
      assert "- values are mean rewards of single items;" in done.stdout
    if name == "evaluate":  # as slates, by estimators that fit what was logged
      assert "Value: the mean sum of the rewards of a slate. " in done.stdout
      names = re.findall(r"^(\w+) +-?\d", done.stdout, re.MULTILINE)
      assert set(names) == {"iips", "sniips", "pbm", "snpbm", "rips", "snrips", "cascade_dr"}
      assert "as served, top 4\n" in done.stdout
    ran.append(name)
    (line,) = re.findall(r"^Next: (.*)", done.stdout + done.stderr, re.MULTILINE)
    line = line.replace("=schema.yaml", f"={tmp_path}/schema.yaml")
  assert ran == ["infer_schema", "validate_log", "train", "evaluate"]
  assert line == f"python -m launch.serve_check --model={tmp_path / 'export' / '1'}"
