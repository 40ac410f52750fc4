# Made by `python tests/test_types.py --update` from the signatures. Do not edit.
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, Literal, TypeAlias, TypeVar, overload

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import Module

Backend: TypeAlias = Literal["eager", "panels", "cpu", "triton", "cuda"]
Candidates: TypeAlias = Literal["all", "not_self", "not_pair", "other_key", "same_key"]
ContrastMode: TypeAlias = Literal["all", "one"]
Direction: TypeAlias = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]
Fill: TypeAlias = Literal["random", "empty"]
HardnessMode: TypeAlias = Literal["all_negatives", "in_batch_negatives", "hard_negatives"]
Learnable: TypeAlias = Literal[False, True, "averaged"]
MaskSelf: TypeAlias = Literal["sum", "softmax"]
NegativeMode: TypeAlias = Literal["unpaired", "paired", "in_batch"]
Normalizer: TypeAlias = Literal[None, "dist_affinity_rms", "force_rms"]
Partition: TypeAlias = Literal["joint", "per_direction"]
Positives: TypeAlias = Literal["out", "in", "pairs"]
Reduction: TypeAlias = Literal["none", "mean", "sum"]
Strategy: TypeAlias = Literal["auto", "gather", "ring"]
Wrap: TypeAlias = Literal["drop", "exact", "around"]
Group: TypeAlias = ProcessGroup | DeviceMesh | Literal["world"] | None
WithMetrics: TypeAlias = tuple[Tensor, dict[str, Tensor]]
_R = TypeVar("_R")

__version__: str
__all__: list[str]

class BarlowTwinsLoss(Module):
    def __init__(
        self, lamb: float | Tensor = 0.005, scale_loss: float | Tensor = 1.0, *,
        group: Group = ..., backend: Backend | None = None,
    ) -> None: ...
    def forward(self, z1: Tensor, z2: Tensor) -> Tensor: ...
    def __call__(self, z1: Tensor, z2: Tensor) -> Tensor: ...
