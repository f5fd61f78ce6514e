"""The training loss: soft-target cross-entropy of every exit, and what earlier exits may learn from the last one."""

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype


class ExitLosses(nn.Cell):
    """Soft-target cross-entropy of each exit: images (B, I, S, S), targets -> (K,) float32.

    Targets are class indices (B,), smoothed here, or soft targets (B, classes), taken as they are.

    With `distillation`, each exit but the last also has that weight times its Kullback-Leibler divergence from the last
    exit, T^2 KL(p_K || p_k), with probabilities p taken of logits divided by T, the `temperature`; T^2 keeps the size
    of its gradients (Hinton et al., 2015). No gradient flows back into the last exit from there.
    """

    def __init__(
        self, model: nn.Cell, label_smoothing: float = 0.0, distillation: float = 0.0, temperature: float = 1.0
    ) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.num_classes = model.config.num_classes
        self.off_value = label_smoothing / self.num_classes
        self.on_value = 1.0 - label_smoothing + self.off_value
        self.distillation, self.temperature = distillation, temperature
        # Without these, one_hot is of int64 values, which Ascend refuses for int32 labels.
        self.one, self.zero = Tensor(1.0, mstype.float32), Tensor(0.0, mstype.float32)

    def construct(self, images: Tensor, targets: Tensor, noise_key: Tensor | None = None) -> Tensor:
        if targets.ndim == 1:
            targets = ops.one_hot(targets, self.num_classes, self.one, self.zero)
            targets = targets * (self.on_value - self.off_value) + self.off_value  # (B, classes)
        all_logits = self.model(images, noise_key)
        last = len(all_logits) - 1
        losses = ()
        for index, logits in enumerate(all_logits):
            loss = -(targets * ops.log_softmax(logits.astype(mstype.float32), axis=-1)).sum(axis=-1).mean()
            if self.distillation > 0 and index < last:
                loss = loss + self.distillation * self._divergence(all_logits[last], logits)
            losses = losses + (loss,)
        return ops.stack(losses)

    def _divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """T^2 KL(teacher || student) of logits (B, classes), a scalar; no gradient flows into the teacher."""
        teacher = ops.stop_gradient(teacher.astype(mstype.float32)) / self.temperature
        wanted = ops.log_softmax(teacher, axis=-1)
        given = ops.log_softmax(student.astype(mstype.float32) / self.temperature, axis=-1)
        return self.temperature**2 * (ops.exp(wanted) * (wanted - given)).sum(axis=-1).mean()
