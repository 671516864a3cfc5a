"""Files of fairseq (.pt: pre-trained and fine-tuned), s3prl and torchaudio, known by their keys and read as plain data.

No fairseq is imported and no dictionary file needed. `senone.load("file.pt")` reads what states its head count.
"""

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from senone.interop import InteropError, pickles, speechtokenizer
from senone.interop.nets import CONV, OLD, POSITION, build, letters, old_names, recogniser, switches
from senone.models.ctc import ENGLISH, Recogniser
from senone.models.hubert import Hubert
from senone.models.speechtokenizer import SpeechTokenizer
from senone.models.wav2vec2 import Wav2Vec2

# fairseq's names -> Hugging Face's. Those of the heads stay: quantizer.weight_proj, project_q, final_proj.
FAIRSEQ = (
    (r"mask_emb", r"masked_spec_embed"),
    (r"(feature_extractor\.conv_layers\.\d+)\.0\.(weight|bias)", r"\1.conv.\2"),
    (r"(feature_extractor\.conv_layers\.\d+)\.2\.(?:1\.)?(weight|bias)", r"\1.layer_norm.\2"),
    (r"layer_norm\.(.+)", r"feature_projection.layer_norm.\1"),
    (r"post_extract_proj\.(.+)", r"feature_projection.projection.\1"),
    (r"encoder\.pos_conv\.0\.(.+)", r"encoder.pos_conv_embed.conv.\1"),
    (r"(encoder\.layers\.\d+)\.self_attn\.(.+)", r"\1.attention.\2"),
    (r"(encoder\.layers\.\d+)\.self_attn_layer_norm\.(.+)", r"\1.layer_norm.\2"),
    (r"(encoder\.layers\.\d+)\.fc1\.(.+)", r"\1.feed_forward.intermediate_dense.\2"),
    (r"(encoder\.layers\.\d+)\.fc2\.(.+)", r"\1.feed_forward.output_dense.\2"),
    (r"quantizer\.vars", r"quantizer.codevectors"),
    (r"w2v_encoder\.proj\.(.+)", r"lm_head.\1"),
)
TORCHAUDIO = (
    (r"mask_generator\.mask_embedding", r"masked_spec_embed"),
    (r"encoder\.feature_projection\.(.+)", r"feature_projection.\1"),
    (r"encoder\.transformer\.(.+)", r"encoder.\1"),
    (r"aux\.(.+)", r"lm_head.\1"),
    (r"logit_generator\.label_embeddings", r"label_embs_concat"),
    (r"logit_generator\.final_proj\.(.+)", r"final_proj.\1"),
)
SETTINGS = (
    ("dropout", "dropout"),
    ("attention_dropout", "attention_dropout"),
    ("activation_dropout", "activation_dropout"),
    ("dropout_input", "input_dropout"),
    ("encoder_layerdrop", "layer_drop"),
    ("feature_grad_mult", "feature_grad"),
)
NUMBERED = (r"encoder\.layers\.(\d+)\.", r"feature_extractor\.conv_layers\.(\d+)\.")
SPECIALS = 4  # rows that fairseq's dictionary puts before the units: <s>, <pad>, </s>, <unk>


