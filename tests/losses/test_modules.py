"""The modules have the options and defaults of their functions.

Other tests cover learnable temperatures, copies and saved states, and numbers and tensors as
temperature.
"""

import copy
import inspect
import io
import math
import pickle

import numpy as np
import pytest
import torch
from support.modules import PAIRS, WITH_TEMPERATURE

import fused_contrastive as fc
from fused_contrastive import reference

OWN = {"ClipLoss": {"logit_scale"}, "SigLipLoss": {"logit_scale", "logit_bias"}}
"""The constructor takes these arguments where they are learned. Elsewhere forward takes them."""
PER_CALL = {"keys", "weights", "bias", "positive_weights"}
"""Both the function and forward take these tensors as keyword-only arguments."""


def arguments(name, device="cpu"):
    shape = (2, 6, 4) if name == "CPCLoss" else (6, 4)
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    if name == "SupConLoss":
        return first, torch.tensor([0, 1, 0, 2, 1, 0], device=device)
    more = {
        "ClipLoss": (2.0,),
        "SigLipLoss": (2.0, -1.0),
        "DistillClipLoss": (2.0, second, first, 3.0),
    }
    required = [
        x
        for x in inspect.signature(getattr(fc, PAIRS[name])).parameters.values()
        if x.default is inspect.Parameter.empty
    ]
    return (first, second, *more.get(name, ()))[: len(required)]


def loss_of(out):
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("name", PAIRS)
def test_signature_mirrors_the_function(name):
    """Every option of the function is a constructor argument of the same name and default.

    The tensors are arguments of forward.
    """
    function = inspect.signature(getattr(fc, PAIRS[name])).parameters
    constructor = dict(inspect.signature(getattr(fc, name)).parameters)
    forward = list(inspect.signature(getattr(fc, name).forward).parameters)[1:]
    options = {k for k in function if function[k].kind is inspect.Parameter.KEYWORD_ONLY} - PER_CALL
    options |= {"temperature", "sigma"} & set(function)
    learnable, bound = (constructor.pop(x, None) for x in ("learnable", "max_scale"))
    assert (learnable is not None) == (bound is not None) == (name in (*WITH_TEMPERATURE, *OWN))
    assert learnable is None or (learnable.default is False and bound.default is None)
    own = OWN.get(name, set())
    assert all(constructor.pop(k).default is None for k in own)
    assert set(constructor) == options
    for k in options:
        assert constructor[k].default == function[k].default, k
        assert constructor[k].kind == function[k].kind, k
    assert forward == [k for k in function if k not in options]
    for k in set(forward) - own:
        parameter = inspect.signature(getattr(fc, name).forward).parameters[k]
        assert (parameter.default, parameter.kind) == (function[k].default, function[k].kind), k


@pytest.mark.parametrize("name", PAIRS)
def test_equals_the_function(name, any_backend, device):
    module = getattr(fc, name)(reduction="none", backend=any_backend)
    function = getattr(fc, PAIRS[name])
    found = loss_of(module(*arguments(name, device)))
    expected = loss_of(function(*arguments(name, device), reduction="none", backend=any_backend))
    assert torch.equal(found, expected)


def test_options_reach_the_function(backend, device):
    query, key = arguments("InfoNCELoss", device)
    negatives = torch.randn(6, 3, 4, device=device)
    module = fc.InfoNCELoss(
        0.3, negative_mode="paired", normalize=False, reduction="sum", metrics=True, backend=backend
    )
    loss, metrics = module(query, key, negatives)
    expected, wanted = reference.info_nce_loss(
        query,
        key,
        negatives,
        0.3,
        negative_mode="paired",
        normalize=False,
        reduction="sum",
        metrics=True,
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics, wanted)
    z1, z2 = arguments("NTXentLoss", device)
    torch.testing.assert_close(
        fc.NTXentLoss(0.7, normalize=False, backend=backend)(z1, z2),
        reference.nt_xent_loss(z1, z2, 0.7, normalize=False),
    )
    target = torch.tensor([1, 0, 3, 2, 5, 4], device=device)
    torch.testing.assert_close(
        fc.NPairsLoss(backend=backend)(z1, z2, target), reference.n_pairs_loss(z1, z2, target)
    )
    labels, weights = arguments("SupConLoss", device)[1], torch.linspace(0.5, 1, 6, device=device)
    views = torch.stack([z1, z2], 1)
    options = {
        "positives": "in",
        "contrast_mode": "one",
        "normalize": False,
        "skip_unmatched": True,
        "reduction": "sum",
    }
    torch.testing.assert_close(
        fc.SupConLoss(0.3, **options, metrics=True, backend=backend)(
            views, labels, weights=weights
        ),
        reference.sup_con_loss(views, labels, 0.3, **options, weights=weights, metrics=True),
    )
    torch.testing.assert_close(
        fc.SupConLoss(backend=backend)(views, positive_weights=torch.ones(6, 6, device=device)),
        reference.sup_con_loss(views, None, 0.1, positive_weights=torch.ones(6, 6, device=device)),
    )
    torch.testing.assert_close(
        fc.DCLWLoss(0.3, 0.7, normalize=False, backend=backend)(z1, z2),
        reference.dclw_loss(z1, z2, 0.3, 0.7, normalize=False),
    )
    scale = torch.tensor(3.0, device=device, requires_grad=True)
    bias = torch.tensor(-1.0, device=device, requires_grad=True)
    loss = fc.ClipLoss(backend=backend)(z1, z2, scale, bias)
    torch.testing.assert_close(loss, reference.clip_loss(z1, z2, scale, bias))
    loss.backward()
    assert bias.grad == 0 and scale.grad != 0


