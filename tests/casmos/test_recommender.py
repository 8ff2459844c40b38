"""The whole path: fit, evaluate, export and load a recommender with clauses."""

import dataclasses
import json

import numpy as np
import pytest

from tests import test_recommender as towers
from tests.serving import small as serving
from tf_twostage import TwoStageRecommender, evaluate, losses
from tf_twostage.casmos.clauses import Query
from tf_twostage.config import ClauseConfig
from tf_twostage.errors import InputError
from tf_twostage.serving import NewItems
from tf_twostage.serving.served import Served

CLAUSES = ClauseConfig(clause_support=5)


@pytest.fixture(scope="module")
def parts():
  return towers.make_log().split("time")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return tmp_path_factory.mktemp("run")


def fitted(parts, workdir, loss=None, **clauses):
  loss = losses.IPS(policy="two_stage") if loss is None else loss
  own = dataclasses.replace(CLAUSES, **clauses)
  model = TwoStageRecommender(loss, slate_size=6, generator="casmos", clauses=own, **towers.QUICK)
  return model.fit(parts[0], validation=parts[1], workdir=workdir, progress=False)


@pytest.fixture(scope="module")
def model(parts, workdir):
  return fitted(parts, workdir)


def test_clauses_beat_chance_on_a_log_whose_truth_they_are(model, parts):
  found = evaluate(parts[2], {"ours": model.policy("one_stage")}, ["ips"], progress=False)
  values = found.to_frame().set_index("policy")["value"]
  # A liked item has a reward of 0.6, one drawn at random 0.1 + 0.5 / 3.
  assert values["ours"] > 0.4


def test_weights_of_the_teacher_stay_where_they_are_not_trained(parts, workdir):
  model = fitted(parts, workdir, train_clauses=False)
  assert len(model.epochs) == 1
  learned = [Query.read(f) for f in (workdir / "stages").glob("clauses-*/clauses.json")]
  texts = [sorted((str(c), round(c.weight, 4)) for c in query.clauses) for query in learned]
  found = model.towers.current().clauses
  assert sorted((str(c), round(c.weight, 4)) for c in found) in texts


def test_the_log_may_teach_in_place_of_the_ranker(parts, workdir):
  model = fitted(parts, workdir, clause_teacher="log", train_clauses=False)
  texts = {str(c) for c in model.towers.current().clauses}
  assert {f"taste=t{i} x group=g{i}" for i in range(3)} <= texts


def test_a_file_that_a_person_edited_replaces_learning(parts, workdir, tmp_path):
  path = tmp_path / "mine.json"
  clause = {"user": {}, "item": {"group": "g1"}, "weight": 2.0}
  path.write_text(json.dumps({"threshold": 1.0, "clauses": [clause]}))
  own = ClauseConfig(clauses=str(path), train_clauses=False)
  loss = losses.IPS(policy="two_stage")
  model = TwoStageRecommender(loss, slate_size=4, generator="casmos", clauses=own, **towers.QUICK)
  model.fit(parts[0], validation=parts[1], workdir=workdir, progress=False)
  shown = model.recommend(["u3"], k=4)
  assert set(shown["item"]) == {"i1", "i4", "i7", "i10"}
  written = [json.loads(f.read_text()) for f in (workdir / "generators").glob("*/clauses.json")]
  assert {"threshold": 1.0, "clauses": [clause]} in written


def test_explanations_add_up_to_the_generator_score(model):
  shown = model.recommend(["u3", "u7"], k=6)
  shown = shown[shown["generator_score"] > 0]
  reasons = model.explain(shown["user"], shown["item"])
  totals = reasons.groupby(["user", "item"])["weight"].sum()
  expected = shown.set_index(["user", "item"])["generator_score"]
  np.testing.assert_allclose(totals[expected.index], expected, rtol=1e-5)


def test_a_loaded_export_answers_and_explains_as_the_model(model, parts, tmp_path, monkeypatch):
  serving.skip_replay(monkeypatch.setattr)
  loaded = TwoStageRecommender.load(model.export(tmp_path / "shop"))
  towers.assert_same_answers(loaded, model, parts[2])
  asked = ["u3", "u3"], ["i0", "i1"]
  assert loaded.explain(*asked).equals(model.explain(*asked))


def test_new_items_are_scored_by_their_features(model, tmp_path, monkeypatch):
  serving.skip_replay(monkeypatch.setattr)
  twin = {"item_id": ["new"], "group": ["g0"], "price": [1.0], "tags": [["b"]]}
  features = {name: np.array(values) for name, values in twin.items()}
  new = NewItems(features, np.array(["New"]))
  version = model.export(tmp_path / "shop", new=new, removed=["i0"])
  loaded = TwoStageRecommender.load(version)
  reasons = loaded.explain(["u3"], ["new"])
  assert (reasons["clause"].str.contains("group=g0")).any()


def test_clauses_take_no_index_of_cells(model, tmp_path):
  with pytest.raises(InputError, match="clauses are an index already"):
    model.export(tmp_path, index=(4, 2))


def test_only_clauses_explain():
  vectors = Served.of(serving.recommender(), serving.SCHEMA, serving.DATA.users, {})
  with pytest.raises(InputError, match="only generator=casmos has clauses"):
    vectors.explain(["u3"], ["i0"])


def test_settings_that_change_nothing_are_refused():
  with pytest.raises(InputError, match=r"clause_l1=0\.1 changes nothing without"):
    TwoStageRecommender(clauses=ClauseConfig(clause_l1=0.1))
  with pytest.raises(InputError, match="max_clauses=9 changes nothing with a file of clauses"):
    ClauseConfig(clauses="mine.json", max_clauses=9)
  with pytest.raises(InputError, match="has no towers"):
    TwoStageRecommender(generator="casmos", user_tower=towers.user_tower())
  fixed = ClauseConfig(train_clauses=False)
  with pytest.raises(InputError, match="train=both needs train_clauses=true"):
    TwoStageRecommender("two_stage_ltr", train="both", generator="casmos", clauses=fixed)
