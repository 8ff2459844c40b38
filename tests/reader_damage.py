"""Damages input files at random, and reads them: rows, or one message, in seconds.

python -m tests.reader_damage --mutations=200     # of each kind of file; prints what went wrong
"""

import argparse
import contextlib
import io
import pathlib
import sys
import tempfile
import time
import unittest.mock

import numpy as np
import pandas as pd
import tensorflow as tf
import tqdm
import yaml

from tests.data.files import small_log
from tests.data.sets import mini_movielens, xmc_files
from tf_twostage.data import draft, policy_table, sets
from tf_twostage.data.files.shards import convert
from tf_twostage.data.log_schema import LogSchema
from tf_twostage.data.sets.xmc import read_xmc
from tf_twostage.errors import InputError
from tf_twostage.serving import catalogue

SLOW = 10.0  # seconds
_TOKENS = [b"\0", b'"', b"\n", b"\r", b",", b"\t", b"\xff", b"\xef\xbb\xbf", b"-", b"e308", b"nan"]
_TOKENS += [b"[", b"{", b"]", b"}", b": ", b"&a ", b"*a", b"!!map ", b"<<: ", b"1" * 400, b"- "]


def make(root):
  """Writes every kind of file, and returns kind -> (file, what reads it)."""
  log, items, schema = small_log.write(root, small_log.frame(60).assign(at=range(60)))
  parquet, *_ = small_log.write(root, small_log.frame(60).assign(at=range(60)), name="log.parquet")
  zipped, *_ = small_log.write(root, small_log.frame(60).assign(at=range(60)), name="log.csv.gz")
  tabs = root / "log.tsv"
  tabs.write_text(log.read_text().replace(",", "\t"))
  convert(log, root / "shards", schema, num_shards=1)
  convert(log, root / "zipped", schema, num_shards=1, compress=True)
  records = root / "log.tfrecord"
  records.write_bytes((root / "shards" / "log-00000-of-00001.tfrecord").read_bytes())
  zipped_records = root / "log.tfrecord.gz"
  zipped_records.write_bytes((root / "zipped" / "log-00000-of-00001.tfrecord.gz").read_bytes())
  LogSchema.from_file(schema).to_file(root / "schema.json")
  shards = root / "shards" / "schema.yaml"
  users = root / "users.csv"
  pd.DataFrame({"visitor": [f"v{i}" for i in range(4)], "gender": list("FMFM")}).to_csv(users)
  policy = root / "policy.csv"
  pd.DataFrame({"item_id": ["p0", "p9"], "probability": [0.25, 0.75]}).to_csv(policy)
  ids = np.array(["p0", "p1", "p2", "p9"])
  removed = root / "removed.txt"
  removed.write_text("p0\np1\n")
  documents = sets.make_xmc(20, 10, 8, 6, labels_per_document=2, features_per_document=4)
  xmc, zipped_xmc = root / "train.txt", root / "train.txt.gz"
  for file in (xmc, zipped_xmc):
    xmc_files.write(documents, file)
  movies = mini_movielens.write_directory(root / "movielens")

  def logs(schema):
    return lambda file: len(small_log.read(file, items, schema, on_bad_rows="skip").rows)

  def movielens(name):
    def read(file):
      directory = mini_movielens.write_directory(root / "mutated")
      (directory / name).write_bytes(file.read_bytes())
      return len(sets.load("movielens_1m", str(directory)).rating)

    return movies / name, read

  return {
    "CSV": (log, logs(schema)),
    "gzipped CSV": (zipped, logs(schema)),
    "tabs": (tabs, logs(schema)),
    "Parquet": (parquet, logs(schema)),
    "TFRecord": (records, logs(shards)),
    "TFRecord payloads": (records, logs(shards)),
    "gzipped TFRecord": (zipped_records, logs(shards)),
    "YAML": (schema, lambda file: small_log.read(log, items, file)),
    "JSON": (root / "schema.json", lambda file: small_log.read(log, items, file)),
    "items": (items, lambda file: small_log.read(log, file, schema)),
    "users": (users, lambda file: small_log.read(log, items, schema, users=file)),
    "policy": (policy, lambda file: policy_table.read(file, ids)),
    "removals": (removed, catalogue.read_removed),
    "XMC": (xmc, lambda file: read_xmc(file).num_documents),
    "gzipped XMC": (zipped_xmc, lambda file: read_xmc(file).num_documents),
    **{f"MovieLens {name}": movielens(name) for name in mini_movielens.FILES},
    "draft": (log, lambda file: LogSchema.from_dict(yaml.safe_load(draft.draft(file, items)))),
  }


