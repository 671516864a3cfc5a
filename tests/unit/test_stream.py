"""Streaming modules: in any pieces they give what the whole gives, and the whole is plain torch's, gradients too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from senone.nn import seanet
from senone.nn.stream import CausalConv1d, CausalConvTranspose1d, Chain, conv, elu_

LONG = 3000  # times 8 channels: beyond the size from which the memory layout changes


def plain(module: nn.Module, x: Tensor) -> Tensor:
    """What `module` has to compute, by torch's own functions."""
    if isinstance(module, CausalConv1d):
        past, stride, dilation = module.past, module.stride, module.dilation
        return F.conv1d(F.pad(x, (past, 0)), module.weight, module.bias, stride, 0, dilation, module.groups)
    if isinstance(module, CausalConvTranspose1d):
        y = F.conv_transpose1d(x, module.weight, module.bias, module.stride)
        return y[:, :, : x.shape[2] * module.stride[0]]
    if isinstance(module, seanet.ResidualUnit):
        y = F.elu(plain(module.conv, F.elu(x)))
        return x + F.conv1d(y, module.mix.weight, module.mix.bias)
    if isinstance(module, Chain):
        for part in module:
            x = plain(part, x)
        return x
    return F.elu(x)  # the only module without a state in these nets


MODULES = {
    "kernel 7": lambda: CausalConv1d(8, 6, 7),
    "dilated": lambda: CausalConv1d(8, 6, 7, dilation=9),
    "strided": lambda: CausalConv1d(8, 6, 8, 4),
    "depthwise": lambda: CausalConv1d(8, 8, 7, groups=8),
    "one channel in": lambda: CausalConv1d(1, 8, 7),
    "one channel out": lambda: CausalConv1d(8, 1, 7),
    "pointwise": lambda: CausalConv1d(8, 6, 1, bias=False),
    "transposed": lambda: CausalConvTranspose1d(8, 6, 8, 4),
    "transposed, no overlap": lambda: CausalConvTranspose1d(8, 6, 4, 4),
    "transposed, long": lambda: CausalConvTranspose1d(8, 6, 12, 4),
    "unit": lambda: seanet.ResidualUnit(8, 3),
    "encoder": lambda: seanet.encoder(4, (2, 2)),
    "decoder": lambda: seanet.decoder(4, (2, 2), 8),
}
# inputs a step: pieces are cut at multiples of it
STEP = {"strided": 4, "encoder": 4}


def channels(module: nn.Module) -> int:
    first = next(part for part in module.modules() if isinstance(part, nn.Conv1d | nn.ConvTranspose1d))
    return first.in_channels


@pytest.fixture(params=MODULES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@settings(max_examples=12, deadline=None, derandomize=True)
@given(pieces=st.lists(st.integers(1, 70), min_size=1, max_size=6), batch=st.integers(1, 2), training=st.booleans())
@pytest.mark.parametrize("name", MODULES)
def test_pieces_join_up_to_the_whole(name: str, pieces: list[int], batch: int, training: bool):
    torch.manual_seed(sum(pieces))
    module, step = MODULES[name]().double().train(training), STEP.get(name, 1)
    x = torch.randn(batch, channels(module), step * sum(pieces), dtype=torch.float64)
    whole, end = module(x)
    state, parts = None, []
    for piece in x.split([step * piece for piece in pieces], 2):
        y, state = module(piece, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=0, atol=1e-12)
    assert same(state, end)


def same(a, b) -> bool:
    """Whether two states are one value."""
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a.shape == b.shape and bool(((a - b).abs() <= 1e-12).all())


@pytest.mark.parametrize("time", [4, LONG])
def test_neither_the_state_nor_the_input_is_changed(name, time):
    module = MODULES[name]()
    x = torch.randn(1, channels(module), time)
    before = x.clone()
    with torch.no_grad():
        _, state = module(x)
        first, _ = module(x, state)
        again, _ = module(x, state)
    assert torch.equal(x, before) and torch.equal(first, again)


def test_a_state_does_not_hold_the_recording(name):
    module = MODULES[name]().eval()
    with torch.no_grad():
        _, state = module(torch.randn(1, channels(module), LONG))
    for tensor in state if isinstance(state, list) else [state]:
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("time", [1, 24, LONG])
@pytest.mark.parametrize("batch", [1, 3])
def test_values_and_gradients_are_plain_torchs(name, batch, time):
    module = MODULES[name]()
    values = list(module.parameters())
    x = torch.randn(batch, channels(module), time * STEP.get(name, 1), requires_grad=True)
    ours, theirs = module(x)[0], plain(module, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # activations happen in place then
        torch.testing.assert_close(module(x)[0], theirs, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(theirs)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), [x, *values]),
        torch.autograd.grad((theirs * weight).sum(), [x, *values]),
        strict=True,
    ):
        assert float((a - b).norm()) <= 3e-5 * float(b.norm())  # sums over thousands of samples in single precision


def test_gradients_are_those_of_differences(name):
    module = MODULES[name]().double()
    x = torch.randn(2, channels(module), 20 * STEP.get(name, 1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: module(x)[0], x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: module(x)[0], x, fast_mode=True)


@pytest.mark.parametrize("time", [20, LONG])
def test_half_precision_stays_near(name, time):
    module = MODULES[name]()
    x = torch.randn(2, channels(module), time)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)[0]
    exact = plain(module, x).detach()
    assert float((y.detach() - exact).norm()) < 0.02 * float(exact.norm())


@pytest.mark.parametrize("time", [20, LONG])
def test_conv_takes_any_memory_layout(time):
    x, weight, bias = torch.randn(2, 8, time), torch.randn(6, 8, 3), torch.randn(6)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    wide = torch.randn(2, 8, 2 * time)
    for given_ in (x, turned, wide[:, :, ::2]):
        torch.testing.assert_close(
            conv(given_, weight, bias, 1, 2), F.conv1d(given_, weight, bias, 1, 0, 2), atol=1e-5, rtol=1e-5
        )


def test_elu_in_place_only_without_a_gradient():
    x = torch.randn(5)
    assert elu_(x) is x
    y = torch.randn(5, requires_grad=True)
    kept = y.detach().clone()
    elu_(y)
    assert torch.equal(y, kept)


def test_a_kernel_that_is_no_multiple_of_the_stride_is_refused():
    with pytest.raises(ValueError, match="multiple of the stride 4, got 7"):
        CausalConvTranspose1d(8, 6, 7, 4)


def test_reach_is_how_far_the_nets_look_back():
    strides = (2, 4)
    hop, reach = 8, seanet.reach(strides)
    frames = reach // hop + 8
    decode = seanet.decoder(2, strides, 3).double()
    z = torch.randn(1, 3, frames, dtype=torch.float64, requires_grad=True)
    out = decode(z)[0]
    (gradient,) = torch.autograd.grad(out[0, 0, -1], z)  # the first frame that the last sample hears
    heard = (frames - int(gradient.abs().sum((0, 1)).nonzero()[0])) * hop
    assert reach - 2 * hop < heard <= reach
