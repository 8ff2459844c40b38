"""Who trains: the settings of workers, and that several learn what one learns."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from tests import workers as processes
from tf_twostage.config import Config, DistributionConfig
from tf_twostage.errors import InputError
from tf_twostage.training.distribution import Job, Workers, only_here

WORKERS = {"worker": ["a:1", "b:2"]}
SERVERS = {"chief": ["a:1"], "worker": ["b:2"], "ps": ["c:3"]}


def job(monkeypatch, distribution, cluster=None, kind="worker", index=0, batch_size=128, **options):
  given = {"cluster": cluster, "task": {"type": kind, "index": index}}
  monkeypatch.setenv("TF_CONFIG", json.dumps(given) if cluster else "")
  config = Config(distribution=DistributionConfig(distribution, **options))
  generator = dataclasses.replace(config.generator, batch_size=batch_size)
  return Job.of(dataclasses.replace(config, generator=generator))


@pytest.mark.parametrize(
  ("distribution", "cluster", "kind", "index", "chief", "serves", "rank"),
  [
    ("none", None, "worker", 0, True, False, 0),
    ("mirrored", WORKERS, "worker", 1, True, False, 0),  # which reads no TF_CONFIG
    ("multi_worker", WORKERS, "worker", 0, True, False, 0),
    ("multi_worker", WORKERS, "worker", 1, False, False, 1),
    ("multi_worker", {"worker": ["a:1"], "chief": ["b:2"]}, "worker", 0, False, False, 1),
    ("multi_worker", {"worker": ["a:1"], "chief": ["b:2"]}, "chief", 0, True, False, 0),
    ("parameter_server", SERVERS, "chief", 0, True, False, 0),
    ("parameter_server", SERVERS, "worker", 0, False, True, 1),
    ("parameter_server", SERVERS, "ps", 0, False, True, 0),
  ],
)
def test_a_task_has_its_part(monkeypatch, distribution, cluster, kind, index, chief, serves, rank):
  found = job(monkeypatch, distribution, cluster, kind, index)
  assert (found.is_chief, found.serves, found.rank) == (chief, serves, rank)


@pytest.mark.parametrize(
  ("distribution", "cluster", "options", "words"),
  [
    ("multi_worker", None, {}, "TF_CONFIG is not set; --distribution=multi_worker needs it like"),
    ("multi_worker", WORKERS, {"index": 2}, "makes this process worker 2, which is not in the"),
    ("multi_worker", WORKERS, {"index": -1}, "makes this process worker -1"),
    ("multi_worker", WORKERS, {"kind": "chief"}, "makes this process chief 0"),
    ("multi_worker", {**WORKERS, "ps": ["c:3"]}, {}, "has tasks that there are not: ps"),
    ("multi_worker", {"chief": ["a:1"]}, {"kind": "chief"}, "lacks: worker"),
    ("multi_worker", {**WORKERS, "chief": ["a", "b"]}, {}, "has more than one chief"),
    ("multi_worker", ["a:1"], {}, "is no JSON of a cluster and a task"),
    ("multi_worker", {"worker": "a:1"}, {}, "worker has an address where a list of them belongs"),
    ("multi_worker", WORKERS, {"index": "x"}, "is no JSON of a cluster and a task"),
    ("parameter_server", WORKERS, {}, "lacks: chief, ps"),
    ("parameter_server", {**SERVERS, "worker": []}, {}, "lacks: worker"),
    ("multi_worker", WORKERS, {"batch_size": 127}, "2 replicas cannot share .*--batch_size=128"),
    ("mirrored", None, {"batch_size": 128, "replicas": 3}, "3 replicas .*--batch_size=129"),
    ("none", None, {"replicas": 2}, "replicas is 2, which --distribution=mirrored alone reads"),
    ("mirrored", None, {"replicas": -1}, "replicas must be at least 0"),
    ("nonsense", None, {}, "distribution must be one of none, mirrored"),
  ],
)
def test_what_does_not_fit_is_refused(monkeypatch, distribution, cluster, options, words):
  with pytest.raises(InputError, match=words):
    job(monkeypatch, distribution, cluster, **options)


def test_a_broken_TF_CONFIG_is_shown(monkeypatch):
  monkeypatch.setenv("TF_CONFIG", "{")
  with pytest.raises(InputError, match=r"is no JSON .*: \{;"):
    Job.of(Config(distribution=DistributionConfig("multi_worker")))


def test_commands_of_many_generators_have_no_workers():
  only_here(Config(), "launch.loop")
  with pytest.raises(InputError, match=r"--distribution=mirrored: launch\.loop trains"):
    only_here(Config(distribution=DistributionConfig("mirrored")), "launch.loop")


# Real processes


# As one process learns it
@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  root = tmp_path_factory.mktemp("alone")
  for name in processes.LOSSES:
    processes.train(root / name, name, Workers())
  return root


def command(root, distribution, replicas, names):
  arguments = [str(root), distribution, str(replicas), *names]
  return [sys.executable, "-m", "tests.workers", *arguments]


def assert_the_same(root, alone, names):
  for name in names:
    np.testing.assert_allclose(
      np.load(root / name / "weights.npy"), np.load(alone / name / "weights.npy"), atol=1e-5
    )
    history, expected = (json.loads((r / name / "history.json").read_text()) for r in (root, alone))
    assert len(history) == processes.EPOCHS
    for epoch, wanted in zip(history, expected, strict=True):
      assert epoch["training"] == pytest.approx(wanted["training"], rel=1e-5)


def test_two_workers_learn_what_one_learns(alone, tmp_path):
  names = ["poem", "support", "streamed"]
  started = processes.start(command(tmp_path, "multi_worker", 0, names), {"worker": 2})
  for code, _, said in processes.ended(started).values():
    assert code == 0, said
  assert_the_same(tmp_path, alone, names)


def test_workers_see_in_what_they_differ(tmp_path):
  started = processes.start(command(tmp_path, "multi_worker", 0, ["differing"]), {"worker": 2})
  ends = processes.ended(started).values()
  assert [(code, out) for code, out, _ in ends] == [(0, "['other']\n")] * 2, ends


def test_two_devices_learn_what_one_learns(alone, tmp_path):
  names = ["poem", "streamed"]
  done = subprocess.run(
    command(tmp_path, "mirrored", 2, names), cwd=processes.ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert_the_same(tmp_path, alone, names)


def test_workers_of_parameter_servers_train_and_leave(alone, tmp_path):
  tasks = {"chief": 1, "worker": 1, "ps": 1}
  started = processes.start(command(tmp_path, "parameter_server", 0, ["exact"]), tasks)
  ends = processes.ended(started)
  for code, _, said in ends.values():
    assert code == 0, said
  assert [ends[task][1] for task in ("worker 0", "ps 0")] == [
    "worker 0: the chief is done\n",
    "ps 0: the chief is done\n",
  ]
  assert_the_same(tmp_path, alone, ["exact"])  # one worker is in step with itself
