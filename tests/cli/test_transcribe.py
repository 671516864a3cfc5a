"""senone transcribe and align: with a net that hears nothing but pitches."""

import json
import re

import pytest
import torch

from senone.audio import Audio
from senone.ctc import BLANK, Hypothesis, text_of
from senone.ctc.align import Word
from senone.ctc.ngram import NGram
from senone.ctc.transcribe import aligned, as_srt, beside, decoder, log_probs, stretches, transcribe
from senone.models.ctc import Config, Recogniser

VOCAB = ("<pad>", "|", "A", "B", "C")
NET = {
    "model_type": "senone_hubert", "channels": [8, 8, 8], "kernels": [10, 8, 4], "strides": [8, 8, 5], "width": 16,
    "layers": 1, "heads": 2, "hidden": 24, "pos_kernel": 8, "pos_groups": 2,
}  # fmt: skip


@pytest.fixture(scope="session")
def speller(tmp_path_factory):
    """A folder with a recogniser of random weights, 50 frames a second."""
    torch.manual_seed(1)
    model = Recogniser(Config(NET, VOCAB))
    with torch.no_grad():
        model.lm_head.weight.mul_(8)  # so that it says something
    return model.save_pretrained(tmp_path_factory.mktemp("speller") / "net")


@pytest.fixture(scope="session")
def net(speller) -> Recogniser:
    return Recogniser.from_pretrained(speller)


@pytest.fixture
def said(monkeypatch):
    """Let the recogniser say this in every recording from here on: 0.1 s a letter, then 0.1 s of blank."""

    def say(text: str) -> None:
        line = [VOCAB.index(letter) for letter in text.upper().replace(" ", "|")]
        best = [k for letter in line for k in [letter] * 5 + [BLANK] * 5]

        def logits(self, wave, lengths=None):
            frames = self.encoder(wave).x.shape[1]
            out = torch.zeros(1, frames, len(VOCAB))
            out[0, torch.arange(frames), torch.tensor((best + [BLANK] * frames)[:frames])] = 9.0
            return out

        monkeypatch.setattr(Recogniser, "logits", logits)

    return say


def sound(path, seconds: float):
    torch.manual_seed(int(seconds))
    Audio(torch.randn(1, round(seconds * 16000)) * 0.1, 16000).save(path)
    return path


def test_a_line_of_words(senone, speller, said, tmp_path):
    said("ab cab")
    first, second = sound(tmp_path / "1.wav", 2), sound(tmp_path / "2.wav", 3)
    assert senone("transcribe", first, "-m", speller) == (0, b"AB CAB\n", "")
    assert senone("transcribe", "-", "-m", speller, stdin=first.read_bytes()) == (0, b"AB CAB\n", "")
    assert senone("transcribe", first, second, "-m", speller).out.decode() == f"{first}\tAB CAB\n{second}\tAB CAB\n"
    assert senone("transcribe", first, "-m", speller, "--words").out == b"0.00\t0.30\tAB\n0.60\t1.10\tCAB\n"


def test_json_is_an_object_a_line(senone, speller, said, tmp_path):
    said("ab cab")
    files = [sound(tmp_path / f"{k}.wav", 2) for k in range(2)]
    rows = [json.loads(line) for line in senone("transcribe", *files, "-m", speller, "--json").out.splitlines()]
    assert [row["file"] for row in rows] == [str(file) for file in files]
    assert rows[0].keys() == {"file", "text", "words"} and rows[0]["text"] == "AB CAB"
    last = rows[0]["words"][1]
    assert last == {"word": "CAB", "start": 0.6, "end": 1.1, "score": pytest.approx(0, abs=0.01)}


def test_subtitles(senone, speller, said, tmp_path):
    said("ab cab")
    out = senone("transcribe", sound(tmp_path / "1.wav", 2), "-m", speller, "--srt").out.decode()
    assert out == "1\n00:00:00,000 --> 00:00:01,100\nAB CAB\n\n"
    words = [Word("word", 3600 + k * 0.5, 3600.4 + k * 0.5, 0.0) for k in range(40)]
    words.append(Word("END", 3630, 3631, 0.0))
    captions = [caption.rstrip().split("\n") for caption in as_srt("x", words)]
    assert [caption[0] for caption in captions] == [str(k) for k in range(1, len(captions) + 1)]
    assert captions[-1][1:] == ["01:00:30,000 --> 01:00:31,000", "END"]
    assert all(len(line) <= 42 for caption in captions for line in caption) and max(map(len, captions)) == 4
    assert " ".join(line for caption in captions for line in caption[2:]).split() == [word.text for word in words]


