"""What a generator is trained on and evaluated by: a log, a ranker, an evaluator, baselines.

An environment is made once and shared by every loss and seed. `simulated` makes one of ratings,
`full_labels` of documents with complete labels, `prepared` reads one from a directory, `user_log`
makes one of a user's log.
"""

from tf_twostage.environment.base import Environment
from tf_twostage.environment.make import make
from tf_twostage.environment.prepared import PREPARED_FILES
from tf_twostage.environment.user_log import log_environment

__all__ = ["PREPARED_FILES", "Environment", "log_environment", "make"]