def mutate(content, rng):
  """Some bytes flipped, cut off, removed, repeated or put in."""
  changed, place = bytearray(content), int(rng.integers(len(content)))
  how = rng.integers(5)
  if how == 0:
    changed[place] ^= 1 << rng.integers(8)
  elif how == 1:
    del changed[place:]
  elif how == 2:
    del changed[place : place + int(rng.integers(1, 40))]
  elif how == 3:
    changed[place:place] = changed[place : place + 40] * int(rng.integers(1, 50))
  else:
    changed[place:place] = _TOKENS[rng.integers(len(_TOKENS))] * int(rng.choice([1, 2, 2000]))
  return bytes(changed)


def _mutate_record(file, rng):
  """The records of a file, one of them mutated, each with its right checksum."""
  records = [record.numpy() for record in tf.data.TFRecordDataset(str(file))]
  place = rng.integers(len(records))
  records[place] = mutate(records[place], rng)
  mutated = file.with_name("mutated.tfrecord")
  with tf.io.TFRecordWriter(str(mutated)) as writer:
    for record in records:
      writer.write(record)
  return mutated


def trials(kind, file, read, mutations, seed=0):
  """Yields what was wrong with each attempt to read a mutated file, or ""."""
  rng = np.random.default_rng(seed)
  for number in range(mutations):
    if kind == "TFRecord payloads":
      mutated = _mutate_record(file, rng)
    else:
      content = file.read_bytes()
      mutated = file.with_name(f"mutated{''.join(file.suffixes)}")
      mutated.write_bytes(mutate(content, rng))
    yield f"{number}: {problem}" if (problem := attempt(read, mutated)) else ""


def cuts(file, read, step=1):
  """Yields what was wrong for every `step`-th place at which a gzipped file is cut."""
  content = file.read_bytes()
  mutated = file.with_name(f"mutated{''.join(file.suffixes)}")
  for length in range(0, len(content), step):
    mutated.write_bytes(content[:length])
    try:
      rows = read(mutated)
    except InputError:
      yield ""
    except Exception as error:
      yield f"cut at {length}: {type(error).__name__}: {error}"
    else:
      yield f"cut at {length}: read {rows} rows"


def attempt(read, file):
  """What is wrong with how a file is read or refused, or ""."""
  start, said = time.process_time(), io.StringIO()
  try:
    # Python prints what is raised where nobody can catch it, such as in a callback of C++.
    with (
      contextlib.redirect_stderr(said),
      unittest.mock.patch("sys.unraisablehook", sys.__unraisablehook__),
    ):
      read(file)
  except InputError as error:
    if len(str(error)) > 5000:
      return f"a message of {len(str(error))} characters"
  except Exception as error:
    return f"{type(error).__name__}: {error}"
  if said.getvalue():
    return f"printed {said.getvalue()}"
  seconds = time.process_time() - start
  return f"took {seconds:.0f} s" if seconds > SLOW else ""


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  text = "of each kind of file; fewer than 200 also cut gzipped files in fewer places"
  parser.add_argument("--mutations", type=int, default=200, help=text)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as root:
    made = make(pathlib.Path(root))
    runs = {
      kind: trials(kind, *of, arguments.mutations, arguments.seed) for kind, of in made.items()
    }
    step = max(1, 200 // arguments.mutations)
    runs |= {f"{kind}, cut": cuts(*made[kind], step) for kind in made if kind.startswith("gzipped")}
    for kind, run in runs.items():
      found = list(tqdm.tqdm(run, desc=kind, mininterval=10))
      wrong = [problem for problem in found if problem]
      print(f"{kind}: {len(found)} damaged files, {len(wrong)} wrong", flush=True)
      for problem in wrong:
        print(f"  {problem[:300]}", flush=True)


if __name__ == "__main__":
  main()
