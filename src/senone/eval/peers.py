"""The codecs of others, driven as programs, and the anchors: what `senone.eval.systems` looks up by prefix."""

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from senone.eval.metrics import RATE
from senone.eval.systems import Coded, System, Wave, at, digest, load, save
from senone.eval.units import EvalError

AMRWB = {"6.6": 0, "8.85": 1, "12.65": 2, "14.25": 3, "15.85": 4, "18.25": 5, "19.85": 6, "23.05": 7, "23.85": 8}
# kb/s of Speex by quality, constant rate
SPEEX = (3.95, 5.75, 7.75, 9.8, 12.8, 16.8, 20.6, 23.8, 27.8, 34.2, 42.2)
SPEEX_NB = (2.15, 3.95, 5.95, 8.0, 8.0, 11.0, 11.0, 15.0, 15.0, 18.2, 24.6)
SPEEX_AHEAD = {False: 223, True: 160}  # samples at RATE, of the two bands
CODEC2 = ("3200", "2400", "1600", "1400", "1300", "1200", "700C", "450")
LYRA = {"3.2": 16, "6": 30, "9.2": 46}  # kb/s -> levels of 4 bits at 50 Hz
FACTOR, GRACE = 20, 60.0  # a program may take that many times the length of the sound, and so many seconds more


def opus(name: str, setting: str) -> System:
    """Opus by opus-tools, hard constant rate, complexity 10. The file's Ogg pages add about 1.3 kb/s to the nominal."""
    kbps = _number(name, setting.removesuffix("k"))

    def run(wave: Wave) -> tuple[Wave, int]:
        with tempfile.TemporaryDirectory() as folder:
            source, coded, out = (f"{folder}/{file}" for file in ("in.wav", "x.opus", "out.wav"))
            save(source, wave)
            shell("opusenc", "--quiet", "--hard-cbr", "--bitrate", f"{kbps:g}", "--comp", "10", source, coded)
            shell("opusdec", "--quiet", "--rate", str(RATE), "--no-dither", coded, out)
            return load(out), 8 * os.path.getsize(coded)

    mark, missing = _programs("opus-tools", "opusenc", "opusdec")
    return _simple(name, f"opus-cbr{kbps:g}-{mark}", run, kbps=kbps, missing=missing)


def amrwb(name: str, setting: str) -> System:
    """AMR-WB: encoded by libvo-amrwbenc (320-sample frames, no DTX), decoded by sox; 94 samples late."""
    if setting not in AMRWB:
        raise EvalError(f"AMR-WB has no rate '{setting}'; known: {', '.join(AMRWB)}")
    mark, missing = _programs("sox libsox-fmt-all libvo-amrwbenc0", "sox")
    try:
        library = ctypes.CDLL("libvo-amrwbenc.so.0")
    except OSError:
        library = None
        missing = missing or "libvo-amrwbenc is not installed: apt-get install libvo-amrwbenc0 sox libsox-fmt-all"

    def run(wave: Wave) -> tuple[Wave, int]:
        data = _amrwb_encode(library, AMRWB[setting], wave)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "x.awb").write_bytes(data)
            shell("sox", f"{folder}/x.awb", f"{folder}/out.wav")
            return load(f"{folder}/out.wav"), 8 * len(data)

    return _simple(name, f"amrwb-{setting}-1-{mark}", run, kbps=float(setting), missing=missing, delay=94)


def _amrwb_encode(library: Any, mode: int, wave: Wave) -> bytes:
    library.E_IF_init.restype = ctypes.c_void_p
    library.E_IF_encode.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]
    library.E_IF_exit.argtypes = [ctypes.c_void_p]
    pcm = _samples(np.pad(wave, (0, 320 + -len(wave) % 320)))
    state, packet, packets = library.E_IF_init(), ctypes.create_string_buffer(64), []
    for start in range(0, len(pcm), 640):
        size = library.E_IF_encode(state, mode, pcm[start : start + 640], packet, 0)
        packets.append(packet.raw[:size])
    library.E_IF_exit(state)
    return b"#!AMR-WB\n" + b"".join(packets)


