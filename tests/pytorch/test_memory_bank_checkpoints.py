"""Checkpoints of a bank: what no bank can have written is an error."""

import copy
import math

import pytest
import torch

from fused_contrastive import MemoryBank

WRONG = {
    "length": (torch.tensor(100), torch.tensor(-3), torch.tensor(math.nan), torch.tensor(True)),
    "position": (torch.tensor(8), torch.tensor(-1), torch.tensor(2.0), torch.tensor(3)),
    "rows": (torch.zeros(8, 4, dtype=torch.complex64), torch.zeros(8, 4, dtype=torch.int64)),
    "row_labels": (torch.zeros(8), torch.zeros(8, dtype=torch.bool)),
}


@pytest.mark.parametrize(
    ("name", "k"), [(name, k) for name in WRONG for k in range(len(WRONG[name]))]
)
@pytest.mark.parametrize("assign", (False, True))
def test_wrong_checkpoints(name, k, assign):
    """A checkpoint that no bank can have written is an error, and the bank stays as it was."""
    bank = MemoryBank(8, 4, fill="empty", labels=True)
    bank.enqueue(torch.ones(2, 4), torch.arange(2))
    saved = {**bank.state_dict(), name: WRONG[name][k]}
    outer = torch.nn.Sequential(copy.deepcopy(bank))
    with pytest.raises(RuntimeError, match=rf"\b0\.{name} must be "):
        outer.load_state_dict({f"0.{k}": v for k, v in saved.items()}, assign=assign)
    assert len(outer[0]) == 2 and torch.equal(outer[0].negatives, bank.negatives)


def test_empty_checkpoint_in_a_random_bank():
    """Its rows count once they are written, as in the bank that was saved."""
    saved = MemoryBank(8, 4, fill="empty")
    saved.enqueue(torch.ones(3, 4))
    bank = MemoryBank(8, 4, fill="random")
    bank.load_state_dict(saved.state_dict())
    assert len(bank) == 3
    for length in (6, 8, 8):
        bank.enqueue(torch.ones(3, 4))
        assert len(bank) == len(bank.negatives) == length
