"""`senone check hf:DIR`: which laws a tokenizer of transformers keeps, as a table, also where it breaks some."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")


def test_a_lawful_one(senone, tmp_path):
    from transformers import EncodecConfig, EncodecModel

    small = dict(num_filters=2, hidden_size=8, codebook_size=16, upsampling_ratios=[5, 4], target_bandwidths=[0.2, 0.8])
    EncodecModel(EncodecConfig(sampling_rate=1000, **small)).save_pretrained(tmp_path)
    done = senone("check", f"hf:{tmp_path}", "--hours", "0.001")
    lines = [line.split()[:2] for line in done.out.decode().splitlines()]
    names = ("length", "batch", "chunks", "levels", "time", "sessions", "storage", "extremes")
    assert lines[:8] == [["ok", name] for name in names] and done.code == 0, done.out.decode()
    assert [name for _, name in lines[8:]] == ["length", "batch", "chunks"]
    assert all(verdict in ("keeps", "breaks") for verdict, _ in lines[8:])


def test_one_that_breaks_laws_is_told_to_the_end(senone, tmp_path):
    from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

    class MoodyConfig(PreTrainedConfig):
        model_type = "moody"
        sampling_rate: int = 1000
        hop_length: int = 100
        codebook_size: int = 8

    class Moody(PreTrainedModel):
        """Its codes count the calls."""

        config_class = MoodyConfig

        def __init__(self, config):
            super().__init__(config)
            self.weight, self.calls = torch.nn.Parameter(torch.ones(1)), 0
            self.post_init()

        def encode(self, input_values):
            self.calls += 1
            return SimpleNamespace(audio_codes=torch.full((1, 1, input_values.shape[2] // 100), self.calls % 8))

        def decode(self, audio_codes):
            return SimpleNamespace(audio_values=audio_codes[:, 0].float().repeat_interleave(100, 1)[:, 3:])

    AutoConfig.register("moody", MoodyConfig, exist_ok=True)
    AutoModel.register(MoodyConfig, Moody, exist_ok=True)
    Moody(MoodyConfig()).save_pretrained(tmp_path)
    done = senone("check", f"hf:{tmp_path}", "--hours", "0.001")
    lines = done.out.decode().splitlines()
    verdicts = {line.split()[1]: line.split()[0] for line in lines[:8]}
    assert done.code == 1 and len(lines) == 11
    assert verdicts["length"] == "ok" and verdicts["batch"] == verdicts["chunks"] == verdicts["storage"] == "BROKEN"
    assert lines[8].startswith("breaks length") and "1000 samples come back as 997" in lines[8]
