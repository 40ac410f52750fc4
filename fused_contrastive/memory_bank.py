"""A queue of embeddings of earlier batches: negatives beyond the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from . import checks
from .distributed.collectives import gather_rows
from .distributed.groups import Ranks, agree, resolve, told
from .problem import MaybeNone

WRAPS = ("drop", "exact", "around")
FILLS = ("random", "empty")


class MemoryBank(nn.Module):
    """The keys of the latest batches, first in first out, as negatives.

    This is the queue of MoCo (He et al. 2020, arXiv:1911.05722) and the memory of XBM (Wang et al.
    2020, arXiv:1912.06798).

    >>> import torch
    >>> import torch.nn.functional as F
    >>> from fused_contrastive import MemoryBank, info_nce_loss
    >>> bank = MemoryBank(64, 8)
    >>> query = torch.randn(4, 8, requires_grad=True)
    >>> key = torch.randn(4, 8)  # of the key encoder, under torch.no_grad()
    >>> loss = info_nce_loss(query, key, bank.negatives, 0.1)
    >>> loss.backward()
    >>> bank.enqueue(F.normalize(key, dim=1))
    >>> len(bank), bank.negatives.shape
    (64, torch.Size([64, 8]))

    A key must not be a negative of its own query, so it is enqueued after the loss.

    Rows and position are buffers, so that checkpoints resume exactly. No value is read back to the
    host, and `enqueue` compiles (with ``fill="empty"`` anew for every number of rows). Keep the
    bank out of modules whose buffers are broadcast at every step. DistributedDataParallel does so
    unless told ``broadcast_buffers=False``.

    Args:
        size: K, the number of rows.
        dim: D, the number of features.
        wrap: what happens to a batch that reaches the end. "drop": its tail is dropped and the next
            batch starts at row 0 (lightly). "exact": the size must be a multiple of every batch
            (MoCo). "around": its tail goes to row 0 and on (CrossBatchMemory).
        fill: "random": the bank starts full of random unit vectors (lightly, MoCo). "empty": rows
            count once they are written (CrossBatchMemory).
        labels: keep an integer label with every row. The labels of random rows are -1.
        persistent: whether state_dict holds the bank.
        device: the device of the rows.
        dtype: the dtype of the rows.
    """

    rows: torch.Tensor  # [K, D]
    row_labels: torch.Tensor | MaybeNone  # [K]
    position: torch.Tensor  # []
    length: torch.Tensor  # []

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        wrap: str = "drop",
        fill: str = "random",
        labels: bool = False,
        persistent: bool = True,
        device=None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        for name, value in (("size", size), ("dim", dim)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype must be a floating-point dtype, got {dtype}")
        checks.choice("wrap", wrap, WRAPS)
        checks.choice("fill", fill, FILLS)
        checks.choice("labels", labels, (True, False))
        self.wrap, self.fill = wrap, fill
        integers = {"dtype": torch.int64, "device": device}
        self.register_buffer("rows", torch.zeros(size, dim, dtype=dtype, device=device), persistent)
        self.register_buffer(
            "row_labels", torch.zeros(size, **integers) if labels else None, persistent
        )
        self.register_buffer("position", torch.zeros((), **integers), persistent)
        self.register_buffer("length", torch.zeros((), **integers), persistent)
        self.reset()

    def reset(self) -> None:
        """Make the bank as it was when constructed: filled anew, with position 0."""
        if self.fill == "random":
            random = torch.randn(self.rows.shape, device=self.rows.device)
            self.rows.copy_(F.normalize(random, dim=1))
        if self.row_labels is not None:
            self.row_labels.fill_(-1)
        self.position.zero_()
        self._length = len(self.rows) if self.fill == "random" else 0
        self.length.fill_(self._length)

    def forward(self, *_arguments, **_options):
        """Raise an error: a bank is read and written, and never called."""
        raise TypeError(
            "a MemoryBank cannot be called: pass bank.negatives to the loss, "
            "and write keys with bank.enqueue(keys)"
        )

    def __len__(self) -> int:
        """How many rows count: K, or with ``fill="empty"`` as many as have been written."""
        return self._length

    @property
    def negatives(self) -> torch.Tensor:
        """The rows that count, ``[len, D]``.

        It is a constant copy, which a later `enqueue` leaves alone.
        """
        return self.rows[: self._length].clone()

    @property
    def labels(self) -> torch.Tensor | None:
        """A copy of the labels of `negatives`, ``[len]``, or None where none are kept."""
        return None if self.row_labels is None else self.row_labels[: self._length].clone()

    @torch.no_grad()
    def enqueue(
        self, keys: torch.Tensor, labels: torch.Tensor | None = None, *, group=None
    ) -> None:
        """Write a batch over the oldest rows, in the bank's dtype. Nothing is normalised.

        Unless its tail was dropped, row i of a batch of n is then row ``(position - n + i) % K``.

        Args:
            keys: ``[n, D]``. To write only some of a batch, index it: ``enqueue(keys[mask],
                labels[mask])``.
            labels: integers ``[n]``, exactly where the bank keeps labels.
            group: a torch.distributed process group, a one-dimensional DeviceMesh or "world". The
                batches of all its ranks are written in rank order. Inside torch.compile they must
                be equally long.

        Raises:
            ValueError, TypeError: an argument is wrong; the error names it.
        """
        K, group, lengths = len(self.rows), resolve(group), None
        if group is None or torch.compiler.is_compiling():
            self._check(keys, labels)
        else:
            # The ranks must write into banks of one kind.
            call = f"MemoryBank.enqueue() into {self!r} of {self.rows.dtype}"
            ranks = Ranks(group.group_name, "gather", call)
            with told(ranks):
                self._check(keys, labels)
                lengths = [n for n, _ in agree(ranks, len(keys), 0)]
        stores = (
            ((self.rows, keys),)
            if labels is None
            else ((self.rows, keys), (self.row_labels, labels))
        )
        batches = [gather_rows(x.to(store.dtype), group, lengths) for store, x in stores]
        n = len(batches[0])
        if self.wrap == "exact" and n and K % n:
            raise ValueError(f"keys must divide the bank's {K} rows evenly (wrap='exact'), got {n}")
        if self.wrap == "around" and n > K:
            raise ValueError(
                f"keys must not outnumber the bank's {K} rows (wrap='around'), got {n}"
            )
        slots = self.position + torch.arange(min(n, K), device=keys.device)
        for (store, _), batch in zip(stores, batches, strict=True):
            batch = batch[:K]
            if self.wrap == "drop":
                inside = (slots < K).view(-1, *[1] * (batch.dim() - 1))
                batch = torch.where(inside, batch, store[slots % K])
            store[slots % K] = batch
        end = self.position + n
        self.position.copy_(end.masked_fill(end >= K, 0) if self.wrap == "drop" else end % K)
        if self._length < K:
            # Until the bank is full, its position and its length are the same number.
            self._length = min(K, self._length + n)
            self.length.fill_(self._length)

    def _check(self, keys, labels) -> None:
        D = self.rows.shape[1]
        checks.embeddings("keys", keys, dim=2)
        if keys.shape[1] != D:
            raise ValueError(f"keys must have shape [n, {D}], got {tuple(keys.shape)}")
        if keys.device != self.rows.device:
            raise ValueError(
                f"keys must be on the device of the bank ({self.rows.device}), got {keys.device}"
            )
        if (labels is None) != (self.row_labels is None):
            raise ValueError("labels must be given exactly when the bank keeps them (labels=True)")
        if labels is not None:
            checks.keys("labels", labels, keys.shape[:1], keys.device)

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        wrong = self._misfits({k: state_dict.get(prefix + k) for k in dict(self.named_buffers())})
        if wrong:
            # torch reports the messages in this list, which is its last argument.
            arguments[-1].extend(f"{prefix}{message}" for message in wrong)
            return
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        if not self.length.is_meta:
            self._length = int(self.length)

    def _misfits(self, saved: dict[str, torch.Tensor | None]) -> list[str]:
        """What is wrong with saved buffers, beyond the shapes, which torch compares."""
        K, wrong = len(self.rows), []
        for name, value in saved.items():
            if not isinstance(value, torch.Tensor):
                continue
            if name == "rows":
                if not value.is_floating_point():
                    wrong.append(f"rows must be of a floating-point dtype, got {value.dtype}")
                continue
            if not checks.is_integer(value):
                wrong.append(f"{name} must be of an integer dtype, got {value.dtype}")
            elif name != "row_labels" and value.dim() == 0 and not value.is_meta:
                most = K - 1 if name == "position" else K
                if not 0 <= int(value) <= most:
                    wrong.append(f"{name} must be from 0 to {most}, got {int(value)}")
        position, length = saved.get("position"), saved.get("length")
        if not wrong and position is not None and length is not None and not length.is_meta:
            if int(length) < K and int(position) != int(length):
                wrong.append(f"position must be the length {int(length)}, got {int(position)}")
        return wrong

    def extra_repr(self) -> str:
        K, D = self.rows.shape
        labels = self.row_labels is not None
        return f"{K}, {D}, wrap={self.wrap!r}, fill={self.fill!r}, labels={labels}"
