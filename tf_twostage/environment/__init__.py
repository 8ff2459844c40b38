"""What generators are trained against and judged by: a log, a ranker, a evaluator, baselines.

An environment is made once and shared by every loss and seed. `simulated` makes one of ratings,
`labelled` of documents with complete labels, `ready` reads one from a directory, `user_log` takes a
log of one's own.
"""

from tf_twostage.environment.base import Environment
from tf_twostage.environment.make import make
from tf_twostage.environment.prepared import PREPARED_FILES

__all__ = ["PREPARED_FILES", "Environment", "make"]
