"""Every test starts from the same seed; shapes in signatures are checked while the tests run."""

import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

CHECKED = ("features", "loss", "models", "nn", "quantize")  # the others check what users give them, in one sentence
install_import_hook([f"senone.{name}" for name in CHECKED], "beartype.beartype")

ROOT = Path(__file__).parents[1]
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real speech: SENONE_DATA, or `shared/data` beside the checkout."""
    folder = Path(os.environ.get("SENONE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no speech in {folder}: set SENONE_DATA")
    return folder