@pytest.mark.parametrize("name", WITH_TEMPERATURE)
def test_learnable_temperature(name, backend, device):
    """A learnable temperature is learned as its logarithm.

    The gradient is T times that of T, a step changes the temperature, and it stays positive.
    """
    module = getattr(fc, name)(0.2, learnable=True, backend=backend).to(device)
    assert [k for k, _ in module.named_parameters()] == ["log_temperature"]
    assert math.isclose(module.temperature.item(), 0.2, rel_tol=1e-6)
    module(*arguments(name, device)).backward()
    temperature = torch.tensor(0.2, device=device, requires_grad=True)
    getattr(fc, PAIRS[name])(
        *arguments(name, device), temperature=temperature, backend=backend
    ).backward()
    torch.testing.assert_close(module.log_temperature.grad, 0.2 * temperature.grad)
    assert module.log_temperature.grad != 0
    before = module(*arguments(name, device)).item()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert module(*arguments(name, device)).item() < before
    assert not list(getattr(fc, name)(0.2).parameters())


def learning(name, value, **options):
    """Return the module with a temperature or scale that it learns."""
    return getattr(fc, name)(
        **{"logit_scale" if name == "ClipLoss" else "temperature": value}, learnable=True, **options
    )


@pytest.mark.parametrize("name", PAIRS)
def test_copies(name, device):
    """deepcopy, pickle and torch.save keep the options, and nothing is saved in a state."""
    module = getattr(fc, name)(reduction="sum")
    expected = loss_of(module(*arguments(name, device)))
    for twin in copies(module):
        assert torch.equal(loss_of(twin(*arguments(name, device))), expected)
    assert not module.state_dict()


def copies(module):
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    return (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(saved, weights_only=False),
    )


@pytest.mark.parametrize("name", (*WITH_TEMPERATURE, "ClipLoss"))
def test_copies_and_states_of_learned_temperatures(name, device):
    """A copy learns for itself, and the state has the learned value alone."""
    views = arguments(name, device)[:2]
    module = learning(name, 0.3, reduction="sum").to(device)
    expected = module(*views)
    for twin in copies(module):
        assert torch.equal(twin(*views), expected)
        (learned,) = twin.parameters()
        learned.data += 1
        assert not torch.equal(twin(*views), expected) and torch.equal(module(*views), expected)
    (key,) = module.state_dict()
    assert key == ("log_logit_scale" if name == "ClipLoss" else "log_temperature")
    other = learning(name, 0.9, reduction="sum").to(device)
    assert not torch.equal(other(*views), expected)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(*views), expected)


@pytest.mark.parametrize("name", PAIRS)
def test_repr_shows_the_options(name):
    options = {"reduction": "sum"} | ({"temperature": 0.25} if name in WITH_TEMPERATURE else {})
    text = repr(getattr(fc, name)(**options))
    assert (
        text.startswith(name)
        and "reduction='sum'" in text
        and ("temperature=0.25" in text) == (name in WITH_TEMPERATURE)
    )