class CPCLoss(Module):
    def __init__(
        self, *, reduction: Reduction = "mean", group: Group = ..., strategy: Strategy = "auto",
        backend: Backend | None = None,
    ) -> None: ...
    def forward(
        self, predictions: Tensor, latents: Tensor, *, keys: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...
    def __call__(
        self, predictions: Tensor, latents: Tensor, *, keys: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...
class ClipLoss(Module, Generic[_R]):
    @overload
    def __init__(
        self: ClipLoss[WithMetrics], logit_scale: float | None = None, *,
        label_smoothing: float = 0.0, margin: float = 0.0, hardness: float = 0.0,
        reduction: Reduction = "mean", metrics: Literal[True], group: Group = ...,
        strategy: Strategy = "auto", backend: Backend | None = None, learnable: Learnable = False,
        max_scale: float | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: ClipLoss[Tensor], logit_scale: float | None = None, *, label_smoothing: float = 0.0,
        margin: float = 0.0, hardness: float = 0.0, reduction: Reduction = "mean",
        metrics: Literal[False] = False, group: Group = ..., strategy: Strategy = "auto",
        backend: Backend | None = None, learnable: Learnable = False,
        max_scale: float | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: ClipLoss[Tensor | WithMetrics], logit_scale: float | None = None, *,
        label_smoothing: float = 0.0, margin: float = 0.0, hardness: float = 0.0,
        reduction: Reduction = "mean", metrics: bool, group: Group = ...,
        strategy: Strategy = "auto", backend: Backend | None = None, learnable: Learnable = False,
        max_scale: float | None = None,
    ) -> None: ...
    def forward(
        self, image_features: Tensor, text_features: Tensor,
        logit_scale: float | Tensor | None = None, logit_bias: float | Tensor | None = None, *,
        keys: Tensor | None = None, weights: Tensor | None = None,
        bias: Tensor | tuple[Tensor, Tensor] | None = None,
    ) -> _R: ...
    def __call__(
        self, image_features: Tensor, text_features: Tensor,
        logit_scale: float | Tensor | None = None, logit_bias: float | Tensor | None = None, *,
        keys: Tensor | None = None, weights: Tensor | None = None,
        bias: Tensor | tuple[Tensor, Tensor] | None = None,
    ) -> _R: ...
class ContrastiveForceLoss(Module):
    def __init__(
        self, temperatures: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2), *,
        mask_self: MaskSelf = "sum", normalizer: Normalizer = "dist_affinity_rms",
        scale: float | Tensor | None = None, detach_scale: bool = False,
        affinity_floor: float = 0.0, reduction: Reduction = "none", group: Group = ...,
        strategy: Strategy = "auto", backend: Backend | None = None,
    ) -> None: ...
    def forward(self, positive: Tensor, negative: Tensor) -> Tensor: ...
    def __call__(self, positive: Tensor, negative: Tensor) -> Tensor: ...
class CorrelationLoss(Module):
    def __init__(
        self, lamb: float | Tensor = 0.005, scale_loss: float | Tensor = 0.025, *,
        group: Group = ..., backend: Backend | None = None,
    ) -> None: ...
    def forward(self, z1: Tensor, z2: Tensor) -> Tensor: ...
    def __call__(self, z1: Tensor, z2: Tensor) -> Tensor: ...
class DCLLoss(Module, Generic[_R]):
    @property
    def temperature(self) -> float | Tensor: ...
    @overload
    def __init__(
        self: DCLLoss[WithMetrics], temperature: float = 0.1, *, normalize: bool = True,
        reduction: Reduction = "mean", metrics: Literal[True], group: Group = ...,
        strategy: Strategy = "auto", backend: Backend | None = None, learnable: Learnable = False,
        max_scale: float | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: DCLLoss[Tensor], temperature: float = 0.1, *, normalize: bool = True,
        reduction: Reduction = "mean", metrics: Literal[False] = False, group: Group = ...,
        strategy: Strategy = "auto", backend: Backend | None = None, learnable: Learnable = False,
        max_scale: float | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: DCLLoss[Tensor | WithMetrics], temperature: float = 0.1, *, normalize: bool = True,
        reduction: Reduction = "mean", metrics: bool, group: Group = ...,
        strategy: Strategy = "auto", backend: Backend | None = None, learnable: Learnable = False,
        max_scale: float | None = None,
    ) -> None: ...
    def forward(
        self, z1: Tensor, z2: Tensor, *, keys: Tensor | None = None, weights: Tensor | None = None,
    ) -> _R: ...
    def __call__(
        self, z1: Tensor, z2: Tensor, *, keys: Tensor | None = None, weights: Tensor | None = None,
    ) -> _R: ...
class DCLWLoss(Module, Generic[_R]):
    @property
    def temperature(self) -> float | Tensor: ...
    @overload
    def __init__(
        self: DCLWLoss[WithMetrics], temperature: float = 0.1, sigma: float | Tensor = 0.5, *,
        normalize: bool = True, reduction: Reduction = "mean", metrics: Literal[True],
        group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
        learnable: Learnable = False, max_scale: float | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: DCLWLoss[Tensor], temperature: float = 0.1, sigma: float | Tensor = 0.5, *,
        normalize: bool = True, reduction: Reduction = "mean", metrics: Literal[False] = False,
        group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
        learnable: Learnable = False, max_scale: float | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: DCLWLoss[Tensor | WithMetrics], temperature: float = 0.1,
        sigma: float | Tensor = 0.5, *, normalize: bool = True, reduction: Reduction = "mean",
        metrics: bool, group: Group = ..., strategy: Strategy = "auto",
        backend: Backend | None = None, learnable: Learnable = False,
        max_scale: float | None = None,
    ) -> None: ...
    def forward(
        self, z1: Tensor, z2: Tensor, *, keys: Tensor | None = None, weights: Tensor | None = None,
    ) -> _R: ...
    def __call__(
        self, z1: Tensor, z2: Tensor, *, keys: Tensor | None = None, weights: Tensor | None = None,
    ) -> _R: ...
class DistillClipLoss(Module):
    def __init__(
        self, *, reduction: Reduction = "mean", group: Group = ..., strategy: Strategy = "auto",
        backend: Backend | None = None,
    ) -> None: ...
    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: float | Tensor,
        teacher_image_features: Tensor, teacher_text_features: Tensor,
        teacher_logit_scale: float | Tensor, *, weights: Tensor | None = None,
    ) -> Tensor: ...
    def __call__(
        self, image_features: Tensor, text_features: Tensor, logit_scale: float | Tensor,
        teacher_image_features: Tensor, teacher_text_features: Tensor,
        teacher_logit_scale: float | Tensor, *, weights: Tensor | None = None,
    ) -> Tensor: ...
class DriftLoss(Module):
    def __init__(
        self, temperatures: Sequence[float] = (0.02, 0.05, 0.2), *, group: Group = ...,
        strategy: Strategy = "auto", backend: Backend | None = None,
    ) -> None: ...
    def forward(
        self, gen: Tensor, positive: Tensor, negative: Tensor | None = None,
        **weights: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]: ...
    def __call__(
        self, gen: Tensor, positive: Tensor, negative: Tensor | None = None,
        **weights: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]: ...
