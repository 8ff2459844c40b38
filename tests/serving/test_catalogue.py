"""Items that came and went since training."""

import dataclasses
import logging

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tests.serving import small
from tests.serving.small import DATA, IDS, SCHEMA, ask
from tf_twostage import serving
from tf_twostage.config import EncoderConfig
from tf_twostage.errors import InputError
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.models.slate_ranker import PrecomputedTowers, TowerRanker
from tf_twostage.serving import catalogue
from tf_twostage.serving.served import Served

ALL = np.int32(20)


def new_items(ids=("new_a", "new_b"), like=(0, 1)):
  """Items with the features of others."""
  features = {name: values[list(like)] for name, values in DATA.items.items()}
  return serving.NewItems(
    {**features, "item_id": np.array(ids)}, np.array([f"title of {i}" for i in ids])
  )


def recommender(**changes):
  return serving.ServableRecommender(*serving.change(small.pair(), **changes), 2)


def retrieved(model, **request):
  answer = ask(model.retrieve, **small.users(), exclude=small.exclude(), k=ALL, **request)
  return [
    dict(zip(ids, scores, strict=True))
    for ids, scores in zip(answer["item_id"], answer["score"], strict=True)
  ]


def ranked(model, ids):
  answer = ask(model.rank, **small.users(), **small.context(), candidates=[list(ids)] * 3)
  return [
    dict(zip(ids, scores, strict=True))
    for ids, scores in zip(answer["item_id"], answer["score"], strict=True)
  ]


def test_nothing_changes_where_nothing_is_asked():
  assert serving.change(small.pair()) is small.pair()


def test_what_was_removed_is_never_returned():
  gone = [IDS[0], IDS[7], IDS[14]]
  model = recommender(removed=gone)
  answers = [
    ask(model.recommend, **small.requests(), k=ALL),
    ask(model.sample, **small.requests(), temperature=np.float32(50), seed=np.arange(3)),
  ]
  for answer in answers:
    assert not np.isin(answer["item_id"], gone).any()
  assert not np.isin(answers[1]["slate"], gone).any()
  before = retrieved(recommender())
  for row, scores in enumerate(retrieved(model)):
    assert set(scores) == set(IDS) - set(gone)
    for item, score in scores.items():
      assert score == pytest.approx(before[row][item], rel=1e-4, abs=1e-5)
  with pytest.raises(tf.errors.InvalidArgumentError, match="ids of the catalogue"):
    ranked(model, gone)


def test_scores_of_others_stay():
  kept = [i for i in IDS if i not in (IDS[0], IDS[7])]
  before = ranked(recommender(), kept)
  after = ranked(recommender(removed=[IDS[0], IDS[7]], new=new_items()), kept)
  for row in range(3):
    for item in kept:
      assert after[row][item] == pytest.approx(before[row][item], rel=1e-4, abs=1e-5)


def test_a_new_item_is_scored_by_its_features_with_the_embedding_of_unknown_ids():
  """Items 0 and 1 under another id: what their own ids' embeddings add is missing."""
  _, generator, ranker, _ = small.pair()
  codes = {name: values[:2] for name, values in tables().items.items()}
  codes["item_id"] = tf.zeros_like(codes["item_id"])
  users = {name: values[:3] for name, values in tables().users.items()}
  users |= tables().context_lookup(small.context())
  model = recommender(new=new_items())
  for answers, towers in (
    (retrieved(model), generator),
    (ranked(model, ["new_a", "new_b"]), ranker.towers),
  ):
    expected = tf.matmul(towers.query(users), towers._items(codes), transpose_b=True).numpy()
    for row in range(3):
      found = [answers[row]["new_a"], answers[row]["new_b"]]
      np.testing.assert_allclose(found, expected[row], rtol=1e-4, atol=1e-5)


