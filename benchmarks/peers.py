"""The systems that codec_quality.py compares, by name: senone's own models and the codecs of others.

    identity | NAME_OR_PATH@LEVELS | opus:6k | amrwb:6.6 | codec2:3200 | lyra:3.2

`System.code` takes a 16 kHz wave to what comes out of the codec, and the bits of the file or packets in between.
"""

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from senone.errors import SenoneError

RATE = 16000
WEIGHTS = Path(os.environ.get("SENONE_WEIGHTS", Path(__file__).parents[2] / "shared" / "weights"))


class PeerError(SenoneError):
    """A name nobody knows, or a program that is not installed."""


@dataclass(frozen=True)
class System:
    """A codec at one bit rate.

    kbps: nominal. delay: samples by which its output runs behind, removed before anything is measured. waveform:
    False where the decoder keeps no phase, so that SI-SDR says nothing. fingerprint: changes when the output may.
    """

    name: str
    fingerprint: str
    kbps: float
    code: Callable[[np.ndarray], tuple[np.ndarray, int]]
    delay: int = 0
    waveform: bool = True


def system(name: str) -> System:
    """The system of that name. Raises PeerError, or senone's own errors for its models."""
    kind, _, setting = name.partition(":")
    if name == "identity":
        return System(name, "identity-1", 16 * RATE / 1000, lambda wave: (wave, 16 * len(wave)))
    if kind in PEERS and setting:
        return PEERS[kind](name, setting)
    return _senone(name)


def _senone(name: str) -> System:
    """A model of ours at a number of levels; the bits are those of its .sno file."""
    import torch

    import senone
    from senone.audio import Audio
    from senone.bitstream import Writer

    model, _, levels = name.rpartition("@")
    if not (model and levels.isdigit()):
        model, levels = name, ""
    codec = senone.load(model)
    count = codec.levels_for(int(levels) if levels else None)
    sizes = codec.spec.sizes[:count]
    source = Path(senone.__file__).parent
    files = [path for part in ("models", "nn", "quantize", ".") for path in sorted(source.glob(f"{part}/*.py"))]
    used = [path for path in files if path.parent != source or path.stem in ("tokenizer", "features")]
    program = _digest(*(path.read_bytes() for path in used))[:8]

    def code(wave: np.ndarray) -> tuple[np.ndarray, int]:
        codes = codec.encode(Audio(torch.from_numpy(wave)[None], RATE), levels=count)
        with tempfile.TemporaryDirectory() as folder:
            with Writer(f"{folder}/x.sno", codec.spec, count) as writer:
                writer.write(codes)
            bits = 8 * os.path.getsize(f"{folder}/x.sno")
        return codec.decode(codes)[0].resample(RATE).wave[0].numpy(), bits

    kbps = float(codec.spec.frame_rate) * sum(np.log2(sizes)) / 1000
    return System(name, f"{codec.spec.fingerprint}@{count}-{program}", kbps, code)


def _opus(name: str, setting: str) -> System:
    """Opus by opus-tools, hard constant rate, complexity 10. The file's Ogg pages add about 1.3 kb/s to the nominal."""
    kbps = float(setting.removesuffix("k"))

    def code(wave: np.ndarray) -> tuple[np.ndarray, int]:
        with tempfile.TemporaryDirectory() as folder:
            _write(f"{folder}/in.wav", wave, RATE)
            _run("opusenc", "--quiet", "--hard-cbr", "--bitrate", f"{kbps:g}", "--comp", "10",
                 f"{folder}/in.wav", f"{folder}/x.opus")  # fmt: skip
            _run("opusdec", "--quiet", "--rate", str(RATE), "--no-dither", f"{folder}/x.opus", f"{folder}/out.wav")
            return _read(f"{folder}/out.wav"), 8 * os.path.getsize(f"{folder}/x.opus")

    return System(name, f"opus-cbr{kbps:g}-{_digest(_run('opusenc', '--version'))[:8]}", kbps, code)