def read(path: str | Path, heads: int | None = None) -> Hubert | Wav2Vec2 | Recogniser | SpeechTokenizer:
    """The encoder in a file, with its pre-training heads where it has them, or a recogniser; in evaluation mode.
    Also the official SpeechTokenizer's files, see `interop.speechtokenizer`.

    Sizes are those of the weights. The head count, which no weight tells, is the file's own setting, or `heads` where
    it has none, as with torchaudio's. Of HuBERT's table of units the first four rows, fairseq's special symbols, are
    left out: unit k is row k. A net whose LayerNorms come first ("pre") and whose wave is normalised is told by the
    settings, without settings by LayerNorms between the convolutions, as in all released ones.
    Raises InteropError or HubError naming the file and the key.
    """
    path = Path(path)
    tree = pickles.read(path)
    if not isinstance(tree, dict):
        raise InteropError(f"{path} holds no state dict")
    if speechtokenizer.holds(tree):
        return speechtokenizer.from_tree(tree, path)
    facts, special = _facts(tree), SPECIALS
    weights = next(
        (tree[key] for key in ("model_weight", "model", "state_dict") if isinstance(tree.get(key), dict)), tree
    )
    weights = pickles.tensors(weights, path)
    if any(name.startswith("encoder.transformer.") for name in map(_bare, weights)):
        weights, special = renamed(weights, TORCHAUDIO), 0
    elif "post_extract_proj.weight" in map(_bare, weights) or "encoder.pos_conv.0.bias" in map(_bare, weights):
        weights = renamed(weights, FAIRSEQ)
    else:
        raise InteropError(f"{path} is no wav2vec 2.0 or HuBERT of fairseq, s3prl or torchaudio: its keys are others'")
    weights = old_names(weights)
    head = letters(weights, path)
    settings = _sizes(path, weights) | switches(weights) | _settings(path, facts, heads)
    layered = settings["feat_norm"] == "layer"
    settings["ln_position"] = "pre" if facts.get("layer_norm_first", layered) else "post"
    settings["wav_norm"] = "fairseq" if facts.get("normalize", layered) else "none"
    if "label_embs_concat" in weights or "hubert" in str(facts.get("_name", facts.get("arch"))):
        model = build(Hubert, settings | _units(path, weights, special), weights, path)
    elif "quantizer.codevectors" in weights:
        weights = {re.sub(r"^final_proj\.", "project_hid.", name): value for name, value in weights.items()}
        model = build(Wav2Vec2, settings | _quantizer(path, weights, facts), weights, path)
    else:
        model = build(Wav2Vec2, settings | {"entries": 0}, weights, path)
    return recogniser(model, head, _vocabulary(tree, len(head["lm_head.weight"])), 0, path) if head else model


def _vocabulary(tree: dict[str, Any], rows: int) -> list[str]:
    """The letters of a fine-tuned file: its own, or those of the released English ones, by their number. fairseq calls
    "<s>" what is the blank; torchaudio's files may lack the three other specials."""
    own = _table(_table(tree.get("task_state")).get("target_dictionary")).get("symbols")
    if isinstance(own, list) and len(own) == rows and all(isinstance(letter, str) for letter in own):
        return ["<pad>", *("<s>" if letter == "<pad>" else letter for letter in own[1:])]
    return [ENGLISH[0], *ENGLISH[4:]] if rows == len(ENGLISH) - 3 else list(ENGLISH)


def _facts(tree: dict[str, Any]) -> dict[str, Any]:
    """Settings of task and encoder, flat; of a fine-tuned file, those that its encoder was made with."""
    root = tree.get("cfg") or tree.get("args") or {"model": tree.get("model_cfg"), "task": tree.get("task_cfg")}
    facts: dict[str, Any] = {}
    for _ in range(3):  # fine-tuned, pre-trained
        root = _table(root)
        facts = {**_table(root.get("task")), **_table(root.get("model"))} if "model" in root else root
        root = facts.get("w2v_args")
        if not _table(root):
            break
    return {key: pickles.plain(value) for key, value in facts.items()}


def _table(value: Any) -> dict[str, Any]:
    value = pickles.plain(value)
    return value if isinstance(value, dict) else {}


def _bare(name: str) -> str:
    """Without what fine-tuning puts before an encoder's names."""
    return re.sub(r"^(w2v_encoder\.w2v_model\.|w2v_model\.|wav2vec2\.)", "", name)


def renamed(weights: dict[str, Tensor], table: tuple[tuple[str, str], ...] = FAIRSEQ) -> dict[str, Tensor]:
    """The weights under Hugging Face's names, by a table of patterns; a name in none of them stays."""
    found = {}
    for name, value in weights.items():
        name = _bare(name)
        found[next((re.sub(old, new, name) for old, new in table if re.fullmatch(old, name)), name)] = value
    return found


