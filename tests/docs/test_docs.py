"""What README and docs/ say is executed: Python blocks in order, and every line of a shell block that calls senone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from senone import hub
from senone.audio import Audio

ROOT = Path(__file__).parents[2]
# not the log of experiments: its commands take hours
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != "log.md")]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where a reader would stand: the examples, a recording, and a folder of recordings to train on."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "clips").mkdir()
    for name in ("speech.wav", "in.wav", "clips/a.wav", "clips/b.wav"):
        tone = torch.sin(torch.arange(40000) * (0.02 + 0.01 * torch.rand(1)))
        Audio((0.3 * tone + 0.05 * torch.randn(40000))[None], 16000).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_what_a_page_says_works(page, folder):
    text, names = page.read_text(), {"__name__": "page"}
    blocks = BLOCK.findall(text)
    missing = {"spectral-mini", "soundstream-mini"} - set(hub.names())
    if any(re.search(rf"\b{name}\b", code) for name in missing for _, code in blocks):
        pytest.skip(f"not bundled yet: {', '.join(sorted(missing))}")
    sys.modules.pop("page", None)
    for language, code in blocks:
        if language == "python":
            exec(compile(code, str(page), "exec"), names)
        if language in ("sh", "bash"):
            for line in code.replace("\\\n", " ").splitlines():
                if line.startswith("senone "):
                    shell(line)


def shell(line: str) -> None:
    """As typed, but that training is cut short."""
    line = re.sub(r"\bsteps=\d+", "steps=2 batch=2", line)
    code = f'senone() {{ "{sys.executable}" -m senone "$@"; }}; {line.split(" #")[0]}'
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def test_the_walk_through_shows_the_example_as_it_is():
    first = BLOCK.findall((ROOT / "docs" / "mycodec.md").read_text())[0]
    code = (ROOT / "examples" / "mycodec.py").read_text()
    assert first == ("python", code) and len(code.splitlines()) <= 40


def test_every_link_between_pages_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
