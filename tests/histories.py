"""Made-up scores and training histories."""

from tf_twostage.metrics import CUTOFFS, FULL_INFORMATION, STAGES
from tf_twostage.workspace import seal

METRICS = [f"{metric}@{k}" for metric in ("precision", "recall", "ndcg") for k in CUTOFFS]
SPLITS = ("validation", "test")


def scores(validation, test=None):
  """Scores whose metrics are all alike on a split; `test` is as `validation` where not given."""
  values = {"validation": validation, "test": validation if test is None else test}
  return {
    split: {stage: dict.fromkeys(METRICS, value) for stage in STAGES}
    for split, value in values.items()
  }


def random_scores(rng):
  """Scores no two of which are alike."""
  return {
    split: {stage: {m: rng.random() for m in METRICS} for stage in STAGES} for split in SPLITS
  }


def finished_run(directory, epochs):
  """Leaves what a finished run leaves, but for the weights."""
  best = max(epochs, key=lambda epoch: epoch["selected"])["epoch"]
  for path, record in ((f"checkpoints/ckpt-{len(epochs)}", epochs), (f"best/ckpt-{best}", None)):
    (directory / path).mkdir(parents=True)
    seal(directory / path, "record.json", {"record": record})


def timeless(history):
  """A history without what a clock said."""
  return [{k: v for k, v in epoch.items() if k != "input_wait_share"} for epoch in history]


def history(*epochs):
  """The history of a run with these scores by epoch, of which two-stage precision selects."""
  select = FULL_INFORMATION.selection("two_stage")
  return [
    {
      "epoch": number,
      "training": {"mean_loss": 1 / number},
      "scores": given,
      "selected": select(given),
    }
    for number, given in enumerate(epochs, start=1)
  ]
