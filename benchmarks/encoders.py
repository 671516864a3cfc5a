"""How fast encoders are:  python benchmarks/encoders.py [--rounds N] [--threads N] [--out DIR]

HuBERT BASE, the same random weights in transformers' model and in ours, in turns, so that every answer is a ratio
within one run; outputs are compared before anything is timed.

- alone: 10 s, batch 1, in single precision: ours / theirs; and ours with bf16 weights / ours in single precision.
- ragged: 8 recordings of 3 to 10 s: ours / ours for all their seconds as one batch without padding; ours / theirs.

Times are wall seconds and, since a machine may do other work, seconds of process time. Needs transformers.
"""

import argparse
import copy
import json
import platform
from pathlib import Path

import torch
from timing import in_turns
from transformers import HubertConfig, HubertModel

from senone.models.hubert import Hubert

LENGTHS = [10.0, 9.1, 8.3, 7.2, 6.4, 5.2, 4.1, 3.0]  # seconds


def pair() -> tuple[Hubert, HubertModel]:
    """Ours and theirs, BASE, with equal weights."""
    torch.manual_seed(0)
    theirs, ours = HubertModel(HubertConfig()).eval(), Hubert().eval()
    weights = theirs.state_dict()
    for old, new in (("original0", "weight_g"), ("original1", "weight_v")):
        weights[f"encoder.pos_conv_embed.conv.{new}"] = weights.pop(
            f"encoder.pos_conv_embed.conv.parametrizations.weight.{old}"
        )
    ours.load_state_dict(weights)
    return ours, theirs


@torch.inference_mode()
def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for encoders.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ours, theirs = pair()
    half = copy.deepcopy(ours).bfloat16()
    wave = 0.1 * torch.randn(1, 160000)
    a, b = ours.features(wave), theirs(wave).last_hidden_state
    apart = float((a - b).abs().max() / b.abs().max())
    assert apart < 1e-5, f"outputs differ by {apart:.1e}"
    lengths = torch.tensor([round(seconds * 16000) for seconds in LENGTHS])
    batch = 0.1 * torch.randn(len(lengths), int(lengths.max()))
    batch[torch.arange(batch.shape[1]) >= lengths[:, None]] = 0
    mask = (torch.arange(batch.shape[1]) < lengths[:, None]).long()
    even = 0.1 * torch.randn(len(lengths), int(lengths.sum()) // len(lengths))
    full = torch.full((len(even),), even.shape[1])
    took = in_turns(
        {
            "ours": lambda: ours.features(wave),
            "ours, bf16": lambda: half.features(wave.bfloat16()),
            "transformers": lambda: theirs(wave).last_hidden_state,
            "ours, ragged": lambda: ours.features(batch, lengths),
            "ours, the same seconds without padding": lambda: ours.features(even, full),
            "transformers, ragged": lambda: theirs(batch, attention_mask=mask).last_hidden_state,
        },
        args.rounds,
    )
    ratios = {
        "ours / transformers (at most 0.8)": ("ours", "transformers"),
        "ours bf16 / fp32 (at most 0.6)": ("ours, bf16", "ours"),
        "ragged / its seconds (at most 1.25)": ("ours, ragged", "ours, the same seconds without padding"),
        "ragged, ours / transformers": ("ours, ragged", "transformers, ragged"),
    }
    rows = {name: [round(took[x][k] / took[y][k], 3) for k in (0, 1)] for name, (x, y) in ratios.items()}
    print(f"{platform.processor() or platform.machine()}, {args.threads} threads; outputs differ by {apart:.1e}")
    for name, (wall, process) in took.items():
        print(f"{name:45} {wall:7.3f} s wall {process:7.3f} s process")
    for name, (wall, process) in rows.items():
        print(f"{name:45} {wall:7.3f} of wall {process:7.3f} of process time")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "encoders.json").write_text(json.dumps({"seconds": took, "ratios": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
