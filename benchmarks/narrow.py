"""A narrower decoder for a SoundStream that is trained:  python benchmarks/narrow.py MODEL OUT --data DATA --filters 24

Channels are kept by what they send on, and each layer is fitted by least squares to what the wide net computes, from
what the narrow one has so far: nothing is trained, all data is heard once. It may look ahead some frames besides. What
comes out is a start for `senone train soundstream init=OUT freeze=[encoder,film,embed,quantizer]`.
"""

import argparse
import random
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import senone
from senone.data.manifest import read
from senone.errors import SenoneError
from senone.models.soundstream import SoundStream
from senone.nn.seanet import ResidualUnit
from senone.nn.stream import CausalConv1d, CausalConvTranspose1d

PIECE = 4  # seconds of one recording
RIDGE = 1e-5  # of the mean square of the inputs

Sounds = list[Tensor]  # (channel, time) each


def main() -> None:
    """Read the arguments, write the model."""
    say = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    say.add_argument("model", help="a SoundStream")
    say.add_argument("out", help="folder to write")
    say.add_argument("--data", required=True, help="folder or manifest of speech")
    say.add_argument("--filters", type=int, required=True, help="filters of the decoder, before its strides")
    say.add_argument("--ahead", type=int, default=0, help="frames that the narrow decoder waits for")
    say.add_argument("--seconds", type=float, default=160, help="of speech to fit by")
    options = say.parse_args()
    try:
        old = senone.load(options.model)
        if not isinstance(old, SoundStream):
            raise SystemExit(f"{options.model} is a {type(old).__name__}, not a SoundStream")
        new = narrow(old, options.filters, options.ahead, speech(old, options.data, options.seconds))
        new.save_pretrained(options.out)
    except SenoneError as error:
        raise SystemExit(str(error)) from None


def speech(model: SoundStream, data: str, seconds: float) -> Sounds:
    """What the quantizer gives the decoder, of pieces of the data in random order."""
    cuts = [cut for cut in read(data) if cut.seconds >= PIECE]
    random.Random(1).shuffle(cuts)
    found = []
    for cut in cuts[: round(seconds / PIECE)]:
        audio = senone.Audio.read(cut.path, start=cut.start, seconds=PIECE)
        found.append(model.quantizer.decode(model.encode(audio).data)[0].float())
    return found


@torch.no_grad()
def narrow(old: SoundStream, filters: int, ahead: int, z: Sounds) -> SoundStream:
    """`old` with a decoder of `filters` filters that looks `ahead` frames ahead, fitted on the vectors `z`."""
    new = SoundStream(replace(old.config, decoder_filters=filters, ahead=ahead)).eval()
    rest = {name: value for name, value in old.state_dict().items() if not name.startswith("decoder.")}
    new.load_state_dict(rest, strict=False)
    wide, thin = list(old.decoder), list(new.decoder)
    given, wanted = z, _through(wide[0], z)
    kept = _strongest(_sent([wanted], [], wide[2]), thin[0].out_channels)
    given = _fit(thin[0], given, _rows(wanted, kept), ahead - old.config.ahead)
    for first in range(2, len(wide) - 2, 5):  # after an ELU: a transposed convolution, three residual units
        reads = wide[first + 5]
        streams = [_through(wide[first], _elu(wanted))]
        for unit in wide[first + 1 : first + 4]:
            streams.append(_through(unit, streams[-1]))
        kept = _strongest(_sent(streams, wide[first + 1 : first + 4], reads), thin[first].out_channels)
        given = _fit_transposed(thin[first], _elu(given), _rows(streams[0], kept))
        for i, (unit, small) in enumerate(zip(wide[first + 1 : first + 4], thin[first + 1 : first + 4], strict=True)):
            given = _fit_unit(unit, small, given, streams[i], _rows(streams[i + 1], kept))
        wanted = streams[-1]
        error = _decibels(given, _rows(wanted, kept))
        print(f"{len(kept)} of {len(wanted[0])} channels: {error:.1f} dB", flush=True)
    wanted = _through(wide[-1], _elu(wanted))
    print(f"the wave: {_decibels(_fit(thin[-1], _elu(given), wanted), wanted):.1f} dB")
    return new


