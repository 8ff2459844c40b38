"""Extreme multi-label data: documents are users, their labels the items they like.

Labels are complete, so nothing has to be simulated: an item is relevant to a user exactly when it
is among the document's labels.
"""

from __future__ import annotations

import pathlib
import re

import numpy as np

from tf_twostage.data.sets.xmc_data import XmcData
from tf_twostage.data.sets.xmc_synthetic import make_xmc
from tf_twostage.data.sets.xmc_text import read_xmc, write_xmc
from tf_twostage.errors import InputError

__all__ = ["XmcData", "load_wiki10", "load_xmc", "make_xmc", "read_xmc", "write_xmc"]

# What the archives of a data set call themselves besides the name used here.
_TITLES = {"wiki10": "Wiki10-31K", "delicious": "Delicious"}
_ROLES = ("train", "test")
_SUFFIXES = (".txt", ".txt.gz")
_FOLDER_ENDS = ("", "bow")  # an archive may unpack into Wiki10.bow


def load_wiki10(data_dir: str | None = None) -> XmcData:
  """Loads Wiki10-31K: Wikipedia articles as bags of words, and their social tags.

  Args:
    data_dir: see `load_xmc`.

  Returns:
    The data; as published, 14,146 training and 6,616 test documents with 101,938 features and
    30,938 labels.

  Raises:
    InputError: the data are missing or wrong; the message says where, and what to do.
  """
  return load_xmc("wiki10", data_dir)


def load_xmc(name: str, data_dir: str | None = None) -> XmcData:
  """Loads the training and the test file of a data set as one set of documents.

  The files are train.txt and test.txt, or carry the data set's name as in wiki10_train.txt (those
  come first when there are both), plain or as .txt.gz. They lie in `data_dir` or in a directory
  of it that is named after the data set, as in Wiki10/, Wiki10-31K/ or Wiki10.bow/. Case, dashes
  and underscores do not matter.

  Args:
    name: the data set, such as "wiki10" or "delicious".
    data_dir: where its files are.

  Returns:
    The documents, those for training first.

  Raises:
    InputError: a file is missing or wrong, or the two do not belong together; the message says
      what to do.
  """
  title = _TITLES.get(name, name)
  remedy = (
    f"download {title} with bag-of-words features from the Extreme Classification Repository,"
    " unpack it and pass --data_dir=DIR, where DIR holds its train.txt and test.txt"
  )
  if data_dir is None:
    raise InputError(f"data set {name!r} is read from files, which are not named; {remedy}")
  aliases = {_plain(name), _plain(title)}
  train, test = (
    read_xmc(path, name=name)
    for path in _find(pathlib.Path(data_dir).expanduser(), aliases, remedy)
  )
  for side in ("features", "labels"):
    of_train, of_test = (getattr(part, f"num_{side}") for part in (train, test))
    if of_train != of_test:
      raise InputError(
        f"{data_dir}: the training file counts {of_train} {side} and the test file {of_test}; take"
        f" both from the same archive"
      )
  return XmcData(
    name=name,
    num_features=train.num_features,
    num_labels=train.num_labels,
    num_train=train.num_documents,
    feature_splits=_joined_splits(train.feature_splits, test.feature_splits),
    feature_ids=np.concatenate([train.feature_ids, test.feature_ids]),
    feature_values=np.concatenate([train.feature_values, test.feature_values]),
    label_splits=_joined_splits(train.label_splits, test.label_splits),
    label_ids=np.concatenate([train.label_ids, test.label_ids]),
  )


def _find(data_dir: pathlib.Path, aliases: set[str], remedy: str) -> list[pathlib.Path]:
  """Returns the training file and the test file."""
  try:
    inside = sorted(path for path in data_dir.iterdir() if path.is_dir())
    named = {alias + end for alias in aliases for end in _FOLDER_ENDS}
    for folder in (data_dir, *(path for path in inside if _plain(path.name) in named)):
      found = {role: _files_of_role(folder, aliases, role) for role in _ROLES}
      missing = [role for role in _ROLES if not found[role]]
      if not missing:
        return [found[role][0] for role in _ROLES]
      if len(missing) < len(_ROLES):
        raise InputError(f"{folder}: missing {missing[0]}.txt; {remedy}")
  except OSError as error:
    raise InputError(f"{data_dir}: cannot be read ({error.strerror}); {remedy}") from error
  raise InputError(f"{data_dir}: holds no train.txt and test.txt; {remedy}")


def _files_of_role(folder: pathlib.Path, aliases: set[str], role: str) -> list[pathlib.Path]:
  """Returns the files that can be a data set's `role`, the best first."""
  ranked = []
  for path in sorted(folder.iterdir()):
    for place, suffix in enumerate(_SUFFIXES):
      stem = _plain(path.name.lower().removesuffix(suffix))
      if path.name.lower().endswith(suffix) and stem in {role, *(a + role for a in aliases)}:
        ranked.append((stem == role, place, path))
  return [path for *_, path in sorted(ranked)]


def _plain(name: str) -> str:
  return re.sub("[^a-z0-9]", "", name.lower())


def _joined_splits(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  return np.concatenate([first, first[-1] + second[1:]])