def _amrwb(name: str, setting: str) -> System:
    """AMR-WB: encoded by libvo-amrwbenc (320-sample frames, no DTX), decoded by sox; 94 samples late."""
    modes = {"6.6": 0, "8.85": 1, "12.65": 2, "14.25": 3, "15.85": 4, "18.25": 5, "19.85": 6, "23.05": 7, "23.85": 8}
    if setting not in modes:
        raise PeerError(f"AMR-WB has no rate '{setting}'; known: {', '.join(modes)}")
    try:
        library = ctypes.CDLL("libvo-amrwbenc.so.0")
    except OSError:
        raise PeerError(f"{name} needs libvo-amrwbenc0, which is not installed") from None
    library.E_IF_init.restype = ctypes.c_void_p
    library.E_IF_encode.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]
    library.E_IF_exit.argtypes = [ctypes.c_void_p]

    def code(wave: np.ndarray) -> tuple[np.ndarray, int]:
        pcm = _pcm(np.pad(wave, (0, 320 + -len(wave) % 320)))
        state, packet, packets = library.E_IF_init(), ctypes.create_string_buffer(64), []
        for start in range(0, len(pcm), 640):
            size = library.E_IF_encode(state, modes[setting], pcm[start : start + 640], packet, 0)
            packets.append(packet.raw[:size])
        library.E_IF_exit(state)
        data = b"#!AMR-WB\n" + b"".join(packets)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "x.awb").write_bytes(data)
            _run("sox", f"{folder}/x.awb", f"{folder}/out.wav")
            return _read(f"{folder}/out.wav"), 8 * len(data)

    return System(name, f"amrwb-{setting}-1", float(setting), code, delay=94)


def _codec2(name: str, setting: str) -> System:
    """Codec2: a vocoder at 8 kHz, resampled there and back by soxr.

    Its delay was found on development speech: STOI is highest, and flat, from 300 to 320 samples.
    """

    def code(wave: np.ndarray) -> tuple[np.ndarray, int]:
        narrow = soxr.resample(np.pad(wave, (0, 320 + -len(wave) % 320)), RATE, 8000, quality="HQ")
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "in.raw").write_bytes(_pcm(narrow))
            _run("c2enc", setting, f"{folder}/in.raw", f"{folder}/x.bit")
            _run("c2dec", setting, f"{folder}/x.bit", f"{folder}/out.raw")
            out = np.frombuffer(Path(folder, "out.raw").read_bytes(), "<i2").astype(np.float32) / 32768
            return soxr.resample(out, 8000, RATE, quality="HQ"), 8 * os.path.getsize(f"{folder}/x.bit")

    return System(name, f"codec2-{setting}-2", float(setting) / 1000, code, delay=310, waveform=False)


def _lyra(name: str, setting: str) -> System:
    """Lyra V2, Google's production SoundStream; bits are the packets' payload (4 bits a level, 50 frames/s)."""
    levels = {"3.2": 16, "6": 30, "9.2": 46}.get(setting)
    if levels is None:
        raise PeerError(f"Lyra has no rate '{setting}'; known: 3.2, 6, 9.2")
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise PeerError(f"{name} needs the package ai-edge-litert") from None
    files = {part: WEIGHTS / "lyra_v2" / f"{part}.tflite" for part in ("soundstream_encoder", "quantizer", "lyragan")}
    for file in files.values():
        if not file.exists():
            raise PeerError(f"{file} is missing: SENONE_WEIGHTS must name a folder with lyra_v2 in it")

    def code(wave: np.ndarray) -> tuple[np.ndarray, int]:
        # The nets keep their streaming state inside, so every recording gets interpreters of its own.
        encoder, quantizer, decoder = (Interpreter(str(file), num_threads=1) for file in files.values())
        encode, decode = encoder.get_signature_runner(), decoder.get_signature_runner()
        pack, unpack = quantizer.get_signature_runner("encode"), quantizer.get_signature_runner("decode")
        frames = np.pad(wave, (0, -len(wave) % 320)).reshape(-1, 1, 320).astype(np.float32)
        out = []
        for frame in frames:
            indices: Any = pack(input_frames=encode(input_audio=frame)["output_0"], num_quantizers=np.int32(levels))
            z = unpack(encoding_indices=next(iter(indices.values())))
            out.append(decode(input_audio=next(iter(z.values())))["output_0"][0])
        return np.concatenate(out), 4 * levels * len(frames)

    kbps = 4 * levels * 50 / 1000
    return System(name, f"lyra-{levels}-{_digest(*(file.read_bytes() for file in files.values()))[:8]}", kbps, code)


PEERS: dict[str, Callable[[str, str], System]] = {"opus": _opus, "amrwb": _amrwb, "codec2": _codec2, "lyra": _lyra}


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _run(*command: str) -> bytes:
    try:
        return subprocess.run(command, check=True, capture_output=True).stdout
    except FileNotFoundError:
        raise PeerError(f"{command[0]} is not installed") from None
    except subprocess.CalledProcessError as error:
        raise PeerError(f"{command[0]} failed: {error.stderr.decode(errors='replace').strip()[-200:]}") from None


def _pcm(wave: np.ndarray) -> bytes:
    return np.round(np.clip(wave, -1, 1 - 2**-15) * 32768).astype("<i2").tobytes()


def _write(path: str, wave: np.ndarray, rate: int) -> None:
    soundfile.write(path, wave, rate, "PCM_16")


def _read(path: str) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]