def test_bad_files_are_told_of_and_the_others_go_on(senone, speller, said, tmp_path):
    said("ab")
    good, text = sound(tmp_path / "good.wav", 2), tmp_path / "text.wav"
    text.write_text("no sound")
    Audio(torch.zeros(1, 100), 16000).save(tmp_path / "short.wav")
    files = (tmp_path / "no.wav", text, tmp_path / "short.wav", good)
    code, out, err = senone("transcribe", *files, "-m", speller)
    assert code == 2 and out.decode() == f"{good}\tAB\n" and "Traceback" not in err
    lines = err.splitlines()
    assert len(lines) == 3 and all(line.startswith("senone: ") for line in lines)
    assert "no.wav: No such file" in lines[0] and "text.wav is not audio" in lines[1]


def test_too_little_sound_is_named(senone, speller, tmp_path):
    Audio(torch.zeros(1, 100), 16000).save(tmp_path / "short.wav")
    code, out, err = senone("transcribe", tmp_path / "short.wav", "-m", speller)
    assert (code, out) == (2, b"") and re.search(r"short.wav: audio of 100 samples is too short", err)


def test_words_that_exclude_one_another(senone, speller, model, tmp_path):
    file = sound(tmp_path / "1.wav", 1)
    for words, says in (
        (("--srt", "--json"), "exclude one another"),
        ((file, "--srt"), "--srt is for one recording"),
        (("--greedy", "--beam", "3"), "--greedy needs no language model"),
        (("--lm", "no.arpa"), "no.arpa does not exist"),
        (("--lexicon", "no.txt"), "cannot read no.txt"),
    ):
        code, out, err = senone("transcribe", file, *words, "-m", speller)
        assert (code, out) == (2, b"") and says in err and err.count("\n") == 1
    assert "is no recogniser but a SoundStream" in senone("transcribe", file, "-m", model).err
    assert "unknown model 'cctc-mini'" in senone("transcribe", file, "-m", "cctc-mini").err


@torch.no_grad()
def test_a_short_file_is_heard_whole_and_a_long_one_in_blocks(net, tmp_path):
    wave = Audio.read(sound(tmp_path / "1.wav", 9)).wave
    whole = net.logits(wave)[0].log_softmax(-1)
    pieces = list(log_probs(net, wave.split(7001, 1)))
    assert len(pieces) == 1 and torch.equal(pieces[0], whole)
    blocks = list(log_probs(net, wave.split(7001, 1), block=3.0, overlap=2.0))
    assert len(blocks) > 3 and len(torch.cat(blocks)) == len(whole)
    again = list(log_probs(net, [wave], block=3.0, overlap=2.0))
    assert all(torch.equal(a, b) for a, b in zip(blocks, again, strict=True))  # whatever the pieces it comes in
    # the third block starts at 2 s, and says what there is from 3 s on, when half of its overlap is over
    third = net.logits(wave[:, 32000 : 32000 + 48000])[0].log_softmax(-1)
    assert torch.equal(blocks[2], third[50:100])


@torch.no_grad()
def test_blocks_are_stitched_where_they_belong(net, monkeypatch, tmp_path):
    """A net that says in every frame what its first sample is: then a frame's place can be read."""

    def logits(self, wave, lengths=None):
        frames = int(self.encoder.frames(wave.shape[1]))
        return wave[:, : frames * 320 : 320, None].expand(1, frames, 5) * torch.arange(5)

    monkeypatch.setattr(Recogniser, "logits", logits)
    for samples in (16000, 47999, 48000, 48001, 200_123):
        wave = torch.randn(1, samples)
        whole = net.logits(wave)[0].log_softmax(-1)
        assert torch.equal(torch.cat(list(log_probs(net, wave.split(999, 1), 3.0, 2.0))), whole)


def flat(text: str) -> torch.Tensor:
    """A frame a letter; a dot is a blank."""
    out = torch.full((len(text), len(VOCAB)), -9.0)
    out[torch.arange(len(text)), torch.tensor([0 if k == "." else VOCAB.index(k) for k in text])] = 0
    return out


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_stretches_end_in_pauses_between_words(size):
    line = "AB....C|...." + "A|..B|" + "AAAAAAAAAAAAA" + "CCCCCCCCCCCC"
    pieces = flat(line).split(size)
    found = list(stretches(pieces, VOCAB, 1, pause=4, seconds=(5, 14)))
    texts = [line[first : first + len(part)] for first, part in found]
    assert texts == ["AB....C|...", ".A|..B|", "AAAAAAAAAAAAAC", "CCCCCCCCCCC"]
    assert torch.equal(torch.cat([part for _, part in found]), flat(line))


def test_words_of_a_long_recording_have_their_times(net, said, tmp_path, monkeypatch):
    file = sound(tmp_path / "1.wav", 50)
    monkeypatch.setattr("senone.ctc.transcribe.log_probs", lambda *_: iter(spoken.split(700)))
    text = ("AB|.." * 60 + "C" * 3 + "|" + "." * 40) * 5
    spoken = flat(text)
    seen = []
    decode = decoder(net)

    def watching(part):
        seen.append(len(part))
        return decode(part)

    words = list(transcribe(net, file, watching))
    starts = [m.start() / 50 for m in re.finditer("AB|C+", text)]
    assert [word.text for word in words] == re.findall("AB|C", re.sub("C+", "C", text))
    assert [word.start for word in words] == pytest.approx(starts) and max(seen) <= 1500 < sum(seen)