def codec2(name: str, setting: str) -> System:
    """Codec2: a vocoder at 8 kHz.

    Its delay was found on development speech: STOI is highest, and flat, from 300 to 320 samples.
    """
    if setting not in CODEC2:
        raise EvalError(f"Codec2 has no rate '{setting}'; known: {', '.join(CODEC2)}")

    def run(wave: Wave) -> tuple[Wave, int]:
        narrow = at(np.pad(wave, (0, 320 + -len(wave) % 320)), RATE, 8000)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "in.raw").write_bytes(_samples(narrow))
            shell("c2enc", setting, f"{folder}/in.raw", f"{folder}/x.bit")
            shell("c2dec", setting, f"{folder}/x.bit", f"{folder}/out.raw")
            out = np.frombuffer(Path(folder, "out.raw").read_bytes(), "<i2").astype(np.float32) / 32768
            return at(out, 8000, RATE), 8 * os.path.getsize(f"{folder}/x.bit")

    mark, missing = _programs("codec2", "c2enc", "c2dec")
    kbps = float(setting.removesuffix("C")) / 1000
    about: dict[str, Any] = {"kbps": kbps, "missing": missing, "delay": 310, "waveform": False}
    return _simple(name, f"codec2-{setting}-2-{mark}", run, **about)


def speex(name: str, setting: str) -> System:
    """Speex at a quality of 0 to 10, constant rate: wide band (speex:8), or narrow band (speex:nb8).

    speexdec takes its look-ahead off, but not where a short stream fits into one page: there we do.
    """
    narrow, quality = setting.startswith("nb"), setting.removeprefix("nb")
    if quality not in map(str, range(11)):
        raise EvalError(f"'{name}': the quality of Speex is 0 to 10, as in speex:8, or speex:nb8 for narrow band")
    rate, band = (8000, "-n") if narrow else (RATE, "-w")

    def run(wave: Wave) -> tuple[Wave, int]:
        with tempfile.TemporaryDirectory() as folder:
            source, coded, out = (f"{folder}/{file}" for file in ("in.wav", "x.spx", "out.wav"))
            save(source, at(wave, RATE, rate), rate)
            shell("speexenc", band, "--quality", quality, source, coded)
            shell("speexdec", coded, out)
            pages = Path(coded).read_bytes().count(b"OggS") - 2  # without the two of the header
            return load(out)[SPEEX_AHEAD[narrow] if pages < 2 else 0 :], 8 * os.path.getsize(coded)

    mark, missing = _programs("speex", "speexenc", "speexdec")
    kbps = (SPEEX_NB if narrow else SPEEX)[int(quality)]
    return _simple(name, f"speex-{setting}-2-{mark}", run, kbps=kbps, missing=missing)


def lyra(name: str, setting: str) -> System:
    """Lyra V2, Google's production SoundStream; bits are the packets' payload (4 bits a level, 50 frames/s)."""
    if setting not in LYRA:
        raise EvalError(f"Lyra has no rate '{setting}'; known: {', '.join(LYRA)}")
    levels = LYRA[setting]
    folder = Path(os.environ.get("SENONE_WEIGHTS") or Path.home() / ".cache" / "senone-weights") / "lyra_v2"
    files = [folder / f"{part}.tflite" for part in ("soundstream_encoder", "quantizer", "lyragan")]
    absent = [file for file in files if not file.exists()]
    where = "they are google/lyra's lyra/model_coeffs; SENONE_WEIGHTS names the folder that holds lyra_v2"
    missing = f"{absent[0]} does not exist: {where}" if absent else ""
    try:
        from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports]
    except ImportError:
        Interpreter, missing = None, "ai-edge-litert is not installed: pip install ai-edge-litert"

    def run(wave: Wave) -> tuple[Wave, int]:
        # The nets keep their streaming state inside, so every recording gets interpreters of its own.
        encoder, quantizer, decoder = (Interpreter(str(file), num_threads=1) for file in files)  # type: ignore[misc]
        encode, decode = encoder.get_signature_runner(), decoder.get_signature_runner()
        pack, unpack = quantizer.get_signature_runner("encode"), quantizer.get_signature_runner("decode")
        frames = np.pad(wave, (0, -len(wave) % 320)).reshape(-1, 1, 320).astype(np.float32)
        out = []
        for frame in frames:
            indices: Any = pack(input_frames=encode(input_audio=frame)["output_0"], num_quantizers=np.int32(levels))
            z = unpack(encoding_indices=next(iter(indices.values())))
            out.append(decode(input_audio=next(iter(z.values())))["output_0"][0])
        return np.concatenate(out), 4 * levels * len(frames)

    mark = "missing" if missing else digest(*(file.read_bytes() for file in files))[:8]
    return _simple(name, f"lyra-{levels}-{mark}", run, kbps=4 * levels * 50 / 1000, missing=missing, causal=True)


