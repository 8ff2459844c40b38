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
from tf_twostage.serving import versions
small.skip_replay()
every = serving.Recommender.signatures
# One of the four is as good as all, and takes less time.
serving.Recommender.signatures = lambda self: {"recommend": every(self)["recommend"]}
publish = versions.publish

def tell(*args, **options):
  print("writing", flush=True)
  version = publish(*args, **options)
  print("written", flush=True)
  return version

versions.publish = tell
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
  loaded, duration, interrupted = set(), 0.0, 0
  with subprocess.Popen(
    [sys.executable, "-c", EXPORTER, tmp_path],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  ) as exporter:
    said = map(str.strip, exporter.stdout)
    for number in range(KILLS):
      exporter.stdin.write("\n")
      exporter.stdin.flush()
      child = int(next(said))
      assert next(said) == "writing"
      if not number:  # how long it takes here
        start = time.monotonic()
        assert next(said) == "written"
        duration = time.monotonic() - start
      time.sleep(rng.uniform(0, 1.2 * duration))
      os.kill(child, signal.SIGKILL)
      while next(said) != "gone":
        pass
      interrupted += bool(list(tmp_path.glob(".*.partial")))
      for version in versions.versions(tmp_path):
        if version not in loaded:
          model = tf.saved_model.load(str(version))
          answer = small.ask(model.signatures["recommend"], **request)
          np.testing.assert_array_equal(answer["item_id"], expected["item_id"])
          assert (version / "assets.extra" / "recorded_answers").stat().st_size
          loaded.add(version)
    exporter.stdin.close()
  assert loaded
  assert interrupted > KILLS / 2
