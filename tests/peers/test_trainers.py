"""`cached_forward` trains in the trainers of transformers and Lightning as the whole batch does."""

from __future__ import annotations

import pytest
import torch
from agreement import same_weights
from torch import nn

import fused_contrastive as fc


class Towers(nn.Module):
    """A model whose forward pass encodes one tensor, with dropout."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x):
        return self.layers(x)


def loss_in_chunks(model, x, y, cached):
    """The loss of `fc.cached_forward`, or that of the same chunks with all their activations."""
    if cached:
        return fc.cached_forward(model, (x, y), fc.NTXentLoss(0.3), chunk_size=4)
    return fc.nt_xent_loss(*(torch.cat([model(z) for z in part.split(4)]) for part in (x, y)), 0.3)


@pytest.mark.filterwarnings("ignore")
def test_cached_forward_in_the_trainer_of_transformers(tmp_path):
    """It accumulates gradients, clips them, and evaluates, and ends with the same weights."""
    from transformers import Trainer, TrainingArguments

    class Contrastive(Trainer):
        cached = True

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = loss_in_chunks(model, inputs["x"], inputs["y"], self.cached)
            return (loss, {"loss": loss}) if return_outputs else loss

    points = torch.randn(24, 2, 6)
    data = [{"x": x, "y": y} for x, y in points]
    trained, evaluated = [], []
    for cached in (True, False):
        model = Towers()
        trainer = Contrastive(
            model=model,
            args=TrainingArguments(
                output_dir=str(tmp_path / "out"),
                max_steps=4,
                per_device_train_batch_size=6,
                gradient_accumulation_steps=2,
                max_grad_norm=0.5,
                learning_rate=1e-1,
                lr_scheduler_type="constant",
                optim="sgd",
                remove_unused_columns=False,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                seed=0,
                use_cpu=True,
            ),
            train_dataset=data,
            eval_dataset=data[:12],
        )
        trainer.cached = cached
        trainer.label_names, trainer.can_return_loss = [], True
        trainer.train()
        evaluated.append(trainer.evaluate())
        trained.append(model)
    same_weights(*trained, Towers())
    torch.testing.assert_close(*(x["eval_loss"] for x in evaluated), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_cached_forward_in_lightning(tmp_path):
    """A LightningModule that accumulates gradients ends with the same weights."""
    import pytorch_lightning

    class Contrastive(pytorch_lightning.LightningModule):
        def __init__(self, cached):
            super().__init__()
            self.towers, self.cached, self.found = Towers(), cached, []

        def training_step(self, batch, index):
            return loss_in_chunks(self.towers, *batch, self.cached)

        def validation_step(self, batch, index):
            self.found.append(loss_in_chunks(self.towers, *batch, self.cached))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    pairs = torch.utils.data.TensorDataset(torch.randn(24, 6), torch.randn(24, 6))
    loader, trained = torch.utils.data.DataLoader(pairs, batch_size=6), []
    for cached in (True, False):
        model = Contrastive(cached)
        torch.manual_seed(1)
        trainer = pytorch_lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            precision="bf16-mixed",
            accumulate_grad_batches=2,
            gradient_clip_val=0.5,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(model, loader, loader)
        trained.append(model)
    same_weights(*trained, Contrastive(True), rtol=0.05)
    torch.testing.assert_close(trained[0].found, trained[1].found, rtol=1e-2, atol=1e-2)
