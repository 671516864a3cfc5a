"""What a level of codes tells utterances, or phones, apart by: bags of codes on a plane, and silhouettes.

A bag is how often each code occurs: all that is known of an utterance once time is pooled away. SpeechTokenizer
(2308.16692, figure 4) pools embeddings so, and finds speakers in the upper levels and not in the first; bags need no
model at hand.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

FEWEST = 8  # items worth a plane
PERPLEXITY = 20.0


def bags(codes: Sequence[Int[np.ndarray, "level frame"]], levels: slice) -> Float[np.ndarray, "item code"]:
    """One row per item: the square roots of the shares of each code in use, the levels side by side.

    Distances between rows are Hellinger's; codes that no item uses are left out.
    """
    parts = []
    for level in range(*levels.indices(len(codes[0]))):
        used, index = np.unique(np.concatenate([item[level] for item in codes]), return_inverse=True)
        owner = np.repeat(np.arange(len(codes)), [item.shape[1] for item in codes])
        counts = np.bincount(owner * len(used) + index, minlength=len(codes) * len(used)).reshape(len(codes), -1)
        parts.append(np.sqrt(counts / np.maximum(1, counts.sum(1, keepdims=True))))
    return np.concatenate(parts, 1)


def silhouette(x: Float[np.ndarray, "item code"], labels: Sequence[str]) -> float | None:
    """Rousseeuw's mean silhouette: near 1, items of a label are close and others far; 0 or less, labels say nothing.

    None with fewer than two labels, or where no label has two items.
    """
    names, which = np.unique(np.array(labels), return_inverse=True)
    sizes = np.bincount(which)
    if len(names) < 2 or sizes.max() < 2:
        return None
    square = np.maximum(0, (x**2).sum(1)[:, None] + (x**2).sum(1) - 2 * x @ x.T)
    np.fill_diagonal(square, 0)
    to = np.sqrt(square) @ np.eye(len(names))[which]  # sums of distances to each label's items
    item = np.arange(len(x))
    within = to[item, which] / np.maximum(1, sizes[which] - 1)
    means = to / sizes
    means[item, which] = np.inf
    between = means.min(1)
    score = (between - within) / np.maximum(np.maximum(between, within), 1e-12)
    return float(np.where(sizes[which] > 1, score, 0).mean())  # by convention 0 for one that is alone


def plane(x: Float[np.ndarray, "item code"]) -> tuple[Float[np.ndarray, "item 2"], str]:
    """Places of the items, and how they were found: t-SNE (seeded), or PCA where scikit-learn is not installed."""
    centred = x - x.mean(0)
    values, vectors = np.linalg.eigh(centred @ centred.T)  # there are fewer items than codes
    pca = (vectors * np.sqrt(values.clip(0)))[:, ::-1]
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        return pca[:, :2], "PCA"
    perplexity = min(PERPLEXITY, (len(x) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=0)
    return tsne.fit_transform(pca[:, :50].astype(np.float32)), "t-SNE"
