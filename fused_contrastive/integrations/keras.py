"""Keras 3 on its torch backend: ``from fused_contrastive.integrations.keras import NTXentLoss``.

Keras has no NT-Xent of its own. `NT_Xent` is the function written for TensorFlow by its cosine similarity, one pair of samples at a time, with the same
arguments; `NTXentLoss` is a `keras.losses.Loss` for ``model.compile(loss=...)``, with Keras' reductions, sample weights and serialization. Nothing
falls back; under other backends of Keras the import is an error.
"""

from __future__ import annotations

from .. import losses
from ._common import package

keras = package("keras", "keras")

if keras.backend.backend() != "torch":
    raise ImportError(
        f"fused_contrastive.integrations.keras needs Keras' torch backend, not {keras.backend.backend()!r}: set KERAS_BACKEND=torch "
        "before keras is imported"
    )

__all__ = ["NTXentLoss", "NT_Xent"]


def NT_Xent(zi, zj, tau=1):
    """The NT-Xent loss of two views ``[B, ...]``, trailing dimensions flattened: a scalar, the mean over all 2B rows."""
    return losses.nt_xent_loss(*(keras.ops.convert_to_tensor(z) for z in (zi, zj)), tau)


@keras.saving.register_keras_serializable(package="fused_contrastive")
class NTXentLoss(keras.losses.Loss):
    """`NT_Xent` as a Keras loss: ``NTXentLoss(tau)(zi, zj)``; without a reduction ``[B]``, the mean of both views' losses of each sample."""

    def __init__(self, tau=1.0, reduction="sum_over_batch_size", name="nt_xent", dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.tau = tau

    def call(self, y_true, y_pred):
        return losses.nt_xent_loss(y_true, y_pred, self.tau, reduction="none").view(2, -1).mean(0)

    def get_config(self):
        return {**super().get_config(), "tau": self.tau}
