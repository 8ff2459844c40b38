"""Features of new users and items that reach an export as vectors."""

import numpy as np
import pandas as pd
import pytest

from tests.serving import small
from tf_twostage import BanditLog, TwoStageRecommender
from tf_twostage.config import EncoderConfig, FitConfig, GeneratorConfig
from tf_twostage.errors import InputError
from tf_twostage.serving import catalogue, local_server
from tf_twostage.serving.client import RecommenderClient

USERS, ITEMS, ROWS = 40, 12, 1500
KIND = np.arange(ITEMS) % 2  # of an item; users like one kind
SIDE = np.array([[4.0, 0.0, -4.0], [-4.0, 0.0, 4.0]])  # the vector of each kind


def frames():
  """A log of random shows; vectors tell what users like and items are."""
  rng = np.random.default_rng(0)
  user, item = rng.integers(USERS, size=ROWS), rng.integers(ITEMS, size=ROWS)
  log = pd.DataFrame(
    {
      "user": [f"u{i}" for i in user],
      "item": [f"i{i}" for i in item],
      "propensity": 1 / ITEMS,
      "click": (user % 2 == KIND[item]).astype(int),
    }
  )
  noise = [0.3 * rng.normal(size=(n, 3)) for n in (USERS, ITEMS)]
  users = pd.DataFrame({"user": [f"u{i}" for i in range(USERS)]})
  users["taste"] = list(SIDE[np.arange(USERS) % 2] + noise[0])
  items = pd.DataFrame({"item": [f"i{i}" for i in range(ITEMS)]})
  items["image"] = list(SIDE[KIND] + noise[1])
  return log, users, items


@pytest.fixture(scope="module")
def model():
  log, users, items = frames()
  own = BanditLog.from_pandas(
    log,
    user="user",
    item="item",
    reward="click",
    propensity="propensity",
    users=users,
    items=items,
  )
  return TwoStageRecommender(
    slate_size=4,
    encoder=EncoderConfig(id_width=4),
    training=GeneratorConfig(epochs=3, batch_size=64),
    ranker_training=FitConfig(epochs=3, batch_size=64),
  ).fit(own, progress=False)


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


def visitors():
  """Users that nobody has seen."""
  return pd.DataFrame({"user_id": ["new even", "new odd"], "taste": list(SIDE)})


def test_an_item_that_nobody_has_seen_is_served_by_its_vector(exported):
  shown = TwoStageRecommender.load(exported).recommend(visitors(), k=ITEMS)
  place = shown.set_index(["user", "item"])["rank"]
  assert place["new even", "even"] < place["new even", "odd"]
  assert place["new odd", "odd"] < place["new odd", "even"]


def test_a_client_sends_vectors_of_users(exported):
  expected = TwoStageRecommender.load(exported).recommend(visitors(), k=4)
  users = {"user_id": ["new even", "new odd"], "taste": SIDE.tolist()}
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
