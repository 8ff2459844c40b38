"""Invented extreme multi-label data: no files, as large as Wiki10-31K, and learnable."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.sparse import csr_array

from tf_twostage.data.sets.xmc import XmcData
from tf_twostage.errors import InputError

# Share of a document's labels that come from its topic, and of its words that come from its labels.
_OF_TOPIC = 0.7
_OF_LABELS = 0.6
_LABELS_PER_TOPIC = 100
_WORDS_PER_LABEL = 64
# Draws per distinct label or word: popular ones are drawn repeatedly.
_LABEL_DRAWS = 2.5
_WORD_DRAWS = 3.0
_CHUNK = 1_000_000  # words drawn at a time, about 100 bytes each
_ID_BITS = 31


def make_xmc(
  num_train: int = 14_146,
  num_test: int = 6_616,
  num_features: int = 101_938,
  num_labels: int = 30_938,
  seed: int = 0,
  *,
  labels_per_document: float = 18.6,
  features_per_document: float = 673.0,
) -> XmcData:
  """Invents documents whose words depend on their labels; by default as many as Wiki10-31K.

  A document has one topic and takes most of its labels from it. Most of its words come from its
  labels, the others from the language. Topics, labels, labels of a topic, words and words of a
  label are drawn by rank, rank k = 1, 2, ... with probability proportional to log(1 + 1/k): a
  power law of exponent 1. Values are tf-idf, scaled to length 1 in every document and rounded to
  six decimals.

  Means are approximate. A document has at least one label and one word.
  """
  if num_train < 1 or num_test < 0:
    raise InputError(
      f"xmc: cannot make {num_train} training and {num_test} test documents; ask for at least one"
      " to train on, and none or more to test on"
    )
  for side, mean, count in (
    ("labels", labels_per_document, num_labels),
    ("features", features_per_document, num_features),
  ):
    if not 1 <= mean <= count < 2**_ID_BITS:
      raise InputError(
        f"xmc: {mean} {side} a document out of {count} are impossible; ask for at least 1 and at"
        f" most num_{side}, and keep that below 2**{_ID_BITS}"
      )
  rng = np.random.default_rng(seed)
  documents = num_train + num_test
  wanted = _lengths(rng, labels_per_document, num_labels, documents)
  labels = _draw_labels(rng, wanted, num_labels)
  wanted = _lengths(rng, features_per_document, num_features, documents)
  counts, ids, repeats = _draw_words(rng, wanted, num_features, labels)
  splits = _splits(counts)
  frequency = np.bincount(ids, minlength=num_features)
  rarity = np.log1p(documents / np.maximum(frequency, 1)).astype(np.float32)
  values = np.log1p(repeats) * rarity[ids]
  values /= np.repeat(np.sqrt(np.add.reduceat(values**2, splits[:-1])), counts)
  values = np.maximum(np.round(values, 6), np.float32(1e-6))
  return XmcData(
    name="xmc_synthetic",
    features=csr_array((values, ids, splits), shape=(documents, num_features)),
    labels=labels,
    num_train=num_train,
  )


def _lengths(rng: np.random.Generator, mean: float, largest: int, rows: int) -> np.ndarray:
  """Returns skewed whole numbers around `mean`, from 1 to `largest`, [rows] int64."""
  return np.clip(np.rint(rng.gamma(4.0, mean / 4.0, size=rows)), 1, largest).astype(np.int64)


def _ranks(rng: np.random.Generator, size: int | np.ndarray, rows: int | tuple) -> np.ndarray:
  """Returns ranks in [0, size), rank k with probability log(1 + 1/(k+1)) / log(size + 1)."""
  rank = np.exp(rng.random(rows) * np.log1p(size)).astype(np.int64) - 1
  return np.minimum(rank, size - 1)  # exp may round up to the end


def _draw_labels(rng: np.random.Generator, wanted: np.ndarray, num_labels: int) -> csr_array:
  """Returns the labels of documents, [D, N] bool, `wanted` [D] labels each."""
  topics = max(1, num_labels // _LABELS_PER_TOPIC)
  row = np.repeat(np.arange(len(wanted)), np.ceil(_LABEL_DRAWS * wanted).astype(np.int64))
  topic = _ranks(rng, topics, len(wanted))[row]
  # Ranks t, t + topics, t + 2 * topics, ... belong to topic t.
  of_topic = topic + topics * _ranks(rng, (num_labels - 1 - topic) // topics + 1, len(row))
  of_all = _ranks(rng, num_labels, len(row))
  rank = np.where(rng.random(len(row)) < _OF_TOPIC, of_topic, of_all)
  counts, ids, _ = _distinct(rng, row, rng.permutation(num_labels)[rank], wanted)
  return csr_array((np.ones(len(ids), bool), ids, _splits(counts)), shape=(len(wanted), num_labels))


def _draw_words(
  rng: np.random.Generator, wanted: np.ndarray, num_features: int, labels: csr_array
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns how many words each document has, their ids, and how often each occurs."""
  id_of_rank = rng.permutation(num_features).astype(np.int32)
  words = id_of_rank[_ranks(rng, num_features, (labels.shape[1], _WORDS_PER_LABEL))]
  draws = np.ceil(_WORD_DRAWS * wanted).astype(np.int64)
  # Chunks of whole documents bound the memory.
  steps = np.arange(_CHUNK, draws.sum(), _CHUNK)
  bounds = [0, *np.searchsorted(np.cumsum(draws), steps), len(draws)]
  parts = []
  for start, stop in itertools.pairwise(bounds):
    row = np.repeat(np.arange(start, stop), draws[start:stop])
    slot = (rng.random(len(row)) * np.diff(labels.indptr)[row]).astype(np.int64)
    label = labels.indices[labels.indptr[row] + slot]
    of_label = words[label, _ranks(rng, _WORDS_PER_LABEL, len(row))]
    of_language = id_of_rank[_ranks(rng, num_features, len(row))]
    word = np.where(rng.random(len(row)) < _OF_LABELS, of_label, of_language)
    parts.append(_distinct(rng, row - start, word, wanted[start:stop]))
  counts, ids, repeats = (np.concatenate(columns) for columns in zip(*parts, strict=True))
  return counts, ids, repeats


def _distinct(
  rng: np.random.Generator, row: np.ndarray, ids: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Keeps `wanted` [rows] different ids of each row, spread evenly over the `ids` [draws] drawn.

  Returns the number of ids kept, [rows]; their ids by row and id; how often each was drawn.
  """
  key = np.sort(row << _ID_BITS | ids)
  first = np.flatnonzero(np.diff(key, prepend=-1))
  repeats = np.diff(first, append=len(key))
  key = key[first]
  row, ids = key >> _ID_BITS, key & (2**_ID_BITS - 1)
  found = np.bincount(row, minlength=len(wanted))
  wanted = np.minimum(wanted, found)
  # Of `found` ids in a circle, every (found / wanted)-th from a random start.
  turn = np.arange(len(row)) + np.repeat(rng.integers(found) - _splits(found)[:-1], found)
  keep = (turn + 1) * wanted[row] // found[row] > turn * wanted[row] // found[row]
  return wanted, ids[keep].astype(np.int32), repeats[keep].astype(np.float32)


def _splits(counts: np.ndarray) -> np.ndarray:
  return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
