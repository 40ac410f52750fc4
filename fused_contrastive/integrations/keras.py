"""Keras 3 on its torch backend: ``from fused_contrastive.integrations.keras import NTXentLoss``.

Keras has no NT-Xent of its own. `NT_Xent` has the arguments of the function that is written for
TensorFlow with its cosine similarity, one pair of samples at a time. `NTXentLoss` is a
`keras.losses.Loss` for ``model.compile(loss=...)``, with Keras' reductions, sample weights and
serialization. Nothing falls back; under other backends of Keras the import is an error.
"""

from __future__ import annotations

from typing import Any

from ..losses.nt_xent import nt_xent_loss
from ._classes import absent
from ._common import package

keras: Any = package("keras", "keras")

if keras.backend.backend() != "torch":
    raise ImportError(
        "fused_contrastive.integrations.keras needs Keras' torch backend, "
        f"not {keras.backend.backend()!r}: set KERAS_BACKEND=torch before keras is imported"
    )

__all__ = ["NTXentLoss", "NT_Xent"]

_Loss: Any = keras.losses.Loss

__getattr__ = absent(__name__)


def NT_Xent(zi, zj, tau=1):
    """The NT-Xent loss of two views ``[B, ...]``, whose trailing dimensions are flattened.

    It is a scalar, the mean over all 2B rows.
    """
    z1, z2 = (keras.ops.convert_to_tensor(z) for z in (zi, zj))
    return nt_xent_loss(z1, z2, tau, group=None)


@keras.saving.register_keras_serializable(package="fused_contrastive")
class NTXentLoss(_Loss):
    """`NT_Xent` as a Keras loss: ``NTXentLoss(tau)(zi, zj)``.

    Without a reduction it is ``[B]``, the mean of both views' losses of each sample.
    """

    def __init__(self, tau=1.0, reduction="sum_over_batch_size", name="nt_xent", dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.tau = tau

    def call(self, y_true, y_pred):
        losses = nt_xent_loss(y_true, y_pred, self.tau, reduction="none", group=None)
        return losses.view(2, -1).mean(0)

    def get_config(self):
        return {**super().get_config(), "tau": self.tau}
