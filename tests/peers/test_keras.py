"""The integration works with Keras 3 on its torch backend."""

import sys

import keras
import numpy as np
import pytest
import torch
from agreement import agree, draw

from fused_contrastive.integrations.keras import NT_Xent, NTXentLoss


def one_by_one(zi, zj, tau=1):
    """Computes the loss of each row in turn against all others, by Keras' own cosine similarity.

    In float64 it takes torch's similarity, because Keras' is less precise than that.
    """
    keras_similarity = keras.losses.CosineSimilarity(axis=-1, reduction=None)

    def similarity(a, b):
        return (
            -torch.cosine_similarity(a, b) if a.dtype == torch.float64 else keras_similarity(a, b)
        )

    z = torch.cat([zi, zj]).flatten(1)
    losses = []
    for i in range(len(z)):
        logits = -similarity(z[i : i + 1].expand_as(z), z) / tau
        others = torch.arange(len(z)) != i
        losses.append(logits[others].logsumexp(0) - logits[(i + len(zi)) % len(z)])
    return torch.stack(losses)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
@pytest.mark.parametrize("shape", ((1, 3), (2, 1), (7, 5), (4, 3, 2)))
def test_equal(shape, dtype):
    for options in ({}, {"tau": 0.2}):
        agree(
            lambda *z, o=options: NT_Xent(*z, **o),
            lambda *z, o=options: one_by_one(*z, **o).mean(),
            draw(shape, shape),
            dtype,
        )
        agree(
            NTXentLoss(**options),
            lambda *z, o=options: one_by_one(*z, **o).mean(),
            draw(shape, shape),
            torch.float32,
        )


@pytest.mark.parametrize(
    "reduction", ("sum_over_batch_size", "sum", "mean_with_sample_weight", None)
)
def test_reductions_and_weights(reduction):
    def expected(*z):
        weights = torch.tensor([0.5, 2.0, 0.0, 1.0], dtype=z[0].dtype)
        terms = one_by_one(*z, 0.5).view(2, 4).mean(0)
        total = (weights * terms).sum()
        return {"sum_over_batch_size": total / 4, "sum": total, None: weights * terms}.get(
            reduction, total / weights.sum()
        )

    loss = NTXentLoss(0.5, reduction=reduction)
    weights = np.array([0.5, 2.0, 0.0, 1.0])
    agree(lambda *z: loss(*z, sample_weight=weights), expected, draw((4, 3), (4, 3)), torch.float32)


def test_takes_what_keras_takes():
    zi, zj = (np.asarray(x, dtype="float32") for x in draw((4, 3), (4, 3)))
    assert float(NT_Xent(zi, zj)) == pytest.approx(
        float(one_by_one(torch.tensor(zi), torch.tensor(zj)).mean())
    )


def test_serialization():
    loss = keras.losses.deserialize(
        keras.losses.serialize(NTXentLoss(0.3, reduction="sum", name="views"))
    )
    assert type(loss) is NTXentLoss
    assert (loss.tau, loss.reduction, loss.name) == (0.3, "sum", "views")


class TwoViews(keras.Model):
    """This encoder takes pairs of noisy views."""

    def __init__(self, loss):
        super().__init__()
        self.encoder = keras.Sequential(
            [keras.layers.Dense(16, activation="relu"), keras.layers.Dense(4)]
        )
        self.views = loss

    def call(self, x):
        return self.encoder(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return self.views(y_pred, self(y))


def test_training():
    """Keras' own fit trains with the loss in compute_loss and in compile.

    Equal steps have the losses that the loop over the rows gives.
    """
    z, other = (np.asarray(x, dtype="float32") for x in draw((32, 6), (32, 6), spread=0.3))
    histories = []
    for loss in (NTXentLoss(0.5), lambda a, b: one_by_one(a, b, 0.5).mean()):
        keras.utils.set_random_seed(0)
        model = TwoViews(loss)
        model.compile(optimizer=keras.optimizers.Adam(1e-2))
        histories.append(
            model.fit(z, other, batch_size=16, epochs=3, shuffle=False, verbose=0).history["loss"]
        )
    assert histories[0] == pytest.approx(histories[1], rel=1e-4)
    assert histories[0][-1] < histories[0][0]

    model = keras.Sequential([keras.layers.Dense(6)])
    model.compile(optimizer="adam", loss=NTXentLoss())
    before = model.evaluate(z, other, verbose=0)
    model.fit(z, other, epochs=5, verbose=0)
    assert model.evaluate(z, other, verbose=0) < before


def test_other_backends_are_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    monkeypatch.delitem(sys.modules, "fused_contrastive.integrations.keras")
    with pytest.raises(ImportError, match="KERAS_BACKEND=torch"):
        __import__("fused_contrastive.integrations.keras")
