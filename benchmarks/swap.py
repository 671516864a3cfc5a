"""Whose voice is it after a swap, and are the words kept?  python benchmarks/swap.py MODEL --data DIR [--pairs N]

Codes of one utterance of a speaker with the levels from k on of another speaker's (`senone swap --from-level k`):
cosines of ECAPA embeddings to the source and to the reference, and the word errors of Moonshine tiny against what the
source says. Then the source alone, and its first level alone. DIR: a manifest with speaker and text.
"""

import argparse

import numpy as np

import senone
from senone import codes
from senone.audio import Audio
from senone.eval import corpus
from senone.eval.align import aligned
from senone.eval.metrics import METRICS, RATE, Item, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--levels", default="2,3,5", help="from which levels on, such as 2,3")
    args = parser.parse_args()
    model, voice, words = senone.load(args.model), METRICS.get("sim_ecapa")(), METRICS.get("wer_moonshine")()
    speakers: dict[str, list[corpus.Utterance]] = {}
    for utterance in corpus.read(args.data).utterances:
        speakers.setdefault(utterance.speaker, []).append(utterance)
    order = np.random.default_rng(0).permutation(sorted(speakers))
    found: dict[str, list[tuple[float, ...]]] = {}
    for k in range(min(args.pairs, len(order))):
        source, reference = speakers[order[k]][0], speakers[order[(k + 1) % len(order)]][-1]
        sounds = [each.read().mono().resample(model.sample_rate) for each in (source, reference)]
        said, other = (model.encode(sound) for sound in sounds)
        made = {f"from level {n}": codes.swap(said, other, n) for n in map(int, args.levels.split(","))}
        for what, data in {"source, all levels": said, "source, level 1": said.levels(1), **made}.items():
            wave = heard(model.decode(data)[0])
            near = [measure(voice, Item(*aligned(heard(sound), wave, 0), None)).value or 0.0 for sound in sounds]
            errors = measure(words, Item(wave, wave, source.text))
            found.setdefault(what, []).append((*near, errors.value or 0.0, errors.weight))
    print("| codes | to the source | to the reference | WER % |\n|---|---|---|---|")
    for what, rows in found.items():
        source, reference, wrong, spoken = np.array(rows).T
        print(f"| {what} | {source.mean():.3f} | {reference.mean():.3f} | {100 * wrong.sum() / spoken.sum():.1f} |")


def heard(audio: Audio) -> np.ndarray:
    return audio.resample(RATE).wave[0].numpy()


if __name__ == "__main__":
    main()
