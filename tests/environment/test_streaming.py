"""Logs that stay on disk: the same rows, the same tables, what cannot be had."""

import dataclasses

import numpy as np
import pytest

from launch import train
from tests import user_logs
from tests.environment.test_user_log import CONFIG, ROWS, make, settings
from tests.serving import small
from tf_twostage import TwoStageRecommender
from tf_twostage.data.streamed import StreamedRows
from tf_twostage.environment import rankers, streaming
from tf_twostage.errors import InputError, RunError

QUICK = {
  "ranker": dataclasses.replace(CONFIG.ranker, epochs=1, batch_size=240),
  "generator": dataclasses.replace(CONFIG.generator, epochs=1, batch_size=48),
}


def streamed(directory, **changes):
  return settings(directory, stream=True, **changes)


def sorted_rows(log):
  """All columns of a log's rows, in an order of their own."""
  columns = {**log.columns(), **log.context}
  columns.pop("position", None)
  table = np.stack([columns[name].astype(np.float64) for name in sorted(columns)], axis=1)
  return table[np.lexsort(table.T)]


def everything(sharded):
  """One pass over a log on disk, as columns."""
  users = {"none": np.zeros(sharded.last_user + 1)}
  (batch,) = sharded.batches(users, batch_size=len(sharded), seed=0).take(1).as_numpy_iterator()
  columns = {n: v for n, v in batch.items() if n not in ("user", "context")} | batch["context"]
  table = np.stack([columns[name].astype(np.float64) for name in sorted(columns)], axis=1)
  return table[np.lexsort(table.T)]


@pytest.fixture(scope="module")
def world():
  """Times are context, too."""
  world = user_logs.make(ROWS)
  world.schema["context_features"] = {"hour": {"column": "time", "kind": "numeric"}}
  return world


@pytest.fixture(scope="module")
def written(world, tmp_path_factory):
  return world.write(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def pair(written):
  """The environment in memory and the one on disk."""
  quick = [dataclasses.replace(c, **QUICK) for c in (settings(written), streamed(written))]
  return [make(config, written / str(place)) for place, config in enumerate(quick)]


def test_rows_are_those_of_the_log_in_memory(pair):
  memory, disk = pair
  assert isinstance(disk.log, StreamedRows)
  assert disk.facts["rows"] == memory.facts["rows"]
  np.testing.assert_array_equal(everything(disk.log), sorted_rows(memory.log))
  np.testing.assert_array_equal(
    everything(disk.log.positives()), sorted_rows(memory.log.positives())
  )
  for split in ("validation", "test"):
    np.testing.assert_array_equal(
      sorted_rows(disk.evaluator.logs[split].rows), sorted_rows(memory.evaluator.logs[split].rows)
    )
  for side in ("users", "items"):
    for name, codes in getattr(memory.tables, side).items():
      np.testing.assert_array_equal(getattr(disk.tables, side)[name], codes)
  assert disk.tables.schema == memory.tables.schema
  for name, values in memory.requests.items():
    np.testing.assert_array_equal(disk.requests[name], values)


@pytest.mark.parametrize("split", ["user", "random", "column"])
def test_every_split_is_the_one_in_memory(world, tmp_path, split, monkeypatch):
  monkeypatch.setattr(rankers, "fit", lambda *_, **__: None)
  world = dataclasses.replace(world, log=world.log.copy(), schema=dict(world.schema))
  world.log["fold"] = np.resize(["train", " Dev", "train", "test"], ROWS)
  if split == "column":
    world.schema["split"] = "fold"
  # User ids come in an order that is not theirs.
  world.log = world.log.sample(frac=1, random_state=0)
  written = world.write(tmp_path)
  memory, disk = (
    make(dataclasses.replace(config, **QUICK), tmp_path / str(place))
    for place, config in enumerate((settings(written, split=split), streamed(written, split=split)))
  )
  np.testing.assert_array_equal(everything(disk.log), sorted_rows(memory.log))


def test_a_run_gives_the_same_tables_and_similar_values(written, tmp_path, monkeypatch):
  small.skip_replay(monkeypatch.setattr)
  configs = {"memory": settings(written), "disk": streamed(written)}
  generator = dataclasses.replace(CONFIG.generator, epochs=2)
  results = [
    train.run(
      dataclasses.replace(config, generator=generator), tmp_path / name, tmp_path / name / "export"
    )
    for name, config in configs.items()
  ]
  memory, disk = (metrics for metrics, _ in results)
  ours, theirs = (tmp_path / name / "table.csv" for name in configs)
  header = ours.read_text().splitlines()[0]
  assert header == theirs.read_text().splitlines()[0]
  for heading in ("Test rows, generator alone", "effective sample"):
    assert all(heading in summary for _, summary in results)
  # One draw of the training order against another: two errors of the same 150 test rows.
  ours, theirs = (m["test"]["two_stage"] for m in (disk, memory))
  assert ours["snips"] == pytest.approx(theirs["snips"], abs=2 * theirs["snips_error"])
  for policy in ("logging policy", "random", "popularity"):
    assert disk["baselines"][policy]["test"]["one_stage"]["snips"] == pytest.approx(
      memory["baselines"][policy]["test"]["one_stage"]["snips"]
    )


def test_the_stage_is_found_again_until_a_file_changes(world, tmp_path, monkeypatch):
  written = world.write(tmp_path / "log")
  config = dataclasses.replace(streamed(written), **QUICK)
  made = make(config, tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(streaming, "_build", lambda *_: pytest.fail("built again"))
    assert make(config, tmp_path).name == made.name
  log = written / "log.csv"
  log.write_text(log.read_text() + log.read_text().splitlines()[-1] + "\n")
  assert make(config, tmp_path).name != made.name


def test_held_out_rows_that_would_not_fit_are_drawn(written, tmp_path):
  config = dataclasses.replace(streamed(written, held_out_rows=100), **QUICK)
  made, again = make(config, tmp_path / "a"), make(config, tmp_path / "b")
  for split in ("validation", "test"):
    log = made.evaluator.logs[split].rows
    assert len(log) == 100
    np.testing.assert_array_equal(log.action, again.evaluator.logs[split].rows.action)
  assert made.facts["rows"]["test"] == 150
  assert any("values are of 100 of the 150 test rows" in note for note in made.notes)


def test_a_file_that_is_damaged_after_it_was_written_ends_the_run_with_its_name(written, tmp_path):
  config = dataclasses.replace(streamed(written), **QUICK)
  made = make(config, tmp_path)
  (path,) = made.log.directory.glob("rewarded-*.rows")
  path.write_bytes(path.read_bytes()[:60])
  with pytest.raises(RunError, match=f"{path}: was cut or changed"):
    TwoStageRecommender.from_config(config).fit(made, workdir=tmp_path, progress=False)


@pytest.mark.parametrize(
  ("schema", "message"),
  [
    ({"propensity": None}, "propensities are estimated from all rows at once"),
    ({"ranker_score": "reward2"}, "a ranker is fitted to its scores in memory"),
  ],
)
def test_what_needs_all_rows_in_memory_is_refused_at_once(world, tmp_path, schema, message):
  changed = dataclasses.replace(world, schema={**world.schema, **schema})
  with pytest.raises(InputError, match=message):
    make(streamed(changed.write(tmp_path)), tmp_path)


def test_a_service_without_files_to_read_is_refused():
  with pytest.raises(InputError, match="needs stream=true"):
    dataclasses.replace(CONFIG.user_log, data_service="grpc://localhost:5000")