def pcm(name: str, setting: str) -> System:
    """The anchor: PCM of a lower rate, there and back."""
    rate = round(1000 * _number(name, setting.removesuffix("k")))
    if not 1000 <= rate <= RATE:
        raise EvalError(f"'{name}': the rate is 1k to {RATE // 1000}k")

    def run(wave: Wave) -> tuple[Wave, int]:
        low = at(wave, RATE, rate)
        return at(low, rate, RATE), 16 * len(low)

    return _simple(name, f"pcm-{rate}-1", run, kbps=16 * rate / 1000)


def command(name: str, setting: str) -> System:
    """A shell command; {in} and {out} are WAV files of 16 bit at RATE, {tok} the file whose size is counted."""
    if "{in}" not in setting or "{out}" not in setting:
        raise EvalError(f"'{name}' must name {{in}} and {{out}}, and {{tok}} if its size is to be counted")

    def run(wave: Wave) -> tuple[Wave, int | None]:
        with tempfile.TemporaryDirectory() as folder:
            places = {key: Path(folder, file) for key, file in (("in", "in.wav"), ("tok", "tok"), ("out", "out.wav"))}
            save(places["in"], wave)
            line = setting
            for key, place in places.items():
                line = line.replace(f"{{{key}}}", shlex.quote(str(place)))
            shell("sh", "-c", line, seconds=FACTOR * len(wave) / RATE + GRACE)
            if not places["out"].exists():
                raise EvalError(f"'{setting}' wrote no {{out}}")
            return load(places["out"]), 8 * places["tok"].stat().st_size if places["tok"].exists() else None

    # the command's own programs and scripts count: another version is another system
    try:
        words = [shutil.which(word) or word for word in shlex.split(setting)]
    except ValueError as error:
        raise EvalError(f"'{name}' is no command: {error}") from None
    files = [Path(word) for word in words if Path(word).is_file()]
    return _simple(name, f"cmd-{digest(setting.encode(), *(file.read_bytes() for file in files))[:16]}", run)


def identity(name: str, setting: str) -> System:
    """The wave itself, as 16-bit PCM."""
    return _simple(name, "identity-1", lambda wave: (wave, 16 * len(wave)), kbps=16 * RATE / 1000)


def _simple(name: str, mark: str, inner: Callable[[Wave], tuple[Wave, int | None]], **about: Any) -> System:
    """A system made of a function on waves at RATE."""

    def run(wave: Wave, rate: int, utterance: str) -> Coded:
        wave, begin = at(wave, rate, RATE), perf_counter()
        heard, bits = inner(wave)
        return Coded(heard, bits, None, perf_counter() - begin)

    return System(name, mark, run, group=name, **about)


def _programs(package: str, *names: str) -> tuple[str, str]:
    """Fingerprint of programs, and the sentence on the first that is not there."""
    for name in names:
        if shutil.which(name) is None:
            return "missing", f"{name} is not installed: apt-get install {package}"
    return digest(*(Path(str(shutil.which(name))).read_bytes() for name in names))[:8], ""


def shell(*command: str, seconds: float | None = None) -> None:
    """Run a program. Raises EvalError with the end of what it said where it fails, or takes longer than `seconds`."""
    name = command[-1] if command[0] == "sh" else command[0]
    try:
        # a session of its own: what a shell started ends with it
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
    except FileNotFoundError:
        raise EvalError(f"{name} is not installed") from None
    try:
        said = process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        raise EvalError(f"'{name}' took longer than {seconds:g} s") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        end = said.decode(errors="replace").strip()[-200:]
        raise EvalError(f"'{name}' failed with status {process.returncode}: {end}")


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise EvalError(f"'{name}' needs a rate in kb/s or kHz, as in opus:12k or pcm:8k")
    return value


def _samples(wave: Wave) -> bytes:
    return np.round(np.clip(wave, -1, 1 - 2**-15) * 32768).astype("<i2").tobytes()
