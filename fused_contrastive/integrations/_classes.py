"""Which losses of each package stream here, and what the others are: one table per package.

docs/drop_ins.md shows the tables (``python -m bench.drop_ins`` writes them), and a name that an
integration lacks gives an error with its line. The tests compare them with the installed packages.
"""

from __future__ import annotations

import dis
import sys
from types import FrameType
from typing import NamedTuple


class Line(NamedTuple):
    """One line of a table, about losses of which the same is true."""

    names: tuple[str, ...]
    streams: str = ""  # what streams; empty where the integration does not have the class
    own: str = ""  # when the package's own code runs
    instead: str = ""  # what to use where the class is absent


class Table(NamedTuple):
    """The public losses of a module of another package."""

    module: str  # what the lines list the losses of
    lines: tuple[Line, ...]
    patched: bool = True  # whether the integration has a `patch`

    def line(self, name: str) -> Line | None:
        """The line of a loss; None: the package has no such loss."""
        return next((x for x in self.lines if name in x.names), None)

    def streaming(self) -> list[str]:
        """The losses that the integration has."""
        return sorted(name for x in self.lines if x.streams for name in x.names)


NO_MATRIX = "import it from the package; it makes no matrix of samples with samples"
NOT_STREAMED = "import it from the package; it has no streaming form here"
WRAPPER = "import it from the package and give it a loss from here; it works unchanged"

