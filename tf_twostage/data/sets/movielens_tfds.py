"""MovieLens-1M through TensorFlow Datasets, without its minutes of retries when offline."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import threading

from tf_twostage.data.sets.movielens_files import ARCHIVE, DOWNLOAD, Tables, read_tables
from tf_twostage.errors import InputError

_VERSION = "0.1.1"
_CONFIGS = ("1m-ratings", "1m-movies")
_HOST = "files.grouplens.org"
_PROBE_SECONDS = 0.75


def read_or_prepare() -> Tables:
  """Reads the prepared data set, or a hand-downloaded zip, or else downloads and prepares it.

  All of it happens below tensorflow-datasets' data directory, which the environment variable
  TFDS_DATA_DIR names (by default ~/tensorflow_datasets).

  Raises:
    InputError: there are no data and the download host is out of reach, which takes less than a
      second to find out; or the data are damaged.
  """
  root = pathlib.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
  manual = root / "downloads" / "manual"
  prepared = [root / "movielens" / config / _VERSION for config in _CONFIGS]
  if not all((directory / "dataset_info.json").exists() for directory in prepared):
    if (manual / ARCHIVE).exists():
      return read_tables(manual / ARCHIVE)
    remedy = f"{DOWNLOAD}, or put it in {manual}"
    if not _reachable():
      raise InputError(f"MovieLens-1M is not in {root} and {_HOST} is out of reach; {remedy}")
    _prepare(root, remedy)
  # TensorFlow loads slowly: not before there is something to read.
  from tf_twostage.data.sets.movielens_records import read_records

  return read_records(*prepared)


def _reachable() -> bool:
  """Returns whether the download host accepts a connection, within `_PROBE_SECONDS`."""
  connected = threading.Event()

  def connect():
    with contextlib.suppress(OSError):
      socket.create_connection((_HOST, 443), timeout=_PROBE_SECONDS).close()
      connected.set()

  # A name lookup knows no time limit, so it is left behind in its thread when it hangs.
  probe = threading.Thread(target=connect, daemon=True)
  probe.start()
  probe.join(_PROBE_SECONDS)
  return connected.is_set()


def _prepare(root: pathlib.Path, remedy: str) -> None:
  import tensorflow_datasets as tfds

  try:
    for config in _CONFIGS:
      tfds.builder(f"movielens/{config}:{_VERSION}", data_dir=root).download_and_prepare()
  except Exception as error:  # of any library below tensorflow-datasets; the remedy is the same
    raise InputError(f"MovieLens-1M could not be prepared in {root} ({error}); {remedy}") from error