@pytest.mark.parametrize(
    "dtype", (torch.float64, torch.float32, torch.bfloat16, torch.float16), ids=str
)
def test_number_and_tensor_temperatures_agree(dtype, backend, device):
    """A number and a 0-d tensor on the inputs' device or the CPU give the same loss.

    The tensor may have any float dtype, which its gradient keeps.
    """
    z1, z2 = arguments("NTXentLoss", device)
    expected = fc.nt_xent_loss(z1, z2, 0.25, backend=backend)
    for where in {device, torch.device("cpu")}:
        temperature = torch.tensor(0.25, dtype=dtype, device=where, requires_grad=True)
        loss = fc.nt_xent_loss(z1, z2, temperature, backend=backend)
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert temperature.grad.dtype == dtype and temperature.grad.device.type == where.type
        truth = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
        reference.nt_xent_loss(z1.cpu().double(), z2.cpu().double(), truth).backward()
        # The embeddings are float32, so a float64 gradient is only as accurate as float32.
        in_float32 = {"rtol": 1.3e-6, "atol": 1e-5} if dtype == torch.float64 else {}
        torch.testing.assert_close(temperature.grad.cpu(), truth.grad.to(dtype), **in_float32)
    scale = torch.tensor(4.0, dtype=dtype, requires_grad=True)
    torch.testing.assert_close(
        fc.clip_loss(z1, z2, scale, backend=backend), fc.clip_loss(z1, z2, 4.0, backend=backend)
    )


def test_numpy_numbers_lose_nothing(device):
    """A float32 temperature is the number it is, not one whose inverse is rounded to float32."""
    z1, z2 = (torch.randn(5, 3, dtype=torch.float64, device=device) for _ in range(2))
    number = np.float32(0.07)
    assert torch.equal(fc.nt_xent_loss(z1, z2, number), fc.nt_xent_loss(z1, z2, float(number)))


@pytest.mark.parametrize(
    "number", (2, np.float64(2), np.float32(2), np.int64(2)), ids=lambda x: type(x).__name__
)
def test_any_real_number(number, device):
    z1, z2 = arguments("NTXentLoss", device)
    assert torch.equal(fc.nt_xent_loss(z1, z2, number), fc.nt_xent_loss(z1, z2, 2.0))
    assert torch.equal(fc.NTXentLoss(number)(z1, z2), fc.nt_xent_loss(z1, z2, 2.0))
    assert torch.equal(fc.clip_loss(z1, z2, number), fc.clip_loss(z1, z2, 2.0))


def test_train_and_eval_agree(backend, device):
    module = fc.NTXentLoss(backend=backend)
    assert torch.equal(
        module.train()(*arguments("NTXentLoss", device)),
        module.eval()(*arguments("NTXentLoss", device)),
    )


@pytest.mark.parametrize("module", [fc.NTXentLoss, fc.InfoNCELoss])
def test_constructors_take_numbers_only(module):
    with pytest.raises(TypeError, match="temperature must be a number"):
        module(torch.tensor(0.1))
    with pytest.raises(ValueError, match="negative_mode"):
        fc.InfoNCELoss(negative_mode="bogus")


def test_clip_learns_its_scale(device):
    image, text = (torch.randn(9, 5, device=device) for _ in range(2))
    module = fc.ClipLoss(14.0, learnable=True).to(device)
    loss = module(image, text)
    torch.testing.assert_close(loss, fc.clip_loss(image, text, 14.0))
    loss.backward()
    assert module.log_logit_scale.grad.abs() > 0
    for arguments in ({}, {"logit_scale": 14.0}):
        with pytest.raises(ValueError, match="logit_scale"):
            fc.ClipLoss(learnable=not arguments)(image, text)
    with pytest.raises(ValueError, match="logit_scale"):
        fc.ClipLoss()(image, text)


def test_siglip_learns_its_scale_and_bias(device):
    image, text = (torch.randn(9, 5, device=device) for _ in range(2))
    module = fc.SigLipLoss(10.0, -10.0, learnable=True).to(device)
    assert [name for name, _ in module.named_parameters()] == ["log_logit_scale", "logit_bias"]
    loss = module(image, text)
    torch.testing.assert_close(loss, fc.siglip_loss(image, text, 10.0, -10.0))
    loss.backward()
    assert module.log_logit_scale.grad != 0 and module.logit_bias.grad != 0
    for given, missing in (
        ({"logit_scale": 14.0}, "logit_bias"),
        ({"logit_bias": 1.0}, "logit_scale"),
    ):
        with pytest.raises(ValueError, match=f"{missing} must be given"):
            fc.SigLipLoss(**given, learnable=True)
        with pytest.raises(ValueError, match=f"{missing} must be passed to forward"):
            fc.SigLipLoss(**given)(image, text)
        with pytest.raises(ValueError, match="must not be passed to forward"):
            module(image, text, **given)
        with pytest.raises(ValueError, match=f"{missing} must be passed to forward"):
            fc.SigLipLoss()(image, text, **given)
    with pytest.raises(ValueError, match="logit_scale must be positive"):
        fc.SigLipLoss(-1.0, 0.0, learnable=True)
