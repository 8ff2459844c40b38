"""Features of users and items that nobody has seen: vectors, and what users just did."""

import numpy as np
import pandas as pd
import pytest

from tests.serving import small
from tf_twostage import BanditLog, TwoStageRecommender
from tf_twostage.config import EncoderConfig, FitConfig, GeneratorConfig
from tf_twostage.errors import InputError
from tf_twostage.serving import catalogue, local_server
from tf_twostage.serving.client import RecommenderClient

USERS, ITEMS, ROWS = 40, 12, 2000
KIND = np.arange(ITEMS) % 2  # of an item; users like one kind
SIDE = np.array([[4.0, 0.0, -4.0], [-4.0, 0.0, 4.0]])  # the vector of each kind
THIRD = np.arange(ITEMS) % 3  # users also like the third after that of the item they liked last


def frames():
  """A log of random shows; vectors and histories tell what users like."""
  rng = np.random.default_rng(0)
  user, item = rng.integers(USERS, size=ROWS), rng.integers(ITEMS, size=ROWS)
  log = pd.DataFrame(
    {
      "user": [f"u{i}" for i in user],
      "item": [f"i{i}" for i in item],
      "propensity": 1 / ITEMS,
      "minute": np.arange(ROWS),
    }
  )
  wanted, clicks = np.zeros(USERS, int), []
  for u, i in zip(user, item, strict=True):
    clicks.append(int(u % 2 == KIND[i] and wanted[u] == THIRD[i]))
    wanted[u] = (THIRD[i] + 1) % 3 if clicks[-1] else wanted[u]
  log["click"] = clicks
  noise = [0.3 * rng.normal(size=(n, 3)) for n in (USERS, ITEMS)]
  users = pd.DataFrame({"user": [f"u{i}" for i in range(USERS)]})
  users["taste"] = list(SIDE[np.arange(USERS) % 2] + noise[0])
  items = pd.DataFrame({"item": [f"i{i}" for i in range(ITEMS)]})
  items["image"] = list(SIDE[KIND] + noise[1])
  return log, users, items


def own_log():
  log, users, items = frames()
  return BanditLog.from_pandas(
    log,
    user="user",
    item="item",
    reward="click",
    propensity="propensity",
    time="minute",
    sequences={"history": {"kind": "timed_sequence", "column": "item"}},
    users=users,
    items=items,
  )


@pytest.fixture(scope="module")
def model():
  return TwoStageRecommender(
    "cross_entropy",
    slate_size=4,
    encoder=EncoderConfig(id_width=6, sequence_encoder="attention", sequence_length=2),
    training=GeneratorConfig(epochs=4, batch_size=8, learning_rate=0.1),
    ranker_training=FitConfig(epochs=2, batch_size=64),
  ).fit(own_log(), progress=False)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
  """A version with two items that nobody has seen, of either kind."""
  directory = tmp_path_factory.mktemp("vectors")
  new = pd.DataFrame({"item_id": ["even", "odd"], "title": ["Even", "Odd"], "image": list(SIDE)})
  new.to_parquet(directory / "new.parquet")
  with pytest.MonkeyPatch.context() as patch:
    small.skip_replay(patch.setattr)
    found = catalogue.read_new(directory / "new.parquet", model.environment.tables.schema)
    model.export(directory / "shop", new=found)
  return directory / "shop"


@pytest.fixture(scope="module")
def loaded(exported):
  return TwoStageRecommender.load(exported)


def visitors(*history):
  """Users that nobody has seen."""
  users = pd.DataFrame({"user_id": ["new even", "new odd"], "taste": list(SIDE)})
  users["history"] = [list(history)] * 2
  users["history_ages"] = [[40.0] * len(history)] * 2
  return users


def test_an_item_that_nobody_has_seen_is_served_by_its_vector(loaded):
  shown = loaded.recommend(visitors(), k=ITEMS)
  place = shown.set_index(["user", "item"])["rank"]
  assert place["new even", "even"] < place["new even", "odd"]
  assert place["new odd", "odd"] < place["new odd", "even"]


def test_an_event_after_the_export_counts_at_once(loaded):
  scores = np.empty((3, 3))  # by the last item and the item to show
  for last in range(3):
    shown = loaded.recommend(visitors(f"i{3 + (last + 2) % 3}", f"i{last}")[:1], k=ITEMS).set_index(
      "item"
    )
    score = shown["generator_score"][[f"i{i}" for i in range(ITEMS) if KIND[i] == 0]]
    scores[last] = score.groupby(THIRD[KIND == 0]).mean()
  assert scores.argmax(axis=1).tolist() == [1, 2, 0]


def test_known_users_have_the_history_of_the_log(loaded):
  log = frames()[0]
  liked = log[(log["user"] == "u3") & (log["click"] == 1)].sort_values("minute")["item"]
  minutes = log["minute"].max() - log["minute"][liked.index]
  own = pd.DataFrame({"user_id": ["u3"], "history": [liked.tolist()]})
  own["history_ages"] = [minutes.tolist()]
  pd.testing.assert_frame_equal(loaded.recommend(["u3"], k=5), loaded.recommend(own, k=5))


def test_a_policy_answers_by_the_history_of_each_row(model):
  log = own_log()
  probabilities = model.policy("one_stage").on(log).probabilities(np.arange(200))
  past = log.rows.histories["history"].raw("history", [150], log.schema.item_id.vocabulary)
  asked = pd.DataFrame({"user_id": frames()[0]["user"][150:151]})
  asked = asked.assign(**{name: list(values) for name, values in past.items()})
  scores = model.recommend(asked, k=ITEMS).set_index("item")["generator_score"]
  expected = np.exp(scores[list(log.schema.item_id.vocabulary)])
  np.testing.assert_allclose(probabilities[150], expected / expected.sum(), rtol=1e-4)


def test_a_client_sends_vectors_and_histories(exported, loaded):
  expected = loaded.recommend(visitors("i1"), k=4)
  users = {"user_id": ["new even", "new odd"], "taste": SIDE.tolist()}
  users |= {"history": [["i1"], ["i1"]], "history_ages": [[40.0], [40.0]]}
  with (
    local_server.serve(exported) as address,
    RecommenderClient(address, "shop", timeout=60) as client,
  ):
    slates = client.recommend(users, k=4)
  assert [item.id for slate in slates for item in slate] == expected["item"].tolist()


def test_vectors_of_another_length_are_refused(model):
  wrong = visitors()
  wrong.at[1, "taste"] = [1.0, 2.0]
  with pytest.raises(InputError, match=r"'taste' must hold vectors of 3 numbers.*row 1, 2 values"):
    model.recommend(wrong)
