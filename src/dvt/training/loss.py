"""The training loss: soft-target cross-entropy of every exit."""

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype


class ExitLosses(nn.Cell):
    """Soft-target cross-entropy of each exit: images (B, I, S, S), targets -> (K,) float32.

    Targets are class indices (B,), smoothed here, or soft targets (B, classes), taken as they are. `noise_key` is that
    of the model's dropout and stochastic depth.
    """

    def __init__(self, model: nn.Cell, label_smoothing: float = 0.0) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.num_classes = model.config.num_classes
        self.off_value = label_smoothing / self.num_classes
        self.on_value = 1.0 - label_smoothing + self.off_value

    def construct(self, images: Tensor, targets: Tensor, noise_key: Tensor | None = None) -> Tensor:
        if targets.ndim == 1:
            targets = ops.one_hot(targets, self.num_classes)
            targets = targets * (self.on_value - self.off_value) + self.off_value  # (B, classes)
        losses = ()
        for logits in self.model(images, noise_key):
            log_probabilities = ops.log_softmax(logits.astype(mstype.float32), axis=-1)
            cross_entropy = -(targets * log_probabilities).sum(axis=-1)
            losses = losses + (cross_entropy.mean(),)
        return ops.stack(losses)
