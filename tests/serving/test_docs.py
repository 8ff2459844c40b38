"""The calls in README.md and docs/serving.md against exports of the data that they name."""

import json
import pathlib
import re
import shutil

import pytest
import tensorflow as tf

from tests.data.sets import mini_movielens
from tests.serving import small
from tf_twostage import serving
from tf_twostage.data.sets.movielens import load_movielens_1m
from tf_twostage.serving import exporting, local_server

ROOT = pathlib.Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
README = README[README.index("## Serving") : README.index("## Documentation")]
CALLS = [
  (model, json.loads(body), url)
  for model, text in (("synthetic", DOCS), ("ml1m", README))
  for body, url in re.findall(r"curl -d '(.*?)' (\S+)", text, re.DOTALL)
]
MOVIES = [b"%d::Film %d (1990)::Drama\n" % (movie, movie) for movie in range(200, 300)]


@pytest.fixture(scope="module")
def exports(exported, tmp_path_factory):
  """saved_models/, with an untrained synthetic/1 and ml1m/1."""
  root = tmp_path_factory.mktemp("saved_models")
  raw = mini_movielens.write_directory(
    tmp_path_factory.mktemp("ml-1m"), movies=b"".join([mini_movielens.MOVIES, *MOVIES])
  )
  movies = serving.ServableRecommender(*small.untrained(load_movielens_1m(str(raw))), small.SLATE)
  shutil.copytree(exported, root / "synthetic" / "1")
  serving.save(movies, root / "ml1m" / "1")
  return root


@pytest.fixture(scope="module")
def signatures(exports):
  return {
    model.name: tf.saved_model.load(str(model / "1")).signatures for model in exports.iterdir()
  }


def program(text, containing):
  """The Python program of a text that contains some words."""
  (found,) = (
    code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if containing in code
  )
  return found


def test_every_signature_is_called():
  called = {body["signature_name"] for model, body, _ in CALLS if model == "synthetic"}
  assert called == set(small.recommender().signatures())
  assert "ml1m" in {model for model, *_ in CALLS}


@pytest.mark.parametrize(("model", "body", "url"), CALLS)
def test_calls_over_rest_match_their_signatures(signatures, model, body, url):
  """As the server reads them: instances are stacked, inputs are taken as they are."""
  assert url == f"http://localhost:8501/v1/models/{model}:predict"
  run = signatures[model][body["signature_name"]]
  specs = run.structured_input_signature[1]
  inputs = body.get("inputs") or {
    name: [instance[name] for instance in body["instances"]] for name in body["instances"][0]
  }
  assert set(inputs) == set(specs)
  answer = run(**{name: tf.constant(value, specs[name].dtype) for name, value in inputs.items()})
  assert {len(value) for value in answer.values()} == {len(inputs["user_id"])}


def test_the_python_program_runs(exports, capsys):
  code = program(DOCS, "RecommenderClient")
  with local_server.serve(exports / "synthetic") as address:
    exec(code.replace("localhost:8500", address).replace("timeout=0.5", "timeout=60"), {})
  printed = capsys.readouterr().out.splitlines()
  assert len(printed) == 3
  assert printed[-1].startswith("synthetic.recommend at localhost:")
  assert printed[-1].endswith("k must be at least 1, got 0")


def test_tensorflow_alone_recommends_from_an_export(exports):
  names = {}
  exec(program(DOCS, "saved_model.load").replace("saved_models", str(exports)), names)
  answer = names["answer"]
  ids = set(answer["item_id"].numpy()[0].astype(str))
  assert len(ids) == 30
  assert not ids & {"1", "260", ""}
  scores = answer["score"].numpy()[0]
  assert (scores[:-1] >= scores[1:]).all()
  assert answer["title"].shape == (1, 30)


def test_the_readme_draws_an_item_over_grpc(exports, capsys):
  code = program(README, "RecommenderClient")
  assert "timeout" in code
  with local_server.serve(exports / "ml1m") as address:
    exec(code.replace("localhost:8500", address).replace("timeout=0.5", "timeout=60"), {})
  item, propensity = capsys.readouterr().out.split()
  assert item.isdecimal()
  assert item not in ("1", "260")
  assert 0 < float(propensity) < 1


def test_the_table_names_all_inputs_and_outputs(signatures):
  table = DOCS[DOCS.index("## Signatures") : DOCS.index("## REST")]
  features = {f.name for f in (*small.SCHEMA.user, *small.SCHEMA.context)}
  for name in small.recommender().signatures():
    (row,) = (line for line in table.splitlines() if line.startswith(f"| `{name}`"))
    run = signatures["synthetic"][name]
    named = {*run.structured_input_signature[1], *run.structured_outputs} - features
    assert all(f"`{column}`" in row for column in named)


def test_files_beside_the_versions_are_named():
  assert all(name in DOCS for name in exporting.SERVER_FILES)
