"""Classes and functions of other packages, without the N x N matrix.

They have the names, arguments, defaults and errors of the packages.

There is one module per package, which it imports, and which must be installed: `open_clip`,
`lightly`, `pytorch_metric_learning`, `info_nce`, `sentence_transformers`, `simclr` and `keras`.
`supcontrast` needs none. A user changes one import line::

    from lightly.loss import NTXentLoss
    from fused_contrastive.integrations.lightly import NTXentLoss

The classes are subclasses of the package's own. Whatever they cannot stream (an option, a shape, an
empty batch) is handed to the package's own code, with a `FallbackWarning` that names it once. So
numbers never differ from the package's, nor do its errors. Losses have the dtype that the package
gives them. They are accurate in cases in which the package's are not (docs/maths.md). Second
derivatives raise an error where our losses have none.
"""

__all__ = [
    "info_nce",
    "keras",
    "lightly",
    "open_clip",
    "pytorch_metric_learning",
    "sentence_transformers",
    "simclr",
    "supcontrast",
]
