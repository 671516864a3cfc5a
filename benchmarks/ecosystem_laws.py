"""Which laws do the tokenizers of transformers keep: behind our contract, and by themselves?

Tiny models with random weights, so the table says what the architectures do, not how good the released weights are.
Blocks are 1 s with 0.5 s around them, where `load` takes 30 s and 5 s.
    python benchmarks/ecosystem_laws.py [NAME ...]
"""

import argparse
import sys
import tempfile
import warnings
from dataclasses import replace
from typing import Any

import torch

TINY = {
    "encodec": {"num_filters": 4, "hidden_size": 16, "codebook_size": 64, "target_bandwidths": [0.9, 1.8, 3.6]},
    "dac": {
        "encoder_hidden_size": 4, "decoder_hidden_size": 32, "downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 4,
        "codebook_size": 64, "codebook_dim": 4,
    },
    "mimi": {
        "num_filters": 4, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "num_attention_heads": 2,
        "num_key_value_heads": 2, "codebook_size": 64, "codebook_dim": 8, "num_quantizers": 4, "upsample_groups": 16,
        "vector_quantization_hidden_dimension": 8, "sliding_window": 25,
    },
    "xcodec": {
        "target_bandwidths": [0.3, 0.6, 1.2], "codebook_size": 64,
        "acoustic_model_config": {
            "encoder_hidden_size": 4, "downsampling_ratios": [8, 5, 4, 2], "decoder_hidden_size": 32, "hidden_size": 16,
        },
        "semantic_model_config": {
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
            "conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
        },
    },
}  # fmt: skip
TWO = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 16, "encoder_hidden_size": 2, "quantization_dim": 96,
    "quantization_levels": [4] * 4,
    "semantic_model_config": {
        "model_type": "wav2vec2-bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "conv_depthwise_kernel_size": 5, "left_max_position_embeddings": 8,
        "right_max_position_embeddings": 4,
    },
}  # fmt: skip
TINY |= {"xcodec2": TWO, "neucodec": TWO}
NAMES = {
    "encodec": "EnCodec 24 kHz", "dac": "DAC", "mimi": "Mimi", "xcodec": "X-codec", "xcodec2": "X-codec2",
    "neucodec": "NeuCodec",
}  # fmt: skip


@torch.no_grad()
def tiny(kind: str) -> Any:
    """A small model of that type: random weights that keep the scale of what goes through, quantizers that fit it."""
    from transformers import AutoConfig, AutoModel

    from senone.interop.transformers import Config, Foreign

    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **TINY[kind])).eval()
    for name, value in model.named_parameters():
        if value.ndim > 1 and not name.endswith("original0"):
            value.normal_(0, value[0].numel() ** -0.5)
        if name.endswith("decoder.conv2.weight"):  # the end of DAC's decoder, and of X-codec's
            value.mul_(1e-3)
    tokenizer = Foreign(Config(), model)
    originals = {}
    for book in model.modules():
        if type(book).__name__.endswith("EuclideanCodebook"):
            originals[book] = book.encode
            book.encode = lambda x, book=book: (fit(book, x.flatten(0, -2)), originals[book](x))[1]
    cells = getattr(model.quantizer, "project_in", torch.nn.Identity())  # of a finite scalar quantizer
    hook = cells.register_forward_hook(fit_cells)
    tokenizer.codes(tokenizer.inputs(noise(tokenizer.sample_rate)))
    for book in originals:
        del book.encode
    hook.remove()
    return model


def noise(samples: int) -> torch.Tensor:
    return 0.1 * torch.randn(1, 1, samples)


def fit(book: Any, x: torch.Tensor) -> None:
    """Spread a codebook, zero as transformers makes it, like the vectors it will meet."""
    table = book.embed_sum if hasattr(book, "embed_sum") else book.embed
    if hasattr(book, "_embed"):  # what Mimi keeps of the table before
        book._embed = None
    table.copy_(x.mean(0) + x.std(0) * torch.randn_like(table))


def fit_cells(project: Any, inputs: Any, out: torch.Tensor) -> torch.Tensor:
    """Spread what a finite scalar quantizer rounds over its cells."""
    x = out.flatten(0, -2)
    project.bias.copy_((project.bias - x.mean(0)) / x.std(0))
    project.weight.div_(x.std(0)[:, None])
    return (out - x.mean(0)) / x.std(0)


def main() -> None:
    """Print the two tables as markdown; a broken law comes with its counter-example below them."""
    from senone.interop.transformers import Foreign, load
    from senone.testing import laws

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(TINY), metavar="NAME", help=f"of {', '.join(TINY)}")
    parser.add_argument("--examples", type=int, default=6, help="cases that a law is tried with")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    names = ("length", "batch", "chunks", "levels", "time", "sessions", "storage", "extremes")
    ours, theirs, broken = [], [], []
    for kind in options.names:
        with tempfile.TemporaryDirectory() as folder:
            tiny(kind).save_pretrained(folder)
            tokenizer = load(folder)
        config = replace(tokenizer.config, block=1.0, context=0.5)  # so that short recordings have several blocks
        cells = []
        for law in laws(Foreign(config, tokenizer.model), examples=options.examples):
            print(f"{kind} {law.name}: {law.detail}", file=sys.stderr, flush=True)
            cells.append("–" if law.detail.startswith("does not apply") else "kept" if law.ok else "**broken**")
            broken += [] if law.ok else [f"- {NAMES[kind]}, {law.name}: {' '.join(law.detail.split())}"]
        ours.append((NAMES[kind], *cells))
        found = {finding.law: finding for finding in tokenizer.bare()}
        theirs.append(
            (NAMES[kind], found["length"].detail, *(f"{found[key].share:.1%}" for key in ("batch", "chunks")))
        )
    table(("model", *names), ours)
    print("\n".join(["", *broken, ""]) if broken else "")
    table(("bare model", "length", "codes equal, alone and padded", "codes equal, whole and in pieces of 1 s"), theirs)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    for row in (head, ("---",) * len(head), *rows):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
