"""Flags, presets and variants: what a command line means."""

import io
import pathlib
import re
import sys

import pytest
from absl import flags

from launch import config as launch_config
from launch import experiment
from tests import commands
from tf_twostage import TwoStageRecommender, losses
from tf_twostage.config import Config
from tf_twostage.errors import InputError

PRESETS = sorted(path.stem for path in pathlib.Path(launch_config.__file__).parent.glob("*.flags"))


def objective(config):
  return TwoStageRecommender.from_config(config).objective()


def parse(*arguments):
  """The config of a command line."""
  if "losses" not in flags.FLAGS:
    experiment.define_flags()
  flags.FLAGS.unparse_flags()
  flags.FLAGS(["train", *launch_config._expanded(arguments)])
  return launch_config.config_from_flags()


def plan(*arguments):
  """Label, config and family of the variants of a command line."""
  config = parse(*arguments)
  return launch_config.plan_variants(config, flags.FLAGS.losses, flags.FLAGS.sweep)


def comparable(loss):
  return {name: value for name, value in loss.get_config().items() if name != "name"}


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_a_loss_is_the_same_from_flags_and_from_python(name):
  taken = losses.find(name).parameters()
  run = {k: v for k, v in {"slate_size": 10, "seed": 0}.items() if k in taken}
  expected = comparable(losses.get(name, **run))
  assert comparable(objective(parse(f"--loss={name}"))) == expected
  assert comparable(objective(Config(loss=name))) == expected


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_every_option_of_a_loss_is_a_flag_and_an_option_of_its_text(name):
  other = {bool: lambda old: not old, int: lambda old: old + 1, float: lambda old: old / 2 + 0.2}
  words = {"policy": "two_stage", "weight_method": "shrink", "reward_model": "linear"}
  words |= {"sampling": "exact", "rank_weights": "top_1"}
  for option, about in losses.options(name).items():
    value = words[option] if about.kind is str else other[about.kind](about.default)
    text = str(value).lower()
    by_flag, by_text = (
      parse(f"--loss={name}", f"--{option}={text}"),
      f"--loss={name}:{option}={text}",
    )
    assert by_flag.loss_options == {option: value}
    assert parse(by_text) == by_flag
    assert losses.resolve(name, by_flag.loss_options)[option] == value != about.default
    assert about.help


def test_flags_without_a_value_are_the_defaults_of_config():
  assert parse() == Config()
  assert parse("--flagfile=user_log") == Config()
  assert (Config().loss, Config().loss_options) == ("ips", {"policy": "distinct"})


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_found_by_name_anywhere_and_fits(preset, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = parse(f"--flagfile={preset}")
  assert config == parse(f"--flagfile=launch/{preset}.flags") == parse("--flagfile", preset)
  objective(config)
  objective(parse(f"--flagfile={preset}", "--loss=cross_entropy"))


def test_a_file_comes_before_the_preset_of_its_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "ml1m").write_text(
    "# mine\n\n// mine\n  --epochs=3\n--flagfile=ml1m.flags\n--seed=4\n"
  )
  config = parse("--epochs=2", "--flagfile=ml1m")
  assert (config.name, config.seed, config.slate_size, config.generator.epochs) == (
    "ml1m",
    4,
    30,
    20,
  )
  (tmp_path / "round").write_text("--flagfile=round\n")
  with pytest.raises(InputError, match="flag file round includes itself"):
    parse("--flagfile=round")


def test_published_settings_of_movielens():
  config = parse("--flagfile=ml1m")
  assert losses.resolve(config.loss, config.loss_options) == {
    **{"weight_method": "clip", "weight_cap": 10.0, "weight_floor": 0.01, "self_normalize": True},
    **{"weight_shrinkage": 100.0, "alpha": 0.01, "num_slates": 100, "sampling": "exact"},
    **{"sampling_temperature": pytest.approx(2.718281828), "normalize_shares": False},
    "baseline": 0.0,
  }
  assert (config.slate_size, config.encoder.embedding_stddev) == (30, 1.0)
  assert (config.generator.item_bias, config.generator.epochs, config.ranker.epochs) == (
    False,
    20,
    20,
  )


def test_losses_and_sweeps_plan_all_combinations():
  own = "ips:policy=two_stage:l2=0"
  variants = plan(
    f"--losses=top_k, {own}, bold=ips:l2=1", "--sweep=baseline=-1,-2,id_width=3,baseline=-4"
  )
  assert [
    (label, family, c.loss, c.loss_options, c.generator.l2, c.encoder.id_width)
    for label, c, family in variants
  ] == [
    (f"{family}:baseline={b}:id_width=3", family, loss, {**options, "baseline": float(b)}, l2, 3)
    for family, loss, options, l2 in [
      ("top_k", "top_k", {}, 1e-4),
      (own, "ips", {"policy": "two_stage"}, 0.0),
      ("bold", "ips", {}, 1.0),
    ]
    for b in (-1, -2, -4)
  ]


def test_variants_replace_the_loss_and_share_its_flags():
  variants = plan(
    "--flagfile=synthetic",
    "--alpha=7",
    "--baseline=0.5",
    "--losses=ips,two_stage_ips,two_stage_ips:alpha=1:support_size=512:hard_candidates=4",
  )
  assert [config.loss_options for _, config, _ in variants] == [
    {"baseline": 0.5},
    {"alpha": 7.0, "baseline": 0.5},
    {"alpha": 1, "baseline": 0.5},
  ]
  assert variants[-1][1].support.hard_candidates == 4


def test_a_loss_from_outside_trains_by_its_import_path(tmp_path):
  done = commands.run(
    "--loss=tests.losses.outside.Scaled:scale=3",
    *("--epochs=1", "--simulator_epochs=1", "--behavior_epochs=1", "--ranker_epochs=1"),
    f"--workdir={tmp_path / 'run'}",
    f"--export_dir={tmp_path / 'export'}",
    export=False,
  )
  assert done.returncode == 0, done.stderr
  assert "tests.losses.outside.Scaled" in done.stdout
  assert "no --flagfile: using --flagfile=synthetic" in done.stderr


def test_help_lists_a_setting_once_and_survives_a_closed_pipe():
  done = commands.run("--help")
  assert "--flagfile=synthetic without --dataset" in done.stdout
  names = re.findall(r"^  --(\w+)", done.stdout, re.MULTILINE)
  assert len(names) == len(set(names)) > 70
  assert {option for name in losses.LOSSES for option in losses.options(name)} < set(names)
  assert "the loss's own" in done.stdout


def test_a_terminal_without_a_character_shows_its_code(monkeypatch):
  printed = io.BytesIO()
  monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
  monkeypatch.setattr(sys, "argv", ["command"])
  with commands._restored(), pytest.raises(SystemExit) as done:
    launch_config.run_command(lambda: print("Ж ± 1"))
  assert (done.value.code, printed.getvalue()) == (0, b"\\u0416 \\xb1 1\n")
