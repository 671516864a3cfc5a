"""Systems by name: what they give, what they are called, and what they say where something is not there."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from senone.audio import Audio
from senone.errors import SenoneError
from senone.eval import peers, systems
from senone.eval.align import aligned, delay
from senone.eval.systems import RATE, system

PROGRAMS = {
    "opus:12k": ("opusenc", "opusdec"),
    "amrwb:12.65": ("sox",),
    "codec2:3200": ("c2enc", "c2dec"),
    "speex:8": ("speexenc", "speexdec"),
    "speex:nb3": ("speexenc", "speexdec"),
}
SPEECH = Audio.read(Path(__file__).parents[2] / "examples" / "clip.flac").mono().resample(RATE).wave[0].numpy()[:48000]


@pytest.fixture(autouse=True)
def _fresh():
    systems.system.cache_clear()
    systems._encoder.cache_clear()


def voice(seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    """Something like speech: a buzz of moving pitch and loudness, with pauses."""
    t = np.arange(round(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(120 + 20 * np.sin(3 * t)) / RATE
    buzz = sum(np.sin(k * phase) / k for k in range(1, 30))
    noise = np.random.default_rng(seed).standard_normal(len(t))
    return (0.05 * (buzz + 0.1 * noise) * np.clip(np.sin(2 * np.pi * 1.3 * t), 0, 1)).astype(np.float32)


@pytest.mark.parametrize("name", PROGRAMS)
def test_classical_codecs_are_driven_as_programs(name):
    codec = system(name)
    if codec.missing:
        pytest.skip(codec.missing)
    for wave in (SPEECH, np.tile(SPEECH, 3)):  # of one page of Ogg, and of more
        coded = codec.code(wave, RATE)
        assert coded.wave is not None and coded.bits is not None and coded.codes is None and coded.seconds > 0
        assert -160 <= len(coded.wave) - codec.delay - len(wave) < 640
        rate, seconds = coded.bits / 1000 / (len(wave) / RATE), len(wave) / RATE
        assert codec.kbps is not None and codec.kbps * 0.95 < rate < codec.kbps * 1.1 + 1.5 + 4 / seconds  # headers
        late = delay(wave, coded.wave, codec.waveform)
        assert late is not None and abs(late - codec.delay) <= (4 if codec.waveform else 100)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_missing_program_is_told_with_the_line_that_installs_it(name, monkeypatch):
    monkeypatch.setenv("PATH", "")
    codec = system(name)
    assert f"{PROGRAMS[name][0]} is not installed: apt-get install " in codec.missing
    with pytest.raises(SenoneError, match="apt-get install"):
        codec.code(voice(), RATE)
    here = codec.fingerprint
    monkeypatch.undo()
    systems.system.cache_clear()
    if shutil.which(PROGRAMS[name][0]):
        assert system(name).fingerprint != here  # so that what was n/a is measured once it is there


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("opus:fast", "needs a rate"),
        ("opus:0", "needs a rate"),
        ("amrwb:6.7", "known: 6.6"),
        ("codec2:9", "known: 3200"),
        ("speex:11", "0 to 10"),
        ("lyra:7", "known: 3.2, 6, 9.2"),
        ("pcm:20k", "1k to 16k"),
        ("cmd:cp a b", "{in}"),
        ("cmd:cp '{in} {out}", "no command"),
        ("files:nowhere", "nowhere is not a folder"),
        ("spectral-mimi", "did you mean 'spectral-mini'"),
        ("spectral-mini@11", "levels must be 1 to 10"),
    ],
)
def test_a_name_that_cannot_be_is_one_sentence(name, sentence):
    with pytest.raises(SenoneError) as error:
        system(name)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_anchors():
    wave = voice()
    same, low = (system(name).code(wave, RATE) for name in ("identity", "pcm:8k"))
    assert same.wave is wave or np.array_equal(same.wave, wave)
    assert same.bits == 16 * len(wave) and low.bits == 8 * len(wave)
    assert low.wave is not None and len(low.wave) == len(wave)
    spectrum = np.abs(np.fft.rfft(low.wave)) ** 2
    assert spectrum[len(spectrum) // 2 + 200 :].sum() < 1e-6 * spectrum.sum()  # nothing above 4 kHz


def test_a_command_of_ones_own():
    wave = voice(0.5)
    coded = system("cmd:head -c 99 {in} > {tok}; cp {in} {out}").code(wave, RATE)
    assert coded.bits == 99 * 8 and coded.wave == pytest.approx(wave, abs=2**-15)
    assert system("cmd:cp {in} {out}").code(wave, RATE).bits is None
    for line, sentence in (("true {in} {out}", "wrote no {out}"), ("echo no >&2; exit 3 {in} {out}", "status 3: no")):
        with pytest.raises(SenoneError, match=sentence):
            system(f"cmd:{line}").code(wave, RATE)


def test_a_command_is_another_system_when_its_script_changes(tmp_path):
    script = tmp_path / "codec.sh"
    script.write_text('cp "$1" "$2"')
    name = f"cmd:sh {script} {{in}} {{out}}"
    before = system(name).fingerprint
    script.write_text('cp "$1" "$2" # louder')
    systems.system.cache_clear()
    assert system(name).fingerprint != before


def test_a_program_that_hangs_is_ended_with_what_it_started():
    with pytest.raises(SenoneError, match="took longer than 0.3 s"):
        peers.shell("sh", "-c", "sleep 60 & sleep 60; wait", seconds=0.3)


def test_a_tokenizer_encodes_once_for_all_its_levels(monkeypatch):
    names = systems.at_several("spectral-mini", (1, 4, 99))
    assert names == ["spectral-mini@1", "spectral-mini@4"] and systems.at_several("opus:6k", (1, 4)) == ["opus:6k"]
    one, four = map(system, names)
    model = systems._encoder("spectral-mini").model
    calls, encode = [], model.encode
    monkeypatch.setattr(model, "encode", lambda *a, **b: calls.append(b) or encode(*a, **b))
    wave = voice(0.7)[:-7]
    small, large = one.code(wave, RATE), four.code(wave, RATE)
    assert calls == [{"levels": 4}]
    monkeypatch.undo()
    for codec, coded, count in ((one, small, 1), (four, large, 4)):
        codes = model.encode(Audio(torch.from_numpy(wave)[None], RATE), levels=count)
        assert coded.codes is not None and np.array_equal(coded.codes, codes.data[0])
        assert coded.wave is not None and np.array_equal(coded.wave, model.decode(codes)[0].wave[0])
        assert codec.kbps == pytest.approx(0.6 * count) and len(codec.sizes) == count
    assert one.group == four.group and one.fingerprint != four.fingerprint
    with pytest.raises(SenoneError, match="none of --levels"):
        systems.at_several("spectral-mini", (11,))


def test_a_recording_of_another_rate_comes_back_at_ours():
    t = np.arange(22050) / 22050
    tone = (0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    for name in ("identity", "spectral-mini@1"):
        wave = system(name).code(tone, 22050).wave
        assert wave is not None and len(wave) == RATE


@pytest.mark.parametrize("shift", [320, -77, 0, 1105])
def test_delay_is_found_and_taken_out(shift):
    wave, silence = voice(1.5), np.zeros(abs(shift), np.float32)
    late = np.concatenate([silence, wave]) if shift >= 0 else wave[-shift:]
    for waveform, near in ((True, 0), (False, 16)):
        assert abs(delay(wave, late, waveform) - shift) <= near  # type: ignore[operator]
    ref, deg = aligned(wave, late, shift)
    assert np.array_equal(ref, deg) and len(ref) == len(wave) - max(0, -shift)


def test_delay_survives_noise_gain_and_polarity_of_others_and_is_none_for_silence():
    wave = voice(1.5)
    noisy = 0.2 * np.roll(wave, 94) + 0.002 * np.random.default_rng(1).standard_normal(len(wave)).astype(np.float32)
    assert delay(wave, noisy.astype(np.float32)) == 94
    assert delay(wave, np.zeros(100, np.float32)) is None and delay(np.zeros(0, np.float32), wave) is None


def test_random_weights_do_not_depend_on_threads(tmp_path):
    """Sums over large weights would differ in the last digit, and the fingerprint with them."""
    source = "from senone.models import spectral\nclass Mine(spectral.Spectral):\n    pass\n"
    (tmp_path / "mine.py").write_text(source)
    prints, before = set(), torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            prints.add(systems.Encoder(f"{tmp_path}/mine.py:Mine").model.spec.fingerprint)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert len(prints) == 1
