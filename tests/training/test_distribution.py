"""Settings of workers, and that several workers learn what one learns."""

import dataclasses
import json

import numpy as np
import pytest

from tests import commands
from tests import workers as processes
from tf_twostage.config import Config, DistributionConfig
from tf_twostage.errors import InputError
from tf_twostage.training.distribution import Job, Workers, only_here

WORKERS = {"worker": ["a:1", "b:2"]}


def job(monkeypatch, distribution, cluster=None, kind="worker", index=0, batch_size=128, **options):
  given = {"cluster": cluster, "task": {"type": kind, "index": index}}
  monkeypatch.setenv("TF_CONFIG", json.dumps(given) if cluster else "")
  config = Config(distribution=DistributionConfig(distribution, **options))
  generator = dataclasses.replace(config.generator, batch_size=batch_size)
  return Job.of(dataclasses.replace(config, generator=generator))


@pytest.mark.parametrize(
  ("distribution", "cluster", "kind", "index", "chief", "rank"),
  [
    ("none", None, "worker", 0, True, 0),
    ("mirrored", WORKERS, "worker", 1, True, 0),  # does not read TF_CONFIG
    ("multi_worker", WORKERS, "worker", 0, True, 0),
    ("multi_worker", WORKERS, "worker", 1, False, 1),
    ("multi_worker", {"worker": ["a:1"], "chief": ["b:2"]}, "worker", 0, False, 1),
    ("multi_worker", {"worker": ["a:1"], "chief": ["b:2"]}, "chief", 0, True, 0),
  ],
)
def test_one_process_is_the_chief(monkeypatch, distribution, cluster, kind, index, chief, rank):
  found = job(monkeypatch, distribution, cluster, kind, index)
  assert (found.is_chief, found.rank) == (chief, rank)


@pytest.mark.parametrize(
  ("distribution", "cluster", "options", "words"),
  [
    ("multi_worker", None, {}, "TF_CONFIG is not set; set it in each process"),
    ("multi_worker", WORKERS, {"index": 2}, "makes this process worker 2, which is not in the"),
    ("multi_worker", WORKERS, {"index": -1}, "makes this process worker -1"),
    ("multi_worker", WORKERS, {"kind": "chief"}, "makes this process chief 0"),
    ("multi_worker", {**WORKERS, "ps": ["c:3"]}, {}, "has unknown tasks: ps"),
    ("multi_worker", {"chief": ["a:1"]}, {"kind": "chief"}, "has no worker"),
    ("multi_worker", {"chief": ["a:1"], "worker": []}, {"kind": "chief"}, "has no worker"),
    ("multi_worker", {**WORKERS, "chief": ["a", "b"]}, {}, "has more than one chief"),
    ("multi_worker", ["a:1"], {}, "is not JSON with a cluster and a task"),
    ("multi_worker", {"worker": "a:1"}, {}, "worker is one address, not a list of addresses"),
    ("multi_worker", WORKERS, {"index": "x"}, "is not JSON with a cluster and a task"),
    ("multi_worker", WORKERS, {"batch_size": 127}, "2 replicas cannot share .*such as 128"),
    ("mirrored", None, {"batch_size": 128, "replicas": 3}, "3 replicas .*such as 129"),
    ("none", None, {"replicas": 2}, "replicas=2 changes nothing unless distribution=mirrored"),
    ("mirrored", None, {"replicas": -1}, "replicas must be at least 0"),
    ("nonsense", None, {}, "distribution must be one of none, mirrored, multi_worker"),
  ],
)
def test_settings_that_do_not_fit_are_refused(monkeypatch, distribution, cluster, options, words):
  with pytest.raises(InputError, match=words):
    job(monkeypatch, distribution, cluster, **options)


def test_a_broken_TF_CONFIG_is_quoted(monkeypatch):
  monkeypatch.setenv("TF_CONFIG", "{")
  with pytest.raises(InputError, match=r"is not JSON .*: \{;"):
    Job.of(Config(distribution=DistributionConfig("multi_worker")))


def test_commands_that_train_many_generators_refuse_workers():
  only_here(Config(), "launch.loop")
  with pytest.raises(InputError, match=r"distribution is mirrored, but launch\.loop trains"):
    only_here(Config(distribution=DistributionConfig("mirrored")), "launch.loop")


# Real processes


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """The results of one process."""
  root = tmp_path_factory.mktemp("alone")
  for name in processes.LOSSES:
    processes.train(root / name, name, Workers())
  return root


def assert_the_same(root, alone, names):
  for name in names:
    np.testing.assert_allclose(
      np.load(root / name / "weights.npy"), np.load(alone / name / "weights.npy"), atol=1e-5
    )
    history, expected = (json.loads((r / name / "history.json").read_text()) for r in (root, alone))
    assert len(history) == processes.EPOCHS
    for epoch, wanted in zip(history, expected, strict=True):
      assert epoch["training"] == pytest.approx(wanted["training"], rel=1e-5)


def test_two_workers_agree_on_what_differs_and_learn_what_one_learns(alone, tmp_path):
  names = list(processes.LOSSES)
  started = processes.start({"worker": 2}, processes.train_all, tmp_path, "multi_worker", 0, names)
  for worker in started.values():
    code, out, said = worker.end()
    assert (code, out) == (0, "['rank']\n"), said
  assert_the_same(tmp_path, alone, names)


def test_two_devices_learn_what_one_learns(alone, tmp_path):
  names = ["poem"]
  code, _, said = commands.fork(processes.train_all, tmp_path, "mirrored", 2, names).end()
  assert code == 0, said
  assert_the_same(tmp_path, alone, names)
