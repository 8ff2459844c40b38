"""What each signature answers."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.serving import small
from tests.serving.small import IDS, SLATE, TITLE, ask
from tf_twostage.data.schema import Numeric
from tf_twostage.errors import InputError
from tf_twostage.serving.servable import LOWEST_SCORE

INVALID = tf.errors.InvalidArgumentError


def best(scores, allowed, k):
  return sorted(allowed, key=lambda item: -scores[item])[:k]


def expected_slate(row, k=SLATE, excluded=()):
  """Ids in the ranker's order of the generator's best; above SLATE, of its k best."""
  generator, ranker = small.scores()
  allowed = [i for i in range(15) if IDS[i] not in excluded]
  slate = best(generator[row], allowed, max(SLATE, k))
  return [str(IDS[i]) for i in best(ranker[row], slate, k)]


# recommend


@pytest.mark.parametrize("k", [1, 4, SLATE, 9])
def test_recommends_the_rankers_order_of_the_generators_slate(signatures, k):
  answer = ask(signatures["recommend"], **small.requests(), k=[k])
  for row in range(3):
    assert list(answer["item_id"][row]) == expected_slate(row, k)


def test_both_stages_tell_their_scores(signatures):
  answer = ask(signatures["recommend"], **small.requests(), k=[SLATE])
  generator, ranker = small.scores()
  place = {item: i for i, item in enumerate(IDS)}
  items = np.vectorize(place.get)(answer["item_id"])
  for name, scores in (("generator_score", generator), ("score", ranker)):
    np.testing.assert_allclose(answer[name], np.take_along_axis(scores, items, 1), rtol=1e-4)


def test_titles_travel_with_ids(signatures):
  answer = ask(signatures["recommend"], **small.requests(), k=[SLATE])
  for ids, titles in zip(answer["item_id"], answer["title"], strict=True):
    assert [TITLE[i] for i in ids] == list(titles)


def test_excluded_ids_are_not_recommended(signatures):
  gone = expected_slate(0)[:2]
  answer = ask(signatures["recommend"], **small.requests(1, [*gone, "", gone[0]]), k=[SLATE])
  assert list(answer["item_id"][0]) == expected_slate(0, excluded=gone)


def test_unknown_excluded_ids_are_ignored(signatures):
  answer = ask(signatures["recommend"], **small.requests(1, ["no such item"]), k=[SLATE])
  assert list(answer["item_id"][0]) == expected_slate(0)


def test_no_exclusions_may_have_no_width(signatures):
  request = {**small.requests(2), "exclude": np.zeros((2, 0), dtype=str)}
  answer = ask(signatures["recommend"], **request, k=[SLATE])
  assert [list(row) for row in answer["item_id"]] == [expected_slate(row) for row in range(2)]


def test_what_remains_is_returned_and_the_rest_is_padding(signatures):
  answer = ask(signatures["recommend"], **small.requests(1, IDS[2:]), k=[100])
  assert answer["item_id"].shape == (1, 15)
  assert set(answer["item_id"][0, :2]) == set(IDS[:2])
  for name, padding in {
    "item_id": "",
    "title": "",
    "score": LOWEST_SCORE,
    "generator_score": LOWEST_SCORE,
  }.items():
    assert np.all(answer[name][0, 2:] == padding)


def test_a_row_is_answered_as_if_it_were_alone(signatures):
  k, rows = np.array([2, 9, 1], np.int32), small.requests()
  rows["exclude"] = np.array([["", ""], [IDS[0], IDS[3]], [IDS[1], ""]])
  together = ask(signatures["recommend"], **rows, k=k)
  assert together["item_id"].shape == (3, 9)
  for row in range(3):
    one = {name: value[row : row + 1] for name, value in rows.items()}
    alone = ask(signatures["recommend"], **one, k=k[row : row + 1])
    assert list(alone["item_id"][0]) == list(together["item_id"][row, : k[row]])
    assert set(together["item_id"][row, k[row] :]) <= {""}


def test_one_k_is_for_all_and_may_be_a_scalar(signatures):
  answers = [
    ask(signatures["recommend"], **small.requests(), k=k)["item_id"] for k in (4, [4], [4, 4, 4])
  ]
  np.testing.assert_array_equal(answers[0], answers[1])
  np.testing.assert_array_equal(answers[0], answers[2])


@pytest.mark.parametrize("rows", [0, 1, 7, 64])
def test_any_batch_size(signatures, rows):
  # A product of several rows may round otherwise than that of one.
  answer = ask(signatures["recommend"], **small.requests(rows), k=[SLATE])
  assert answer["item_id"].shape == (rows, SLATE if rows else 0)
  assert [list(row) for row in answer["item_id"][:3]] == [
    expected_slate(row) for row in range(min(rows, 3))
  ]


def test_five_hundred_excluded_items(signatures):
  exclude = [f"gone {i}" for i in range(500 - 5)] + list(IDS[:5])
  answer = ask(signatures["recommend"], **small.requests(64, exclude), k=[15])
  assert not np.isin(answer["item_id"], IDS[:5]).any()
  assert np.all((answer["item_id"] != "").sum(axis=1) == 10)


def test_unknown_users_and_values_get_an_answer(signatures):
  request = small.requests(1) | {f.name: np.array(["never seen"]) for f in small.SCHEMA.user}
  assert np.all(ask(signatures["recommend"], **request, k=[SLATE])["item_id"] != "")


def test_the_default_is_to_recommend(signatures):
  request = {**small.requests(), "k": [3]}
  np.testing.assert_array_equal(
    ask(signatures["serving_default"], **request)["item_id"],
    ask(signatures["recommend"], **request)["item_id"],
  )


# retrieve


def test_retrieves_the_generators_order(signatures):
  answer = ask(
    signatures["retrieve"], **small.users(), exclude=small.exclude(3, [IDS[0], IDS[7]]), k=[100]
  )
  generator, _ = small.scores()
  generator[:, [0, 7]] = -np.inf
  exponentials = np.exp(generator.astype(np.float64))
  probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
  order = np.argsort(-generator, axis=1)[:, :13]
  np.testing.assert_array_equal(answer["item_id"][:, :13], IDS[order])
  for name, expected, padding in (
    ("score", generator, LOWEST_SCORE),
    ("probability", probabilities, 0),
  ):
    np.testing.assert_allclose(
      answer[name][:, :13], np.take_along_axis(expected, order, 1), rtol=1e-5
    )
    assert np.all(answer[name][:, 13:] == padding)


def test_the_generator_needs_no_context(signatures):
  names = set(signatures["retrieve"].structured_input_signature[1])
  assert names == {f.name for f in small.SCHEMA.user} | {"exclude", "k"}


# rank


def test_ranks_given_candidates(signatures):
  given = [IDS[i] for i in (4, 11, 0)]
  answer = ask(
    signatures["rank"],
    **small.users(1),
    **small.context(1),
    candidates=[[given[0], "", given[1], given[2]]],
  )
  _, ranker = small.scores()
  items = best(ranker[0], [4, 11, 0], 3)
  assert list(answer["item_id"][0]) == [*IDS[items], ""]
  assert list(answer["title"][0]) == [*(TITLE[i] for i in IDS[items]), ""]
  np.testing.assert_allclose(answer["score"][0, :3], ranker[0, items], rtol=1e-5)
  assert answer["score"][0, 3] == LOWEST_SCORE


# names, and wrong requests


def test_names_are_those_of_the_features(signatures):
  features = {f.name for f in (*small.SCHEMA.user, *small.SCHEMA.context)}
  takes = {
    "recommend": {"exclude", "k"},
    "rank": {"candidates"},
    "sample": {"exclude", "temperature", "seed"},
  }
  for name, more in takes.items():
    assert set(signatures[name].structured_input_signature[1]) == features | more
  returns = {
    "recommend": {"item_id", "title", "score", "generator_score"},
    "retrieve": {"item_id", "score", "probability"},
    "rank": {"item_id", "title", "score"},
    "sample": {"item_id", "title", "propensity", "slate"},
  }
  for name, outputs in returns.items():
    assert set(signatures[name].structured_outputs) == outputs


SAMPLE = {"temperature": [1.0], "seed": np.array([1], np.int64)}


@pytest.mark.parametrize(
  ("signature", "wrong", "words"),
  [
    ("recommend", {"k": [-2]}, "k must be at least 1, got] \\[-2"),
    ("recommend", {"k": [3, 0, 3]}, "k must be at least 1, got] \\[0"),
    ("recommend", {"k": [1, 2]}, "k must hold one value, or one for each user"),
    ("recommend", {"exclude": [["", ""]]}, "one row for each user; rows of .*exclude"),
    ("recommend", {"timestamp": [1.0, np.nan, 2.0]}, "timestamp must be finite, got] \\[nan"),
    ("recommend", {"timestamp": [1.0, 2.0, -np.inf]}, "timestamp must be finite, got] \\[-inf"),
    ("rank", {"candidates": [["x"], [""], ["y"]]}, "ids of the catalogue, got] \\[x y"),
    ("sample", {"temperature": [0.0]}, "temperature must be above 0 and finite"),
    ("sample", {"temperature": [1.0, -1.0, 1.0]}, "temperature must be above 0 and finite"),
    ("sample", {"temperature": [np.nan]}, "temperature must be above 0 and finite"),
    ("sample", {"temperature": [np.inf]}, "temperature must be above 0 and finite"),
    ("sample", {"seed": np.zeros(2, np.int64)}, "seed must hold one value"),
  ],
)
def test_a_wrong_request_is_an_invalid_argument_and_the_next_is_answered(
  signatures, signature, wrong, words
):
  right = {
    "recommend": {**small.requests(), "k": [3]},
    "rank": {**small.users(), **small.context(), "candidates": [[IDS[0]], [""], [IDS[1]]]},
    "sample": {**small.requests(), **SAMPLE},
  }[signature]
  if "timestamp" in wrong:
    wrong = {"timestamp": np.array(wrong["timestamp"])}
  with pytest.raises(INVALID, match=words):
    ask(signatures[signature], **{**right, **wrong})
  ask(signatures[signature], **right)


def test_a_slate_larger_than_the_catalogue_is_refused():
  with pytest.raises(InputError, match="exceeds the catalogue of 15 items"):
    small.recommender(slate_size=16)


def test_no_feature_may_be_called_as_another_input():
  """A schema refuses these names, which signatures have beside the features."""
  features = {feature.name for feature in (*small.SCHEMA.user, *small.SCHEMA.context)}
  for _, specs in small.recommender().signatures().values():
    for name in set(specs) - features:
      with pytest.raises(InputError, match="inputs of the exported model"):
        dataclasses.replace(small.SCHEMA, context=(Numeric(name),))
