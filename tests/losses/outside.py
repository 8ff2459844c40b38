"""A loss as somebody else would write it."""

from tf_twostage import losses
from tf_twostage.policies import SoftmaxPolicy


class Scaled(losses.OffPolicyLoss):
  """scale times cross-entropy."""

  def __init__(self, scale: float = 2.0, **kwargs):
    """Args:
    scale: factor of the loss.
    """
    super().__init__(**kwargs)
    self.scale = scale

  def evaluate(self, x):
    log_prob = SoftmaxPolicy(x.logits).log_prob(x.actions)
    return losses.LossTerms(-self.scale * x.rewards * log_prob)
