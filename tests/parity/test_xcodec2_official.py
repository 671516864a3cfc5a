"""The official X-codec2 is the oracle of ours, its files read by our reader: codes bit-equal, sound to 1e-4.

The package pins its world; `pip install --no-deps xcodec2==0.1.5 einops einx==0.4.3 frozendict
vector-quantize-pytorch==1.17.8` puts it beside ours. Elsewhere `golden/xcodec2.safetensors` speaks for it: running this
file wrote that.
"""

import importlib.machinery
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import senone
from senone.audio import Audio
from senone.errors import SenoneError

GOLDEN = Path(__file__).parents[1] / "golden" / "xcodec2.safetensors"
NEEDED = ("xcodec2", "einops", "einx", "frozendict", "vector_quantize_pytorch", "transformers")
WIDTH, SEMANTIC, LENGTHS = 64, 16, (9_000, 16_000)


class Rotary(nn.Module):
    """torchtune's RotaryPositionalEmbeddings, of which the package needs nothing else: x is (batch, place, ., dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.theta = 10_000 ** (-torch.arange(0, dim, 2) / dim)

    def forward(self, x: Tensor) -> Tensor:
        angle = torch.outer(torch.arange(x.shape[1]), self.theta)[:, None]
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


def package() -> Any:
    """Its modules; for torchaudio and torchtune, which it imports and hardly uses, stand others."""
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}: see the head of this file")
    from transformers.utils import is_torchaudio_available

    is_torchaudio_available()  # asked once, before it looks as if it were
    torchtune, inner = types.ModuleType("torchtune"), types.ModuleType("torchtune.modules")
    inner.RotaryPositionalEmbeddings = Rotary  # type: ignore[attr-defined]
    stand_ins = {"torchaudio": types.ModuleType("torchaudio"), "torchtune": torchtune, "torchtune.modules": inner}
    missing = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    for name, module in missing.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules.update(missing)
    try:
        from xcodec2 import modeling_xcodec2
        from xcodec2.vq import module
    finally:
        for name in missing:
            del sys.modules[name]
    return types.SimpleNamespace(**vars(modeling_xcodec2), SemanticDecoder=module.SemanticDecoder)


def official() -> Any:
    """Theirs in small, with random weights: its parts at other sizes, its own `encode_code` and `decode_code`."""
    theirs = package()

    class Small(nn.Module):
        device = torch.device("cpu")
        encode_code, decode_code = theirs.XCodec2Model.encode_code, theirs.XCodec2Model.decode_code

        def __init__(self) -> None:
            super().__init__()
            import transformers

            sizes = {"hidden_size": SEMANTIC, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 17}
            inner = transformers.Wav2Vec2BertConfig(**sizes, output_hidden_states=True)
            self.semantic_model = transformers.Wav2Vec2BertModel(inner)
            self.SemanticEncoder_module = theirs.SemanticEncoder(SEMANTIC, SEMANTIC, SEMANTIC)
            self.SemanticDecoder_module = theirs.SemanticDecoder(SEMANTIC, SEMANTIC, SEMANTIC)
            self.CodecEnc = theirs.CodecEncoder_Transformer(ngf=2, hidden_dim=WIDTH)
            self.generator = theirs.CodecDecoderVocos(hidden_dim=WIDTH, depth=1, heads=1, vq_dim=WIDTH + SEMANTIC)
            self.fc_prior = nn.Linear(WIDTH + SEMANTIC, WIDTH + SEMANTIC)
            self.fc_post_a = nn.Linear(WIDTH + SEMANTIC, WIDTH)
            self.fc_post_s = nn.Linear(WIDTH + SEMANTIC, SEMANTIC)
            self.feature_extractor = transformers.SeamlessM4TFeatureExtractor()

    model = Small().eval()
    shapes = {name: list(value.shape) for name, value in model.state_dict().items() if not is_copy(name)}
    model.load_state_dict(random_weights(shapes), strict=False)
    enter, seen = model.generator.quantizer.project_in, []
    hook = enter.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    model.encode_code(sound(16_000))
    hook.remove()
    with torch.no_grad():  # so that all digits are in use
        mean, spread = seen[0].mean(0), seen[0].std(0)
        enter.weight.div_(spread[:, None])
        enter.bias.copy_((enter.bias - mean) / spread)
    return model


def is_copy(name: str) -> bool:
    return "filter" in name or "window" in name


def random_weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """The same ones everywhere, for good: what RandomState draws is frozen."""
    dice, weights = np.random.RandomState(0), {}
    for name in sorted(shapes):
        shape, value = shapes[name], torch.from_numpy(dice.standard_normal(shapes[name])).float()
        if name.endswith("original0"):  # the norms of weight norm
            value = 1 + 0.3 * value.abs()
        elif name.endswith("bias") or "alpha" in name:
            value = 0.2 * value
        elif len(shape) == 1:
            value = 1 + 0.2 * value
        else:
            value = value * np.prod(shape[1:]) ** -0.5
        weights[name] = value
    return weights


def sound(samples: int) -> Tensor:
    """Noise that comes and goes."""
    noise = torch.from_numpy(np.random.RandomState(samples).standard_normal((1, samples))).float()
    return 0.3 * torch.sin(torch.arange(samples) / 900) ** 2 * noise


def directory(folder: Path, weights: dict[str, Tensor]) -> Path:
    """As on the hub."""
    (folder / "config.json").write_text(json.dumps({"model_type": "xcodec2", "use_vocos": True}))
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    return folder


def lightning(path: Path, weights: dict[str, Tensor]) -> Path:
    """As the training code saves it: weight norm and beta by their old names, discriminators beside the codec."""
    olds = {}
    for name, value in weights.items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v").replace(".act.bias", ".act.beta")
        olds[name] = value
    olds |= {"discriminator.x.weight_g": torch.ones(3), "spec_discriminator.y.bias": torch.ones(2)}
    torch.save({"epoch": 4, "global_step": 1_400_000, "state_dict": olds, "optimizer_states": []}, path)
    return path


def check(ours: Any, expected: dict[str, Tensor]) -> None:
    seen = set()
    for samples in LENGTHS:
        wave, codes, heard = sound(samples), expected[f"codes/{samples}"], expected[f"sound/{samples}"]
        with torch.no_grad():  # the official frames, one more than `encode` gives where samples fill the last
            mine = ours.quantizer.encode(ours.vectors(wave[None]))
            again = ours.synthesise(ours.quantizer.decode(mine))[0]
        assert torch.equal(mine, codes.long())
        assert torch.equal(ours.encode(Audio(wave, 16000)).data, mine[:, :, : -(-samples // 320)])
        torch.testing.assert_close(again, heard, rtol=0, atol=1e-4)
        seen |= set(mine.flatten().tolist())
    assert len(seen) > 50


def told(model: Any) -> dict[str, Tensor]:
    out = {}
    with torch.no_grad():
        for samples in LENGTHS:
            out[f"codes/{samples}"] = codes = model.encode_code(sound(samples))
            out[f"sound/{samples}"] = model.decode_code(codes).contiguous()
    return out


def test_both_layouts_give_the_official_codes_and_sound(tmp_path):
    oracle = official()
    expected = told(oracle)
    for ours in (
        senone.load(directory(tmp_path, oracle.state_dict())),
        senone.load(lightning(tmp_path / "epoch=4.ckpt", oracle.state_dict())),
    ):
        check(ours, expected)
        x = torch.randn(1, SEMANTIC, 30)
        with torch.no_grad():
            want = oracle.SemanticDecoder_module(x.clone()).transpose(1, 2)
            torch.testing.assert_close(ours.semantic_decoder(x.transpose(1, 2)), want, rtol=0, atol=1e-5)
        assert len(ours.semantic.encoder.layers) == 16


def test_what_the_official_package_gave(tmp_path):
    golden = load_file(GOLDEN)
    with GOLDEN.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    weights = random_weights(json.loads(header["__metadata__"]["shapes"]))
    weights |= {name.removeprefix("weights/"): value for name, value in golden.items() if name.startswith("weights/")}
    check(senone.load(directory(tmp_path, weights)), golden)
    check(senone.load(lightning(tmp_path / "a.ckpt", weights)), golden)
    for name in ("fc_prior.bias", "CodecEnc.conv_blocks.2.block.0.block.1.parametrizations.weight.original1"):
        with pytest.raises(SenoneError, match=rf"lacks .*{name}"):
            senone.load(directory(tmp_path, {key: value for key, value in weights.items() if key != name}))
    for name in ("CodecEnc.conv_blocks.1.block.4.bias", "generator.head.out.weight", "fc_prior.weight"):
        with pytest.raises(SenoneError, match=str(tmp_path)):
            senone.load(directory(tmp_path, weights | {name: torch.ones(())}))
    with pytest.raises(SenoneError, match="has unknown 1 weights, first 'generator.more'"):
        senone.load(directory(tmp_path, weights | {"generator.more": torch.ones(1)}))
    low = {key: value for key, value in weights.items() if "layers.9." not in key and "layers.16." not in key}
    with pytest.raises(SenoneError, match="holds 15 blocks of w2v-BERT; X-codec2 hears block 16"):
        senone.load(directory(tmp_path, low))


if __name__ == "__main__":
    model = official()
    shapes = {name: list(value.shape) for name, value in model.state_dict().items() if not is_copy(name)}
    kept = {f"weights/{name}": value for name, value in model.state_dict().items() if "project_in" in name}
    GOLDEN.parent.mkdir(exist_ok=True)
    save_file(kept | told(model), GOLDEN, {"shapes": json.dumps(shapes)})
    print(GOLDEN, GOLDEN.stat().st_size)