def _sizes(path: Path, weights: dict[str, Tensor]) -> dict[str, Any]:
    """What the shapes tell. A projection left out, as fairseq does where width is channels, becomes the identity."""
    layers, count = (len({m[1] for m in map(re.compile(at).match, weights) if m}) for at in NUMBERED)
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    try:
        convs = [shapes[f"{CONV}{i}.conv.weight"] for i in range(count)]
        width, part, kernel = shapes[POSITION + OLD[1]]
        hidden = shapes["encoder.layers.0.feed_forward.intermediate_dense.weight"][0]
        if "feature_projection.projection.weight" not in weights and convs[-1][0] == width:
            weights["feature_projection.projection.weight"] = torch.eye(width)
            weights["feature_projection.projection.bias"] = torch.zeros(width)
        sizes = {"width": width, "hidden": hidden, "layers": layers, "pos_kernel": kernel, "pos_groups": width // part}
        return sizes | {"channels": [conv[0] for conv in convs], "kernels": [conv[2] for conv in convs]}
    except KeyError as error:
        raise InteropError(f"{path} lacks the weight {error}") from None
    except (ValueError, IndexError, ZeroDivisionError):
        raise InteropError(f"{path} holds weights of shapes that no encoder has") from None


def _settings(path: Path, facts: dict[str, Any], heads: int | None) -> dict[str, Any]:
    """What only settings tell."""
    stated = facts.get("encoder_attention_heads")
    if stated is None and heads is None:
        raise InteropError(
            f"{path} does not say how many heads it has, and its weights do not either: give heads=12 for released "
            "encoders 768 wide, heads=16 for wider ones"
        )
    if None not in (stated, heads) and stated != heads:
        raise InteropError(f"{path} has {stated} heads, as it says itself, not {heads}")
    settings = {ours: facts[theirs] for theirs, ours in SETTINGS if type(facts.get(theirs)) in (int, float)}
    settings["heads"] = heads if stated is None else stated
    # [(channels, kernel, stride)] * times + ...: an expression that fairseq evaluates, and we read
    group = r"\[\(\s*\d+\s*,\s*\d+\s*,\s*(\d+)\s*\)\](?:\s*\*\s*(\d+))?"
    if groups := re.findall(group, str(facts.get("conv_feature_layers", ""))):
        settings["strides"] = [int(stride) for stride, times in groups for _ in range(min(int(times or 1), 99))]
    return settings


def _units(path: Path, weights: dict[str, Tensor], special: int) -> dict[str, Any]:
    """HuBERT's head: one set of units. Fine-tuned files have lost a part of it, and several sets are not told apart."""
    table, head = weights.get("label_embs_concat"), weights.get("final_proj.weight")
    if table is not None and head is not None and table.shape[-1] == head.shape[0]:
        weights["label_embs_concat"] = table[special:]
        return {"classes": [len(table) - special], "dim": table.shape[-1]}
    if table is not None and head is not None:
        warnings.warn(f"{path} predicts several sets of units: the encoder is read without that head", stacklevel=3)
    for name in ("label_embs_concat", "final_proj.weight", "final_proj.bias"):
        weights.pop(name, None)
    return {"classes": []}


def _quantizer(path: Path, weights: dict[str, Tensor], facts: dict[str, Any]) -> dict[str, Any]:
    """wav2vec 2.0's heads. Codevectors are (1, groups * entries, code_dim / groups)."""
    try:
        _, count, part = weights["quantizer.codevectors"].shape
        dim, code = weights["project_q.weight"].shape
        groups = facts.get("latent_groups", code // part)
        return {"groups": groups, "entries": count // groups, "code_dim": code, "dim": dim}
    except KeyError as error:
        raise InteropError(f"{path} lacks the weight {error}") from None
    except (ValueError, TypeError, ZeroDivisionError):
        raise InteropError(f"{path} holds a quantizer of shapes that cannot be") from None
