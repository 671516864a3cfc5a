"""How well do CTC recognisers read? Errors of words and letters on speakers never heard, without and with an n-gram.

    python benchmarks/recognisers.py RUN/model... --lm ngram.arpa.gz --data ../shared/data

LM weight and word score are tuned for every model on the development speakers ("dev" of LibriSpeech's train-clean-100
part, and its test-other part), never on the test speakers (160 utterances of test-clean). A line a model, as Markdown.
"""

import argparse
import os
from functools import partial
from pathlib import Path

import torch

from senone.ctc import Beam
from senone.ctc.beam import greedy
from senone.ctc.lexicon import LexiconDecoder
from senone.ctc.ngram import NGram
from senone.ctc.text import plain
from senone.ctc.transcribe import load
from senone.ctc.tune import cer, tune, wer
from senone.data.manifest import Cut, read
from senone.train.ctc import listen

DEV = ("librispeech_train_clean_100_part", "librispeech_test_other_part")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--lm", type=Path, help="an ARPA file")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SENONE_DATA", "../shared/data")))
    parser.add_argument("--beam", type=int, default=50)
    args = parser.parse_args()
    dev = [cut for folder in DEV for cut in spoken(args.data / folder, "dev")]
    test = spoken(args.data / "librispeech_test_clean", "test")
    grams = NGram.load(args.lm) if args.lm else None
    said_dev, said = ([plain(cut.text or "") for cut in cuts] for cuts in (dev, test))
    print(f"{len(dev)} dev and {len(test)} test utterances\n")
    print("| model | WER | CER | WER + n-gram | CER + n-gram | LM weight | word score | dev WER, and + n-gram |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.models:
        model = load(name)
        vocab = model.config.vocabulary
        heard = [list(listen(model, cuts)) for cuts in (dev, test)]
        alone = [[greedy(row, vocab).text for row in rows] for rows in heard]
        row = [name, f"{wer(said, alone[1]):.3f}", f"{cer(said, alone[1]):.3f}"]
        tuned = "–"
        if grams is not None:
            words = [word for word in grams.spoken if set(vocab).issuperset(word.upper())]
            decoder = LexiconDecoder(words, vocab, grams)
            best = tune(partial(every, decoder, heard[0], args.beam), said_dev)
            read_out = [found[0].text for found in every(decoder, heard[1], args.beam, best.lm_weight, best.word_score)]
            row += [f"{wer(said, read_out):.3f}", f"{cer(said, read_out):.3f}"]
            row += [f"{best.lm_weight:.1f}", f"{best.word_score:.1f}"]
            tuned = f"{best.wer:.3f}"
        else:
            row += ["–"] * 4
        print(f"| {' | '.join(row)} | {wer(said_dev, alone[0]):.3f}, {tuned} |", flush=True)


def spoken(folder: Path, split: str) -> list[Cut]:
    """Those with a transcript."""
    return [cut for cut in read(str(folder), split) if plain(cut.text or "")]


def every(decoder: LexiconDecoder, rows: list[torch.Tensor], beam: int, lm_weight: float, word_score: float):
    """The best few of each recording."""
    return [decoder(row, Beam(beam, lm_weight, word_score), nbest=8) for row in rows]


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    main()
