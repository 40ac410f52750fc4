"""The packages' own training code gives the same weights with our loss as with theirs.

The weights are compared after some steps.
"""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
from agreement import same_weights
from torch import nn


@pytest.mark.parametrize("accum_freq", (1, 2))
@pytest.mark.parametrize("precision", ("fp32", "amp_bf16"))
@pytest.mark.parametrize("name", ("ClipLoss", "SigLipLoss"))
def test_open_clip(name, precision, accum_freq, streams):
    """The epoch of `open_clip_train` trains a tiny CLIP to the same weights."""
    import open_clip
    from open_clip import loss as peer
    from open_clip_train.train import train_one_epoch

    from fused_contrastive.integrations import open_clip as ours

    start = open_clip.CLIP(
        embed_dim=8,
        vision_cfg={"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4},
        text_cfg={"context_length": 6, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1},
        init_logit_bias=-3.0 if name == "SigLipLoss" else None,
        output_dict=True,
    )
    batches = [(torch.randn(6, 3, 8, 8), torch.randint(1, 20, (6, 6))) for _ in range(4)]
    args = SimpleNamespace(
        device="cpu",
        precision=precision,
        distill=False,
        accum_freq=accum_freq,
        skip_scheduler=True,
        grad_clip_norm=1.0,
        horovod=False,
        rank=0,
        local_rank=0,
        world_size=1,
        distributed=False,
        log_every_n_steps=1,
        batch_size=6,
        wandb=False,
    )

    class Loader(list):
        num_batches, num_samples = len(batches), 6 * len(batches)

    trained = []
    for module in (ours, peer):
        model = copy.deepcopy(start)
        data = {"train": SimpleNamespace(set_epoch=lambda epoch: None, dataloader=Loader(batches))}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train_one_epoch(model, data, getattr(module, name)(), 0, optimizer, None, None, None, args)
        trained.append(model)
    same_weights(*trained, start, rtol=1e-3 if precision == "fp32" else 0.1)


@pytest.mark.parametrize(
    ("name", "options"),
    (
        ("NTXentLoss", {}),
        ("NTXentLoss", {"memory_bank_size": (16, 4)}),
        ("DCLLoss", {}),
        ("DCLWLoss", {"sigma": 0.3}),
    ),
)
@pytest.mark.filterwarnings("ignore")
def test_lightly(name, options, tmp_path):
    """A LightningModule ends with the same weights after training by a Trainer.

    It has a tiny encoder with lightly's projection head.
    """
    import pytorch_lightning
    from lightly import loss as peer
    from lightly.models.modules import SimCLRProjectionHead

    from fused_contrastive.integrations import lightly as ours

    class SimCLR(pytorch_lightning.LightningModule):
        def __init__(self, criterion):
            super().__init__()
            torch.manual_seed(0)
            self.backbone = nn.Linear(6, 8)
            self.projection_head = SimCLRProjectionHead(8, 8, 4)
            self.criterion = criterion

        def training_step(self, batch, index):
            z0, z1 = (self.projection_head(self.backbone(x).flatten(1)) for x in batch)
            return self.criterion(z0, z1)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    points = torch.randn(24, 6)
    pairs = torch.utils.data.TensorDataset(points, points + 0.3 * torch.randn(24, 6))
    trained = []
    for module in (ours, peer):
        # This seed fixes the rows of the bank.
        torch.manual_seed(1)
        model = SimCLR(getattr(module, name)(**options))
        trainer = pytorch_lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(model, torch.utils.data.DataLoader(pairs, batch_size=6))
        trained.append(model)
    same_weights(*trained, SimCLR(None))
    if options.get("memory_bank_size"):
        torch.testing.assert_close(
            *(m.criterion.memory_bank.bank for m in trained), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("name", ("NTXentLoss", "SupConLoss", "NPairsLoss"))
@pytest.mark.parametrize("miner", (False, True))
def test_pytorch_metric_learning(name, miner, streams):
    """`trainers.MetricLossOnly` trains to the same weights, with and without a miner."""
    from pytorch_metric_learning import losses as peer
    from pytorch_metric_learning import miners, trainers

    from fused_contrastive.integrations import pytorch_metric_learning as ours

    data = torch.utils.data.TensorDataset(torch.randn(24, 6), torch.arange(24) % 5)
    start = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    trained = []
    for module in (ours, peer):
        # This seed fixes the order of the batches.
        torch.manual_seed(0)
        model = copy.deepcopy(start)
        trainer = trainers.MetricLossOnly(
            models={"trunk": model},
            optimizers={"trunk_optimizer": torch.optim.SGD(model.parameters(), lr=0.05)},
            batch_size=12,
            loss_funcs={"metric_loss": getattr(module, name)()},
            mining_funcs={"tuple_miner": miners.MultiSimilarityMiner()} if miner else {},
            dataset=data,
            data_device=torch.device("cpu"),
            dataloader_num_workers=0,
        )
        trainer.train(num_epochs=2)
        trained.append(model)
    same_weights(*trained, start)


@pytest.mark.parametrize("name", ("NTXentLoss", "SupConLoss"))
@pytest.mark.parametrize("symmetric", (True, False))
def test_self_supervised(name, symmetric, streams):
    from agreement import agree, draw
    from pytorch_metric_learning import losses as peer

    from fused_contrastive.integrations import pytorch_metric_learning as ours

    wrapped = [
        peer.SelfSupervisedLoss(getattr(module, name)(), symmetric=symmetric)
        for module in (ours, peer)
    ]
    for n, d in ((1, 3), (2, 3), (9, 4)):
        agree(*wrapped, draw((n, d), (n, d)))


@pytest.mark.parametrize("name", ("NTXentLoss", "SupConLoss"))
@pytest.mark.parametrize("use", ("all", "miner", "enqueue_mask"))
def test_cross_batch_memory(name, use, streams):
    """The weights are the same after steps in which the memory fills and wraps around."""
    from pytorch_metric_learning import losses as peer
    from pytorch_metric_learning import miners

    from fused_contrastive.integrations import pytorch_metric_learning as ours

    start = nn.Linear(6, 4)
    trained = []
    for module in (ours, peer):
        torch.manual_seed(0)
        model = copy.deepcopy(start)
        miner = miners.MultiSimilarityMiner() if use == "miner" else None
        loss = peer.CrossBatchMemory(
            getattr(module, name)(), embedding_size=4, memory_size=20, miner=miner
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(4):
            x, labels = torch.randn(8, 6), torch.randint(4, (8,))
            options = {"enqueue_mask": torch.arange(8) % 2 == 0} if use == "enqueue_mask" else {}
            optimizer.zero_grad()
            loss(model(x), labels, **options).backward()
            optimizer.step()
        trained.append(model)
    same_weights(*trained, start)


WORDS = "[PAD] [UNK] [CLS] [SEP] red green blue cat dog runs sleeps eats"


def sentence_transformer(folder, words=WORDS):
    """Makes a random transformer of one layer over a vocabulary of words, without downloads."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words.split())}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {
        name: f"[{name[:3].upper()}]"
        for name in ("pad_token", "unk_token", "cls_token", "sep_token")
    }
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words.split()),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder)
    transformer = modules.Transformer(str(folder))
    pooling = modules.Pooling(transformer.get_word_embedding_dimension())
    return SentenceTransformer(modules=[transformer, pooling], device="cpu")


@pytest.mark.parametrize(
    ("name", "options"),
    (
        ("MultipleNegativesRankingLoss", {}),
        (
            "MultipleNegativesRankingLoss",
            {
                "directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
                "hardness_mode": "all_negatives",
                "hardness_strength": 2.0,
            },
        ),
        ("MultipleNegativesSymmetricRankingLoss", {}),
        ("CachedMultipleNegativesRankingLoss", {"mini_batch_size": 2}),
        ("CachedMultipleNegativesSymmetricRankingLoss", {"mini_batch_size": 2}),
        ("GISTEmbedLoss", {"margin": 0.02}),
        ("GISTEmbedLoss", {"margin_strategy": "relative", "contrast_positives": False}),
        ("CachedGISTEmbedLoss", {"mini_batch_size": 2, "margin": 0.02}),
    ),
)
@pytest.mark.parametrize("matryoshka", (False, True))
@pytest.mark.filterwarnings("ignore")
def test_sentence_transformers(name, options, matryoshka, tmp_path):
    """`SentenceTransformerTrainer` trains on triplets to the same weights.

    It does so also where the library's `MatryoshkaLoss` holds our loss.
    """
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses as peer

    from fused_contrastive.integrations import sentence_transformers as ours
    from fused_contrastive.integrations._common import FallbackWarning

    warnings.simplefilter("error", FallbackWarning)
    start = sentence_transformer(tmp_path / "model")
    # A guide with another vocabulary tokenizes the texts again.
    words = f"{WORDS} walks" if "margin_strategy" in options else WORDS
    guide = sentence_transformer(tmp_path / "guide", words) if "GIST" in name else None
    things = [
        f"{color} {animal}" for color in ("red", "green", "blue") for animal in ("cat", "dog")
    ]
    texts = {
        "anchor": things,
        "positive": [f"{x} runs" for x in things],
        "negative": [f"{x} sleeps" for x in things[::-1]],
    }
    trained = []
    for module in (ours, peer):
        model = copy.deepcopy(start)
        models = (model, copy.deepcopy(guide)) if "GIST" in name else (model,)
        loss = getattr(module, name)(*models, **options)
        if matryoshka:
            loss = peer.MatryoshkaLoss(model, loss, [16, 4])
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=str(tmp_path / "out"),
                max_steps=4,
                per_device_train_batch_size=3,
                learning_rate=1e-2,
                lr_scheduler_type="constant",
                optim="sgd",
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                seed=0,
                use_cpu=True,
            ),
            train_dataset=Dataset.from_dict(texts),
            loss=loss,
        )
        trainer.train()
        trained.append(model)
    same_weights(*trained, start)