def test_silence_says_nothing(senone, speller, said, tmp_path):
    said("")
    file = sound(tmp_path / "1.wav", 2)
    assert senone("transcribe", file, "-m", speller) == (0, b"\n", "")
    assert json.loads(senone("transcribe", file, "-m", speller, "--json").out)["words"] == []
    assert senone("transcribe", file, "-m", speller, "--srt") == (0, b"", "")


def test_an_ngram_model_beside_the_weights_is_used(senone, speller, said, tmp_path):
    file, net = sound(tmp_path / "1.wav", 2), tmp_path / "net"
    net.mkdir()
    for path in speller.iterdir():
        (net / path.name).write_bytes(path.read_bytes())
    said("ab cb")  # no word of the model below
    NGram.train(["AB CAB", "AB CAB", "AB A"], 2).save(net / "ngram.arpa.gz")
    assert beside(str(net)) == net / "ngram.arpa.gz" and beside(str(speller)) is None
    assert senone("transcribe", file, "-m", net, "--greedy").out == b"AB CB\n"
    assert senone("transcribe", file, "-m", net).out == b"AB CAB\n"
    assert senone("transcribe", file, "-m", speller, "--lm", net / "ngram.arpa.gz").out == b"AB CAB\n"
    (tmp_path / "words.txt").write_text("ab\nBAC b a c\n\nx!\n")
    out = senone("transcribe", file, "-m", speller, "--lexicon", tmp_path / "words.txt").out.decode().split()
    assert out[0] == "AB" and set(out) <= {"AB", "BAC"}
    (tmp_path / "none.txt").write_text("xyz\n")
    err = senone("transcribe", file, "-m", speller, "--lexicon", tmp_path / "none.txt").err
    assert "none.txt has no word that the recogniser can spell" in err


def test_a_beam_without_words_sums_alignments(net):
    frames = torch.tensor([[0.4, 0.0, 0.35, 0.25, 0.0], [0.4, 0.0, 0.35, 0.25, 0.0]]).clamp(min=1e-9).log()
    assert decoder(net)(frames).text == "" and decoder(net, beam=8)(frames).text == "A"
    assert isinstance(decoder(net)(frames), Hypothesis)


def test_align_gives_times_of_known_words(senone, speller, said, tmp_path):
    said("ab cab ")
    file = sound(tmp_path / "1.wav", 2)
    table = b"0.00\t0.30\tAB\n0.60\t1.10\tCAB\n"
    assert senone("align", file, "Ab, cab!", "-m", speller) == (0, table, "")
    (tmp_path / "said.txt").write_text("ab\ncab\n")
    assert senone("align", "-", tmp_path / "said.txt", "-m", speller, stdin=file.read_bytes()).out == table
    row = json.loads(senone("align", file, "ab cab", "--json", "-m", speller).out)
    assert row["text"] == "AB CAB" and row["words"][0]["start"] == 0.0 and row["words"][0]["score"] > -0.1


def test_align_by_chance_covers_the_words(net, tmp_path):
    """Real logits of the random net: order, bounds, and text are kept."""
    words = aligned(net, sound(tmp_path / "1.wav", 3), "ab c cab")
    assert [word.text for word in words] == ["AB", "C", "CAB"]
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times) and 0 <= times[0] and times[-1] <= 3
    assert text_of(tuple(VOCAB.index(letter) for letter in "AB|C"), VOCAB) == "AB C"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("xab", "the text: the vocabulary has no 'X', which 'XAB' needs"),
        (" ", "the text: the transcript is empty"),
        ("...", "the text: the transcript is empty"),
        ("abc " * 99, "1.wav does not fit the text: 396 tokens need at least 396 frames"),
    ],
)
def test_align_refuses(senone, speller, tmp_path, text, says):
    code, out, err = senone("align", sound(tmp_path / "1.wav", 1), text, "-m", speller)
    assert (code, out) == (2, b"") and says in err and err.count("\n") == 1


def test_align_names_the_file_of_the_text(senone, speller, tmp_path):
    (tmp_path / "said.txt").write_text("ab 3")
    err = senone("align", sound(tmp_path / "1.wav", 1), tmp_path / "said.txt", "-m", speller).err
    assert "said.txt: the vocabulary has no '3'" in err
    (tmp_path / "said.txt").write_bytes(b"\xff\xfe\x00")
    assert "said.txt is not text in UTF-8" in senone("align", "x.wav", tmp_path / "said.txt", "-m", speller).err


def test_both_verbs_have_examples(senone):
    for verb in ("transcribe", "align"):
        code, out, _ = senone(verb, "--help")
        assert code == 0 and f"senone {verb} " in out.decode().split("Examples:")[1]