TABLES = {
    "open_clip": Table(
        "open_clip.loss",
        (
            Line(
                ("ClipLoss", "CoCaLoss"),
                "every option; in CoCaLoss the contrastive term",
                "a scale or bias of several elements; features are gathered by open_clip's own "
                "code for `local_loss` without `gather_with_grad`",
            ),
            Line(
                ("SigLipLoss",),
                "every option and `dist_impl`",
                "a scale or bias of several elements",
            ),
            Line(
                ("DistillClipLoss",),
                "both terms, with the teacher's features as constants",
                "a teacher that needs a gradient; a scale of several elements; several ranks with "
                "`local_loss` and without `gather_with_grad`, or with Horovod",
            ),
        ),
    ),
    "lightly": Table(
        "lightly.loss",
        (
            Line(
                ("NTXentLoss", "DirectCLRLoss"),
                "every option: memory bank, `gather_distributed`",
                "a temperature of several elements or infinite; a bank of another dtype or width",
            ),
            Line(
                ("DCLLoss", "DCLWLoss"),
                "every option: `weight_fn`, `gather_distributed`",
                "a temperature of several elements, infinite or 0",
            ),
            Line(
                ("BarlowTwinsLoss",),
                "every option, by the smaller of D × D and N × N",
                "inputs that do not have two dimensions; ranks with different numbers of samples",
            ),
            Line(
                (
                    "CAPILoss",
                    "DINOLoss",
                    "EMPSSLLoss",
                    "IBOTPatchLoss",
                    "IBOTPlusPlusPatchLoss",
                    "LeJEPALoss",
                    "LeWMLoss",
                    "MMCRLoss",
                    "MSNLoss",
                    "NegativeCosineSimilarity",
                    "PMSNCustomLoss",
                    "PMSNLoss",
                    "SIGReg",
                    "SwaVLoss",
                    "TiCoLoss",
                    "VICRegLLoss",
                    "VICRegLoss",
                    "VISRegLoss",
                    "VISRegLossComponents",
                    "WMSELoss",
                    "Whitening2d",
                ),
                instead=NO_MATRIX,
            ),
            Line(
                (
                    "DetConBLoss",
                    "DetConSLoss",
                    "FroSSLLoss",
                    "KoLeoLoss",
                    "MACLLoss",
                    "PatchKernelAlignmentLoss",
                ),
                instead=NOT_STREAMED,
            ),
        ),
    ),
    "pytorch_metric_learning": Table(
        "pytorch_metric_learning.losses",
        (
            Line(
                ("NTXentLoss", "SupConLoss"),
                "labels, `ref_emb`, miners, reducers, regularizers; `CosineSimilarity` and "
                "`DotProductSimilarity`",
                "other distances or `power`; labels that are not integers; a temperature of "
                "several elements, 0 or infinite",
            ),
            Line(
                ("NPairsLoss",),
                "labels, miners, reducers, regularizers; the two distances above",
                "other distances or `power`",
            ),
            Line(
                ("BaseLossWrapper", "CrossBatchMemory", "MultipleLosses", "SelfSupervisedLoss"),
                instead=WRAPPER,
            ),
            Line(
                (
                    "BaseMetricLossFunction",
                    "EmbeddingRegularizerMixin",
                    "GenericPairLoss",
                    "WeightRegularizerMixin",
                ),
                instead="import it from the package; it is no loss by itself",
            ),
            Line(
                (
                    "ArcFaceLoss",
                    "CosFaceLoss",
                    "LargeMarginSoftmaxLoss",
                    "NormalizedSoftmaxLoss",
                    "P2SGradLoss",
                    "ProxyAnchorLoss",
                    "ProxyNCALoss",
                    "SoftTripleLoss",
                    "SphereFaceLoss",
                    "SubCenterArcFaceLoss",
                    "VICRegLoss",
                ),
                instead=NO_MATRIX,
            ),
            Line(
                (
                    "AngularLoss",
                    "CircleLoss",
                    "ContrastiveLoss",
                    "DynamicSoftMarginLoss",
                    "FastAPLoss",
                    "GeneralizedLiftedStructureLoss",
                    "HistogramLoss",
                    "InstanceLoss",
                    "IntraPairVarianceLoss",
                    "LiftedStructureLoss",
                    "ManifoldLoss",
                    "MarginLoss",
                    "MultiSimilarityLoss",
                    "NCALoss",
                    "PNPLoss",
                    "RankedListLoss",
                    "SignalToNoiseRatioContrastiveLoss",
                    "SmoothAPLoss",
                    "ThresholdConsistentMarginLoss",
                    "TripletMarginLoss",
                    "TupletMarginLoss",
                ),
                instead=NOT_STREAMED,
            ),
        ),
    ),
    "info_nce": Table(
        "info_nce",
        (
            Line(
                ("InfoNCE", "info_nce"),
                "every option",
                "a temperature of several elements, 0 or infinite",
            ),
        ),
    ),
    "sentence_transformers": Table(
        "sentence_transformers.sentence_transformer.losses and .sparse_encoder.losses",
        (
            Line(
                (
                    "CachedMultipleNegativesRankingLoss",
                    "CachedMultipleNegativesSymmetricRankingLoss",
                    "MultipleNegativesRankingLoss",
                    "MultipleNegativesSymmetricRankingLoss",
                    "SparseMultipleNegativesRankingLoss",
                ),
                "every option: directions, hardness, hard negatives, `gather_across_devices`",
                "similarity functions other than `cos_sim` and `dot_score`; sparse tensors; a "
                "scale of several elements; hard negatives that are not one per query and column",
            ),
            Line(
                ("GISTEmbedLoss", "CachedGISTEmbedLoss"),
                "every option: both margins, `contrast_anchors`, `contrast_positives`, hard "
                "negatives, `gather_across_devices`",
                "another `similarity_fct` or `cross_entropy_loss`; a temperature of several "
                "elements; columns of different lengths",
            ),
            Line(
                (
                    "AdaptiveLayerLoss",
                    "CSRLoss",
                    "CachedSpladeLoss",
                    "GlobalOrthogonalRegularizationLoss",
                    "Matryoshka2dLoss",
                    "MatryoshkaLoss",
                    "SpladeLoss",
                ),
                instead=WRAPPER,
            ),
            Line(
                (
                    "AnglELoss",
                    "BatchAllTripletLoss",
                    "BatchHardSoftMarginTripletLoss",
                    "BatchHardTripletLoss",
                    "BatchSemiHardTripletLoss",
                    "CoSENTLoss",
                    "ContrastiveTensionLoss",
                    "ContrastiveTensionLossInBatchNegatives",
                    "DistillKLDivLoss",
                    "MegaBatchMarginLoss",
                    "OnlineContrastiveLoss",
                    "SparseAnglELoss",
                    "SparseCoSENTLoss",
                    "SparseDistillKLDivLoss",
                ),
                instead=NOT_STREAMED,
            ),
            Line(
                (
                    "BatchHardTripletLossDistanceFunction",
                    "CSRReconstructionLoss",
                    "ContrastiveLoss",
                    "ContrastiveTensionDataLoader",
                    "CosineSimilarityLoss",
                    "DenoisingAutoEncoderLoss",
                    "EmbedDistillLoss",
                    "FlopsLoss",
                    "MSELoss",
                    "MarginMSELoss",
                    "SiameseDistanceMetric",
                    "SoftmaxLoss",
                    "SparseCosineSimilarityLoss",
                    "SparseMSELoss",
                    "SparseMarginMSELoss",
                    "SparseTripletLoss",
                    "TripletDistanceMetric",
                    "TripletLoss",
                ),
                instead=NO_MATRIX,
            ),
        ),
    ),
    "simclr": Table(
        "simclr.modules.nt_xent",
        (
            Line(
                ("NT_Xent",),
                "every option; with `world_size > 1` the loss of the global batch, which the "
                "package's own is not",
                "a temperature of several elements, 0 or infinite",
            ),
        ),
    ),
    "supcontrast": Table(
        "losses.py of HobbitLong/SupContrast",
        (Line(("SupConLoss",), "every option; a `mask` is read as it is"),),
        patched=False,
    ),
    "keras": Table(
        "Keras has no such losses",
        (Line(("NTXentLoss", "NT_Xent"), "every option, on Keras' torch backend"),),
        patched=False,
    ),
}


def absent(module: str):
    """The ``__getattr__`` of an integration: what to use in place of a name that it lacks.

    ``from module import name`` would hide the text of an AttributeError. It gets an ImportError.
    """
    integration = module.rpartition(".")[2]
    table = TABLES[integration]

    def __getattr__(name: str):
        message = f"module {module!r} has no attribute {name!r}"
        line = table.line(name)
        if line is not None and line.instead:
            message = f"{module} has no {name}. Instead: {line.instead}"
            if _is_import(sys._getframe(1)):
                raise ImportError(message, name=module)
        elif name == "patch" and not table.patched:
            message += ": there is no package whose losses it could replace"
        raise AttributeError(message, name=name)

    return __getattr__


def _is_import(frame: FrameType) -> bool:
    """Whether a frame is at ``from module import name``."""
    code = frame.f_code.co_code
    return dis.opname[code[frame.f_lasti]] == "IMPORT_FROM"
