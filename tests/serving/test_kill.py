"""Exports that are killed."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import tensorflow as tf

from tests.serving import small
from tf_twostage.serving import versions

KILLS = 20
# Imports once, then makes a process for each line it reads, which exports until it is killed.
EXPORTER = """
import os, pathlib, sys
import tensorflow
from tests.serving import small
from tf_twostage import serving
from tf_twostage.serving import replay
replay.differences = lambda calls, answers: []
replay.replay = lambda *_: type("Tried", (), {"answers": ()})
for line in sys.stdin:
  child = os.fork()
  if not child:
    recommender = small.recommender()
    print(os.getpid(), flush=True)
    while True:
      serving.export(recommender, pathlib.Path(sys.argv[1]), small.requests(1), keep=2)
  os.waitpid(child, 0)
  print("gone", flush=True)
"""


def test_killed_at_twenty_moments_no_version_is_half_or_wrong(tmp_path):
  rng = random.Random(0)
  request = {**small.requests(), "k": np.array([5], np.int32)}
  expected = small.ask(small.recommender().recommend, **request)
  loaded, moments = set(), []
  with subprocess.Popen(
    [sys.executable, "-c", EXPORTER, tmp_path],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  ) as exporter:
    duration = 1.0
    for number in range(KILLS):
      exporter.stdin.write("\n")
      exporter.stdin.flush()
      child = int(exporter.stdout.readline())
      start = time.monotonic()
      if not number:  # how long an export takes here
        while not versions.versions(tmp_path):
          time.sleep(0.01)
        duration = time.monotonic() - start
      time.sleep(rng.uniform(0, 1.1 * duration))
      moments.append(sorted(path.name for path in tmp_path.glob(".aside-*")))
      os.kill(child, signal.SIGKILL)
      assert exporter.stdout.readline() == "gone\n"
      for version in versions.versions(tmp_path):
        if version not in loaded:
          model = tf.saved_model.load(str(version))
          answer = small.ask(model.signatures["recommend"], **request)
          np.testing.assert_array_equal(answer["item_id"], expected["item_id"])
          assert (version / "assets.extra" / "recorded_answers").stat().st_size
          loaded.add(version)
    exporter.stdin.close()
  assert len(loaded) >= 3
  assert sum(map(bool, moments)) > KILLS / 3  # that many were killed at work