class InfoNCELoss(Module, Generic[_R]):
    @property
    def temperature(self) -> float | Tensor: ...
    @overload
    def __init__(
        self: InfoNCELoss[WithMetrics], temperature: float = 0.1, *,
        negative_mode: NegativeMode = "unpaired", normalize: bool = True, symmetric: bool = False,
        label_smoothing: float = 0.0, margin: float = 0.0, hardness: float = 0.0,
        tau_plus: float = 0.0, reduction: Reduction = "mean", metrics: Literal[True],
        group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
        learnable: Learnable = False, max_scale: float | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: InfoNCELoss[Tensor], temperature: float = 0.1, *,
        negative_mode: NegativeMode = "unpaired", normalize: bool = True, symmetric: bool = False,
        label_smoothing: float = 0.0, margin: float = 0.0, hardness: float = 0.0,
        tau_plus: float = 0.0, reduction: Reduction = "mean", metrics: Literal[False] = False,
        group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
        learnable: Learnable = False, max_scale: float | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: InfoNCELoss[Tensor | WithMetrics], temperature: float = 0.1, *,
        negative_mode: NegativeMode = "unpaired", normalize: bool = True, symmetric: bool = False,
        label_smoothing: float = 0.0, margin: float = 0.0, hardness: float = 0.0,
        tau_plus: float = 0.0, reduction: Reduction = "mean", metrics: bool, group: Group = ...,
        strategy: Strategy = "auto", backend: Backend | None = None, learnable: Learnable = False,
        max_scale: float | None = None,
    ) -> None: ...
    def forward(
        self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None, *,
        keys: Tensor | None = None, weights: Tensor | None = None, bias: Tensor | None = None,
    ) -> _R: ...
    def __call__(
        self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None, *,
        keys: Tensor | None = None, weights: Tensor | None = None, bias: Tensor | None = None,
    ) -> _R: ...