def test_a_new_item_has_its_title_and_can_be_excluded_and_shown():
  model = recommender(removed=IDS[:14], new=new_items())
  answer = ask(model.recommend, **small.requests(), k=ALL)
  assert [set(row) for row in answer["item_id"]] == [{IDS[14], "new_a", "new_b"}] * 3
  titles = dict(zip(answer["item_id"][0], answer["title"][0], strict=True))
  assert titles["new_a"] == "title of new_a"
  rest = ask(model.recommend, **small.requests(3, ["new_a"]), k=ALL)
  assert "new_a" not in rest["item_id"]


def test_unknown_values_of_a_new_item_fall_back():
  new = new_items()
  strange = {**new.features, "decade": np.array(["2090s", "2090s"])}
  model = recommender(new=dataclasses.replace(new, features=strange))
  assert np.isfinite([scores["new_a"] for scores in retrieved(model)]).all()


def renamed(names):
  """The pair, with other names for some items."""
  item_id = dataclasses.replace(SCHEMA.item_id, vocabulary=tuple(names.get(i, i) for i in IDS))
  item = tuple(item_id if f is SCHEMA.item_id else f for f in SCHEMA.item)
  return small.pair()._replace(schema=dataclasses.replace(SCHEMA, item=item))


@pytest.mark.parametrize("blank", [" ", "\u0085", "\0"])
def test_ids_that_differ_in_their_last_character_are_different(blank):
  pair = renamed({IDS[0]: "x", IDS[1]: "x" + blank})
  for gone, left in (("x", "x" + blank), ("x" + blank, "x")):
    changed = serving.change(pair, removed=[gone])
    assert changed.schema.item_id.vocabulary == (left, *IDS[2:])
  model = serving.ServableRecommender(*pair, 2)
  request = {**small.users(1), "exclude": small.exclude(1), "k": ALL}
  answer = model.retrieve(**{name: tf.constant(value) for name, value in request.items()})
  assert {b"x", ("x" + blank).encode()} <= set(answer["item_id"].numpy()[0])


def test_ids_may_hold_any_text():
  pair = renamed({item: f"{item} é" for item in IDS})
  served = Served.of(serving.ServableRecommender(*pair, 2), pair.schema, DATA.users, {})
  assert list(served.items) == [f"{item} é" for item in IDS]
  asked = pd.DataFrame({"user_id": DATA.users["user_id"][:1], **small.context(1)})
  assert set(served.recommend(asked, 15, None)["item"]) == set(served.items)


def test_blanks_around_a_removed_id_are_ignored_if_no_item_has_them():
  changed = serving.change(small.pair(), removed=[f" {IDS[0]}\t"])
  assert changed.schema.item_id.vocabulary == tuple(IDS[1:])


def test_an_item_may_be_replaced():
  model = recommender(removed=[IDS[3]], new=new_items((IDS[3],), like=(5,)))
  answer = ask(model.recommend, **small.requests(), k=ALL)
  titles = dict(zip(answer["item_id"][0], answer["title"][0], strict=True))
  assert len(titles) == 15
  assert titles[IDS[3]] == f"title of {IDS[3]}"


def test_an_item_with_a_bias_has_none_when_new():
  generator = TwoTower(tables(), EncoderConfig(), l2=0.0, item_bias=True)
  generator._bias.assign(tf.fill([15], 7.0))
  pair = small.pair()._replace(generator=generator)
  items = serving.change(pair, new=new_items()).generator.candidates().numpy()
  assert list(items[:, -1]) == [7.0] * 15 + [0.0] * 2


def test_changes_may_follow_each_other():
  once = serving.change(small.pair(), new=new_items(("new_a",), like=(0,)))
  twice = serving.change(once, removed=[IDS[2]], new=new_items(("new_b",), like=(1,)))
  both = serving.change(small.pair(), removed=[IDS[2]], new=new_items())
  assert twice.schema.item_id.vocabulary == both.schema.item_id.vocabulary
  np.testing.assert_allclose(twice.generator.candidates(), both.generator.candidates())
  np.testing.assert_allclose(twice.ranker.towers.candidates(), both.ranker.towers.candidates())