def _fit(layer: CausalConv1d, given: Sounds, wanted: Sounds, ahead: int = 0) -> Sounds:
    """The weights of a convolution that hears `given`; what it then says."""
    size, dilation = layer.kernel_size[0], layer.dilation[0]
    weight, bias = _solve((_taps(x, size, dilation, ahead) for x in given), (y.T for y in wanted))
    layer.weight.copy_(weight.view(size, layer.in_channels, -1).permute(2, 1, 0))
    layer.bias.copy_(bias)
    return [(_taps(x, size, dilation, ahead) @ weight + bias).T for x in given]


def _fit_transposed(layer: CausalConvTranspose1d, given: Sounds, wanted: Sounds) -> Sounds:
    """The same for a transposed one: `stride` outputs at once, of `frames` inputs."""
    stride, frames, width = layer.stride[0], layer.frames, layer.out_channels
    goals = (y.unflatten(1, (-1, stride)).permute(1, 0, 2).flatten(1) for y in wanted)
    weight, bias = _solve((_taps(x, frames) for x in given), goals)
    taps = weight.view(frames, layer.in_channels, width, stride).flip(0)  # the latest frame first
    layer.weight.copy_(taps.permute(1, 2, 0, 3).flatten(2))
    layer.bias.copy_(bias.view(width, stride).mean(1))
    return _through(layer, given)


def _fit_unit(unit: ResidualUnit, small: ResidualUnit, given: Sounds, before: Sounds, after: Sounds) -> Sounds:
    """Both convolutions of a residual unit; the second also mends what the stream lacks."""
    hidden = [unit.conv(x[None].clone(), None, elu=True)[0][0] for x in before]
    power = _power(_elu(hidden)) * unit.mix.weight.square().sum((0, 2))
    kept = _strongest(power, small.conv.out_channels)
    said = _elu(_fit(small.conv, _elu(given), _rows(hidden, kept)))
    weight, bias = _solve((x.T for x in said), ((y - x).T for x, y in zip(given, after, strict=True)))
    small.mix.weight.copy_(weight.T[:, :, None])
    small.mix.bias.copy_(bias)
    return [x + (y.T @ weight + bias).T for x, y in zip(given, said, strict=True)]


def _solve(inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Weight (in, out) and bias of the least squares of rows; the sums in double precision."""
    square, product = torch.zeros(()).double(), torch.zeros(()).double()
    for x, y in zip(inputs, outputs, strict=True):
        x = F.pad(x, (0, 1), value=1.0)
        square, product = square + (x.T @ x).double(), product + (x.T @ y).double()
    square = square + RIDGE * square.diag().mean() * torch.eye(len(square)).double()
    solved = torch.linalg.solve(square, product).float()
    return solved[:-1], solved[-1]


def _taps(x: Tensor, size: int, dilation: int = 1, ahead: int = 0) -> Tensor:
    """(channel, time) -> (time, tap x channel), the last tap `ahead` steps later than the row."""
    span, count = (size - 1) * dilation, x.shape[1]
    x = F.pad(x, (span - ahead, ahead))
    return torch.stack([x[:, i * dilation : i * dilation + count] for i in range(size)]).permute(2, 0, 1).flatten(1)


def _sent(streams: list[Sounds], units: list[ResidualUnit], reads: nn.Module) -> Tensor:
    """Power that each channel of a stream sends into the layers that read it."""
    out, into = reads.weight, (1, 2) if isinstance(reads, CausalConvTranspose1d) else (0, 2)
    power = _power(_elu(streams[-1])) * out.square().sum(into)
    for stream, unit in zip(streams, units, strict=False):
        power = power + _power(_elu(stream)) * unit.conv.weight.square().sum((0, 2))
    return power


def _through(layer: nn.Module, xs: Sounds) -> Sounds:
    return [layer(x[None].clone(), None)[0][0] for x in xs]


def _elu(xs: Sounds) -> Sounds:
    return [F.elu(x) for x in xs]


def _power(xs: Sounds) -> Tensor:
    return torch.stack([x.var(1) for x in xs]).mean(0)


def _rows(xs: Sounds, kept: Tensor) -> Sounds:
    return [x[kept] for x in xs]


def _strongest(power: Tensor, count: int) -> Tensor:
    return power.topk(count).indices.sort().values


def _decibels(xs: Sounds, ys: Sounds) -> float:
    error = sum(float((x - y).square().sum()) for x, y in zip(xs, ys, strict=True))
    return float(10 * torch.tensor(error / sum(float(y.square().sum()) for y in ys)).log10())


if __name__ == "__main__":
    main()