class MemoryBank(Module):
    rows: Tensor
    def __init__(
        self, size: int, dim: int, *, wrap: Wrap = "drop", fill: Fill = "random",
        labels: bool = False, persistent: bool = True,
        device: torch.device | str | int | None = None, dtype: torch.dtype = ...,
    ) -> None: ...
    def reset(self) -> None: ...
    def __len__(self) -> int: ...
    @property
    def negatives(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor | None: ...
    def enqueue(
        self, keys: Tensor | None, labels: Tensor | None = None, *, group: Group = None,
    ) -> None: ...
class MultipleNegativesRankingLoss(Module, Generic[_R]):
    @property
    def temperature(self) -> float | Tensor: ...
    @overload
    def __init__(
        self: MultipleNegativesRankingLoss[WithMetrics], temperature: float = 0.05, *,
        directions: Sequence[Direction] = ('query_to_doc',), partition: Partition = "joint",
        normalize: bool = True, hardness: float = 0.0,
        hardness_mode: HardnessMode = "all_negatives", reduction: Reduction = "mean",
        metrics: Literal[True], group: Group = ..., strategy: Strategy = "auto",
        backend: Backend | None = None, learnable: Learnable = False,
        max_scale: float | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: MultipleNegativesRankingLoss[Tensor], temperature: float = 0.05, *,
        directions: Sequence[Direction] = ('query_to_doc',), partition: Partition = "joint",
        normalize: bool = True, hardness: float = 0.0,
        hardness_mode: HardnessMode = "all_negatives", reduction: Reduction = "mean",
        metrics: Literal[False] = False, group: Group = ..., strategy: Strategy = "auto",
        backend: Backend | None = None, learnable: Learnable = False,
        max_scale: float | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: MultipleNegativesRankingLoss[Tensor | WithMetrics], temperature: float = 0.05, *,
        directions: Sequence[Direction] = ('query_to_doc',), partition: Partition = "joint",
        normalize: bool = True, hardness: float = 0.0,
        hardness_mode: HardnessMode = "all_negatives", reduction: Reduction = "mean",
        metrics: bool, group: Group = ..., strategy: Strategy = "auto",
        backend: Backend | None = None, learnable: Learnable = False,
        max_scale: float | None = None,
    ) -> None: ...
    def forward(
        self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None, *,
        keys: Tensor | None = None, weights: Tensor | None = None,
    ) -> _R: ...
    def __call__(
        self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None, *,
        keys: Tensor | None = None, weights: Tensor | None = None,
    ) -> _R: ...
class NPairsLoss(Module, Generic[_R]):
    @overload
    def __init__(
        self: NPairsLoss[WithMetrics], *, normalize: bool = True, label_smoothing: float = 0.0,
        margin: float = 0.0, reduction: Reduction = "mean", metrics: Literal[True],
        group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: NPairsLoss[Tensor], *, normalize: bool = True, label_smoothing: float = 0.0,
        margin: float = 0.0, reduction: Reduction = "mean", metrics: Literal[False] = False,
        group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: NPairsLoss[Tensor | WithMetrics], *, normalize: bool = True,
        label_smoothing: float = 0.0, margin: float = 0.0, reduction: Reduction = "mean",
        metrics: bool, group: Group = ..., strategy: Strategy = "auto",
        backend: Backend | None = None,
    ) -> None: ...
    def forward(
        self, anchors: Tensor, positives: Tensor, target: Tensor | None = None, *,
        keys: Tensor | None = None, weights: Tensor | None = None, bias: Tensor | None = None,
    ) -> _R: ...
    def __call__(
        self, anchors: Tensor, positives: Tensor, target: Tensor | None = None, *,
        keys: Tensor | None = None, weights: Tensor | None = None, bias: Tensor | None = None,
    ) -> _R: ...
class NTXentLoss(Module, Generic[_R]):
    @property
    def temperature(self) -> float | Tensor: ...
    @overload
    def __init__(
        self: NTXentLoss[WithMetrics], temperature: float = 0.5, *, normalize: bool = True,
        label_smoothing: float = 0.0, margin: float = 0.0, hardness: float = 0.0,
        tau_plus: float = 0.0, reduction: Reduction = "mean", metrics: Literal[True],
        group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
        learnable: Learnable = False, max_scale: float | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: NTXentLoss[Tensor], temperature: float = 0.5, *, normalize: bool = True,
        label_smoothing: float = 0.0, margin: float = 0.0, hardness: float = 0.0,
        tau_plus: float = 0.0, reduction: Reduction = "mean", metrics: Literal[False] = False,
        group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
        learnable: Learnable = False, max_scale: float | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: NTXentLoss[Tensor | WithMetrics], temperature: float = 0.5, *,
        normalize: bool = True, label_smoothing: float = 0.0, margin: float = 0.0,
        hardness: float = 0.0, tau_plus: float = 0.0, reduction: Reduction = "mean", metrics: bool,
        group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
        learnable: Learnable = False, max_scale: float | None = None,
    ) -> None: ...
    def forward(
        self, z1: Tensor, z2: Tensor, *, keys: Tensor | None = None, weights: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> _R: ...
    def __call__(
        self, z1: Tensor, z2: Tensor, *, keys: Tensor | None = None, weights: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> _R: ...
class SigLipLoss(Module, Generic[_R]):
    @overload
    def __init__(
        self: SigLipLoss[WithMetrics], logit_scale: float | None = None,
        logit_bias: float | None = None, *, reduction: Reduction = "mean", metrics: Literal[True],
        group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
        learnable: Learnable = False, max_scale: float | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: SigLipLoss[Tensor], logit_scale: float | None = None,
        logit_bias: float | None = None, *, reduction: Reduction = "mean",
        metrics: Literal[False] = False, group: Group = ..., strategy: Strategy = "auto",
        backend: Backend | None = None, learnable: Learnable = False,
        max_scale: float | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: SigLipLoss[Tensor | WithMetrics], logit_scale: float | None = None,
        logit_bias: float | None = None, *, reduction: Reduction = "mean", metrics: bool,
        group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
        learnable: Learnable = False, max_scale: float | None = None,
    ) -> None: ...
    def forward(
        self, image_features: Tensor, text_features: Tensor,
        logit_scale: float | Tensor | None = None, logit_bias: float | Tensor | None = None, *,
        keys: Tensor | None = None, weights: Tensor | None = None,
    ) -> _R: ...
    def __call__(
        self, image_features: Tensor, text_features: Tensor,
        logit_scale: float | Tensor | None = None, logit_bias: float | Tensor | None = None, *,
        keys: Tensor | None = None, weights: Tensor | None = None,
    ) -> _R: ...
class SupConLoss(Module, Generic[_R]):
    @property
    def temperature(self) -> float | Tensor: ...
    @overload
    def __init__(
        self: SupConLoss[WithMetrics], temperature: float = 0.1, *, positives: Positives = "out",
        contrast_mode: ContrastMode = "all", normalize: bool = True, skip_unmatched: bool = False,
        reduction: Reduction = "mean", metrics: Literal[True], group: Group = ...,
        strategy: Strategy = "auto", backend: Backend | None = None, learnable: Learnable = False,
        max_scale: float | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: SupConLoss[Tensor], temperature: float = 0.1, *, positives: Positives = "out",
        contrast_mode: ContrastMode = "all", normalize: bool = True, skip_unmatched: bool = False,
        reduction: Reduction = "mean", metrics: Literal[False] = False, group: Group = ...,
        strategy: Strategy = "auto", backend: Backend | None = None, learnable: Learnable = False,
        max_scale: float | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: SupConLoss[Tensor | WithMetrics], temperature: float = 0.1, *,
        positives: Positives = "out", contrast_mode: ContrastMode = "all", normalize: bool = True,
        skip_unmatched: bool = False, reduction: Reduction = "mean", metrics: bool,
        group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
        learnable: Learnable = False, max_scale: float | None = None,
    ) -> None: ...
    def forward(
        self, features: Tensor, labels: Tensor | None = None, *,
        positive_weights: Tensor | None = None, weights: Tensor | None = None,
    ) -> _R: ...
    def __call__(
        self, features: Tensor, labels: Tensor | None = None, *,
        positive_weights: Tensor | None = None, weights: Tensor | None = None,
    ) -> _R: ...
def backends() -> dict[str, str]: ...
def barlow_twins_loss(
    z1: Tensor, z2: Tensor, lamb: float | Tensor = 0.005, scale_loss: float | Tensor = 1.0, *,
    group: Group = ..., backend: Backend | None = None,
) -> Tensor: ...
def cached_step(
    encoders: Callable[..., Any] | Sequence[Callable[..., Any]], inputs: Any, loss_fn: Callable, *,
    chunk_size: int | Sequence[int], scaler: torch.amp.GradScaler | None = None,
) -> Any: ...
@overload
def clip_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None, *, keys: Tensor | None = None,
    weights: Tensor | None = None, bias: Tensor | tuple[Tensor, Tensor] | None = None,
    label_smoothing: float = 0.0, margin: float = 0.0, hardness: float = 0.0,
    reduction: Reduction = "mean", metrics: Literal[True], group: Group = ...,
    strategy: Strategy = "auto", backend: Backend | None = None,
) -> WithMetrics: ...
@overload
def clip_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None, *, keys: Tensor | None = None,
    weights: Tensor | None = None, bias: Tensor | tuple[Tensor, Tensor] | None = None,
    label_smoothing: float = 0.0, margin: float = 0.0, hardness: float = 0.0,
    reduction: Reduction = "mean", metrics: Literal[False] = False, group: Group = ...,
    strategy: Strategy = "auto", backend: Backend | None = None,
) -> Tensor: ...
@overload
def clip_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None, *, keys: Tensor | None = None,
    weights: Tensor | None = None, bias: Tensor | tuple[Tensor, Tensor] | None = None,
    label_smoothing: float = 0.0, margin: float = 0.0, hardness: float = 0.0,
    reduction: Reduction = "mean", metrics: bool, group: Group = ..., strategy: Strategy = "auto",
    backend: Backend | None = None,
) -> Tensor | WithMetrics: ...
def contrastive_force(
    positive: Tensor, negative: Tensor, temperature: float | Tensor, *,
    mask_self: MaskSelf = "sum", normalizer: Normalizer = None, affinity_floor: float = 0.0,
    group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
) -> Tensor: ...
def contrastive_force_loss(
    positive: Tensor, negative: Tensor,
    temperatures: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2), *, mask_self: MaskSelf = "sum",
    normalizer: Normalizer = "dist_affinity_rms", scale: float | Tensor | None = None,
    detach_scale: bool = False, affinity_floor: float = 0.0, reduction: Reduction = "none",
    group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
) -> Tensor: ...
def correlation_loss(
    z1: Tensor, z2: Tensor, lamb: float | Tensor = 0.005, scale_loss: float | Tensor = 0.025, *,
    group: Group = ..., backend: Backend | None = None,
) -> Tensor: ...
def cpc_loss(
    predictions: Tensor, latents: Tensor, *, keys: Tensor | None = None,
    weights: Tensor | None = None, reduction: Reduction = "mean", group: Group = ...,
    strategy: Strategy = "auto", backend: Backend | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def dcl_loss(
    z1: Tensor, z2: Tensor, temperature: float | Tensor = 0.1, *, normalize: bool = True,
    keys: Tensor | None = None, weights: Tensor | None = None, reduction: Reduction = "mean",
    metrics: Literal[True], group: Group = ..., strategy: Strategy = "auto",
    backend: Backend | None = None,
) -> WithMetrics: ...
@overload
def dcl_loss(
    z1: Tensor, z2: Tensor, temperature: float | Tensor = 0.1, *, normalize: bool = True,
    keys: Tensor | None = None, weights: Tensor | None = None, reduction: Reduction = "mean",
    metrics: Literal[False] = False, group: Group = ..., strategy: Strategy = "auto",
    backend: Backend | None = None,
) -> Tensor: ...
@overload
def dcl_loss(
    z1: Tensor, z2: Tensor, temperature: float | Tensor = 0.1, *, normalize: bool = True,
    keys: Tensor | None = None, weights: Tensor | None = None, reduction: Reduction = "mean",
    metrics: bool, group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
) -> Tensor | WithMetrics: ...
@overload
def dclw_loss(
    z1: Tensor, z2: Tensor, temperature: float | Tensor = 0.1, sigma: float | Tensor = 0.5, *,
    normalize: bool = True, keys: Tensor | None = None, weights: Tensor | None = None,
    reduction: Reduction = "mean", metrics: Literal[True], group: Group = ...,
    strategy: Strategy = "auto", backend: Backend | None = None,
) -> WithMetrics: ...
@overload
def dclw_loss(
    z1: Tensor, z2: Tensor, temperature: float | Tensor = 0.1, sigma: float | Tensor = 0.5, *,
    normalize: bool = True, keys: Tensor | None = None, weights: Tensor | None = None,
    reduction: Reduction = "mean", metrics: Literal[False] = False, group: Group = ...,
    strategy: Strategy = "auto", backend: Backend | None = None,
) -> Tensor: ...
@overload
def dclw_loss(
    z1: Tensor, z2: Tensor, temperature: float | Tensor = 0.1, sigma: float | Tensor = 0.5, *,
    normalize: bool = True, keys: Tensor | None = None, weights: Tensor | None = None,
    reduction: Reduction = "mean", metrics: bool, group: Group = ..., strategy: Strategy = "auto",
    backend: Backend | None = None,
) -> Tensor | WithMetrics: ...
def distill_clip_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: float | Tensor,
    teacher_image_features: Tensor, teacher_text_features: Tensor,
    teacher_logit_scale: float | Tensor, *, weights: Tensor | None = None,
    reduction: Reduction = "mean", group: Group = ..., strategy: Strategy = "auto",
    backend: Backend | None = None,
) -> Tensor: ...
def drift_field(
    gen: Tensor, positive: Tensor, temperature: float | Tensor = 0.05, *,
    backend: Backend | None = None,
) -> Tensor: ...
def drift_loss(
    gen: Tensor, positive: Tensor, negative: Tensor | None = None, *,
    weight_gen: Tensor | None = None, weight_positive: Tensor | None = None,
    weight_negative: Tensor | None = None, temperatures: Sequence[float] = (0.02, 0.05, 0.2),
    group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
) -> tuple[Tensor, dict[str, Tensor]]: ...
@overload
def info_nce_loss(
    query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None,
    temperature: float | Tensor = 0.1, *, negative_mode: NegativeMode = "unpaired",
    normalize: bool = True, symmetric: bool = False, keys: Tensor | None = None,
    weights: Tensor | None = None, bias: Tensor | None = None, label_smoothing: float = 0.0,
    margin: float = 0.0, hardness: float = 0.0, tau_plus: float = 0.0,
    reduction: Reduction = "mean", metrics: Literal[True], group: Group = ...,
    strategy: Strategy = "auto", backend: Backend | None = None,
) -> WithMetrics: ...
@overload
def info_nce_loss(
    query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None,
    temperature: float | Tensor = 0.1, *, negative_mode: NegativeMode = "unpaired",
    normalize: bool = True, symmetric: bool = False, keys: Tensor | None = None,
    weights: Tensor | None = None, bias: Tensor | None = None, label_smoothing: float = 0.0,
    margin: float = 0.0, hardness: float = 0.0, tau_plus: float = 0.0,
    reduction: Reduction = "mean", metrics: Literal[False] = False, group: Group = ...,
    strategy: Strategy = "auto", backend: Backend | None = None,
) -> Tensor: ...
@overload
def info_nce_loss(
    query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None,
    temperature: float | Tensor = 0.1, *, negative_mode: NegativeMode = "unpaired",
    normalize: bool = True, symmetric: bool = False, keys: Tensor | None = None,
    weights: Tensor | None = None, bias: Tensor | None = None, label_smoothing: float = 0.0,
    margin: float = 0.0, hardness: float = 0.0, tau_plus: float = 0.0,
    reduction: Reduction = "mean", metrics: bool, group: Group = ..., strategy: Strategy = "auto",
    backend: Backend | None = None,
) -> Tensor | WithMetrics: ...
@overload
def multiple_negatives_ranking_loss(
    query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None,
    temperature: float | Tensor = 0.05, *, directions: Sequence[Direction] = ('query_to_doc',),
    partition: Partition = "joint", normalize: bool = True, keys: Tensor | None = None,
    weights: Tensor | None = None, hardness: float = 0.0,
    hardness_mode: HardnessMode = "all_negatives", reduction: Reduction = "mean",
    metrics: Literal[True], group: Group = ..., strategy: Strategy = "auto",
    backend: Backend | None = None,
) -> WithMetrics: ...
@overload
def multiple_negatives_ranking_loss(
    query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None,
    temperature: float | Tensor = 0.05, *, directions: Sequence[Direction] = ('query_to_doc',),
    partition: Partition = "joint", normalize: bool = True, keys: Tensor | None = None,
    weights: Tensor | None = None, hardness: float = 0.0,
    hardness_mode: HardnessMode = "all_negatives", reduction: Reduction = "mean",
    metrics: Literal[False] = False, group: Group = ..., strategy: Strategy = "auto",
    backend: Backend | None = None,
) -> Tensor: ...
@overload
def multiple_negatives_ranking_loss(
    query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None,
    temperature: float | Tensor = 0.05, *, directions: Sequence[Direction] = ('query_to_doc',),
    partition: Partition = "joint", normalize: bool = True, keys: Tensor | None = None,
    weights: Tensor | None = None, hardness: float = 0.0,
    hardness_mode: HardnessMode = "all_negatives", reduction: Reduction = "mean", metrics: bool,
    group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
) -> Tensor | WithMetrics: ...
@overload
def n_pairs_loss(
    anchors: Tensor, positives: Tensor, target: Tensor | None = None, *, normalize: bool = True,
    keys: Tensor | None = None, weights: Tensor | None = None, bias: Tensor | None = None,
    label_smoothing: float = 0.0, margin: float = 0.0, reduction: Reduction = "mean",
    metrics: Literal[True], group: Group = ..., strategy: Strategy = "auto",
    backend: Backend | None = None,
) -> WithMetrics: ...
@overload
def n_pairs_loss(
    anchors: Tensor, positives: Tensor, target: Tensor | None = None, *, normalize: bool = True,
    keys: Tensor | None = None, weights: Tensor | None = None, bias: Tensor | None = None,
    label_smoothing: float = 0.0, margin: float = 0.0, reduction: Reduction = "mean",
    metrics: Literal[False] = False, group: Group = ..., strategy: Strategy = "auto",
    backend: Backend | None = None,
) -> Tensor: ...
@overload
def n_pairs_loss(
    anchors: Tensor, positives: Tensor, target: Tensor | None = None, *, normalize: bool = True,
    keys: Tensor | None = None, weights: Tensor | None = None, bias: Tensor | None = None,
    label_smoothing: float = 0.0, margin: float = 0.0, reduction: Reduction = "mean",
    metrics: bool, group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
) -> Tensor | WithMetrics: ...
@overload
def nt_xent_loss(
    z1: Tensor, z2: Tensor, temperature: float | Tensor = 0.5, *, normalize: bool = True,
    keys: Tensor | None = None, weights: Tensor | None = None, bias: Tensor | None = None,
    label_smoothing: float = 0.0, margin: float = 0.0, hardness: float = 0.0,
    tau_plus: float = 0.0, reduction: Reduction = "mean", metrics: Literal[True],
    group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
) -> WithMetrics: ...
@overload
def nt_xent_loss(
    z1: Tensor, z2: Tensor, temperature: float | Tensor = 0.5, *, normalize: bool = True,
    keys: Tensor | None = None, weights: Tensor | None = None, bias: Tensor | None = None,
    label_smoothing: float = 0.0, margin: float = 0.0, hardness: float = 0.0,
    tau_plus: float = 0.0, reduction: Reduction = "mean", metrics: Literal[False] = False,
    group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
) -> Tensor: ...
@overload
def nt_xent_loss(
    z1: Tensor, z2: Tensor, temperature: float | Tensor = 0.5, *, normalize: bool = True,
    keys: Tensor | None = None, weights: Tensor | None = None, bias: Tensor | None = None,
    label_smoothing: float = 0.0, margin: float = 0.0, hardness: float = 0.0,
    tau_plus: float = 0.0, reduction: Reduction = "mean", metrics: bool, group: Group = ...,
    strategy: Strategy = "auto", backend: Backend | None = None,
) -> Tensor | WithMetrics: ...
def set_backend(name: Backend | None) -> None: ...
@overload
def siglip_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: float | Tensor,
    logit_bias: float | Tensor, *, keys: Tensor | None = None, weights: Tensor | None = None,
    reduction: Reduction = "mean", metrics: Literal[True], group: Group = ...,
    strategy: Strategy = "auto", backend: Backend | None = None,
) -> WithMetrics: ...
@overload
def siglip_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: float | Tensor,
    logit_bias: float | Tensor, *, keys: Tensor | None = None, weights: Tensor | None = None,
    reduction: Reduction = "mean", metrics: Literal[False] = False, group: Group = ...,
    strategy: Strategy = "auto", backend: Backend | None = None,
) -> Tensor: ...
@overload
def siglip_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: float | Tensor,
    logit_bias: float | Tensor, *, keys: Tensor | None = None, weights: Tensor | None = None,
    reduction: Reduction = "mean", metrics: bool, group: Group = ..., strategy: Strategy = "auto",
    backend: Backend | None = None,
) -> Tensor | WithMetrics: ...
def similarity_heatmap(x1: Tensor, x2: Tensor, *, ax: Any = None) -> Any: ...
@overload
def similarity_logsumexp(
    a: Tensor, b: Tensor | None = None, *, scale: float | Tensor = 1.0, bias: Tensor | None = None,
    normalize: bool = False, candidates: Candidates = "all", self_offset: int | None = None,
    pair_stride: int | None = None, key_a: Tensor | None = None, key_b: Tensor | None = None,
    return_columns: Literal[True], group: Group = None, strategy: Strategy = "auto",
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def similarity_logsumexp(
    a: Tensor, b: Tensor | None = None, *, scale: float | Tensor = 1.0, bias: Tensor | None = None,
    normalize: bool = False, candidates: Candidates = "all", self_offset: int | None = None,
    pair_stride: int | None = None, key_a: Tensor | None = None, key_b: Tensor | None = None,
    return_columns: Literal[False] = False, group: Group = None, strategy: Strategy = "auto",
    backend: Backend | None = None,
) -> Tensor: ...
@overload
def similarity_logsumexp(
    a: Tensor, b: Tensor | None = None, *, scale: float | Tensor = 1.0, bias: Tensor | None = None,
    normalize: bool = False, candidates: Candidates = "all", self_offset: int | None = None,
    pair_stride: int | None = None, key_a: Tensor | None = None, key_b: Tensor | None = None,
    return_columns: bool, group: Group = None, strategy: Strategy = "auto",
    backend: Backend | None = None,
) -> Tensor | tuple[Tensor, Tensor]: ...
@overload
def sup_con_loss(
    features: Tensor, labels: Tensor | None = None, temperature: float | Tensor = 0.1, *,
    positives: Positives = "out", positive_weights: Tensor | None = None,
    contrast_mode: ContrastMode = "all", normalize: bool = True, skip_unmatched: bool = False,
    weights: Tensor | None = None, reduction: Reduction = "mean", metrics: Literal[True],
    group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
) -> WithMetrics: ...
@overload
def sup_con_loss(
    features: Tensor, labels: Tensor | None = None, temperature: float | Tensor = 0.1, *,
    positives: Positives = "out", positive_weights: Tensor | None = None,
    contrast_mode: ContrastMode = "all", normalize: bool = True, skip_unmatched: bool = False,
    weights: Tensor | None = None, reduction: Reduction = "mean", metrics: Literal[False] = False,
    group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
) -> Tensor: ...
@overload
def sup_con_loss(
    features: Tensor, labels: Tensor | None = None, temperature: float | Tensor = 0.1, *,
    positives: Positives = "out", positive_weights: Tensor | None = None,
    contrast_mode: ContrastMode = "all", normalize: bool = True, skip_unmatched: bool = False,
    weights: Tensor | None = None, reduction: Reduction = "mean", metrics: bool,
    group: Group = ..., strategy: Strategy = "auto", backend: Backend | None = None,
) -> Tensor | WithMetrics: ...
def use_backend(name: Backend | None) -> AbstractContextManager[None]: ...