def test_removed_items_that_are_unknown_are_counted_in_a_warning(caplog):
  with caplog.at_level(logging.WARNING):
    serving.change(small.pair(), removed=["x", "y\0", IDS[0]])
  assert "2 removed items were not in the catalogue (first: 'x')" in caplog.text


class AnyRanker(tf.Module):
  """Scores an item by its place in the catalogue of 15."""

  def __call__(self, raw, codes, slate):
    return tf.cast(slate, tf.float32)


def test_any_ranker_bears_removal():
  pair = small.pair()._replace(ranker=AnyRanker())
  model = serving.ServableRecommender(*serving.change(pair, removed=[IDS[0], IDS[4]]), 5)
  for scores in ranked(model, [IDS[1], IDS[5], IDS[14]]):
    assert scores == {IDS[1]: 1, IDS[5]: 5, IDS[14]: 14}
  shown = ask(model.sample, **small.requests(), temperature=np.float32(1), seed=np.arange(3))
  assert np.all(shown["propensity"] > 0)


@pytest.mark.parametrize(
  "ranker",
  [AnyRanker(), TowerRanker(PrecomputedTowers("user_id", np.ones((20, 3)), np.ones((15, 3))))],
)
def test_a_ranker_that_knows_no_features_takes_no_new_items(ranker):
  with pytest.raises(InputError, match="items cannot be added"):
    serving.change(small.pair()._replace(ranker=ranker), new=new_items())


def test_a_catalogue_is_not_emptied():
  with pytest.raises(InputError, match="all items are to be removed"):
    serving.change(small.pair(), removed=IDS)


def without(new, name):
  return dataclasses.replace(new, features={k: v for k, v in new.features.items() if k != name})


@pytest.mark.parametrize(
  ("new", "words"),
  [
    (
      new_items((IDS[3], "new_b")),
      f"must not be in the catalogue already; 1 of 2 .*row 0, value '{IDS[3]}'",
    ),
    (new_items(("same", "same")), "repeats a value"),
    (without(new_items(), "decade"), r"items to add: missing column\(s\) \['decade'\]"),
    (dataclasses.replace(new_items(), titles=np.array(["one"])), "1 titles for 2 items"),
  ],
)
def test_wrong_new_items_are_refused(new, words):
  with pytest.raises(InputError, match=words):
    serving.change(small.pair(), new=new)


def tables():
  return EncodedTables.encode(SCHEMA, DATA.users, DATA.items)


# Files


def test_a_table_of_new_items(tmp_path):
  file = tmp_path / "new.csv"
  file.write_text("item_id,decade,topics,title\nnew_a,1990s,Art|Music,First\nnew_b,2010s,,Second\n")
  new = catalogue.read_new(file, SCHEMA)
  assert list(new.titles) == ["First", "Second"]
  assert list(new.features["item_id"]) == ["new_a", "new_b"]
  assert new.features["topics"].tolist() == [["Art", "Music"], ["", ""]]
  model = recommender(new=new)
  assert {"new_a", "new_b"} <= set(retrieved(model)[0])


def test_a_table_without_a_column_is_refused(tmp_path):
  file = tmp_path / "new.csv"
  file.write_text("item_id,decade\nnew_a,1990s\n")
  with pytest.raises(InputError, match="topics"):
    catalogue.read_new(file, SCHEMA)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_list_of_removed_items(tmp_path, mark):
  """An id may hold any character but line ends, and blanks at its ends."""
  file = tmp_path / "gone.txt"
  file.write_bytes(mark + "item_1\r\n\n item_2 \nx\u0085y\x0bz".encode())
  assert catalogue.read_removed(file) == ["item_1", " item_2 ", "x\u0085y\x0bz"]


@pytest.mark.parametrize("content", [None, "item_1\n".encode("utf-16")])
def test_an_unreadable_list_of_removed_items(tmp_path, content):
  if content:
    (tmp_path / "nowhere.txt").write_bytes(content)
  with pytest.raises(InputError, match="not readable as a list of item ids"):
    catalogue.read_removed(tmp_path / "nowhere.txt")
