"""The pages of a real run in a real browser: Debian's chromium, driven by playwright, without network."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

SENONE = [sys.executable, "-m", "senone"]
CLIP = Path(__file__).parents[2] / "examples" / "clip.flac"
CHROMIUM = shutil.which("chromium")
SYSTEMS = ["identity", "pcm:8k", "spectral-mini"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Four pieces of the bundled clip, through what needs no program and no package."""
    folder = tmp_path_factory.mktemp("e2e")
    wave, rate = soundfile.read(CLIP)
    (folder / "clips").mkdir()
    for n in range(4):
        soundfile.write(folder / "clips" / f"clip{n}.flac", wave[n * 2 * rate : (n + 1) * 2 * rate], rate)
    options = [
        "--data",
        "clips",
        "-o",
        "run",
        "--metrics",
        "stoi,si_sdr",
        "--levels",
        "1,4",
        "--no-speed",
        "--jobs",
        "0",
    ]
    subprocess.run([*SENONE, "eval", "codec", *SYSTEMS, *options], cwd=folder, check=True, capture_output=True)
    subprocess.run([*SENONE, "eval", "listen", "run", "--clips", "2", "--anchor", "3500"], cwd=folder, check=True)
    return folder / "run"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, run):
    """Open a page of the run; whatever the console says, and whatever is fetched, is an error in the end."""
    wrong, context = [], browser.new_context(offline=True, accept_downloads=True)

    def visit(name: str):
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request", lambda request: request.url.startswith(("file:", "data:", "blob:")) or wrong.append(request.url)
        )
        page.goto((run / name).as_uri())
        return page

    yield visit
    context.close()
    assert not wrong


def names(page) -> list[str]:
    return page.locator("#systems tbody tr:not(.reported) th").all_inner_texts()


def test_the_table_sorts_by_click_and_by_key(visit, run):
    page = visit("report.html")
    cells = {s["name"]: s["cells"]["stoi"]["value"] for s in json.loads((run / "summary.json").read_text())["systems"]}
    assert names(page) == list(cells)
    head = page.locator("#systems th", has_text="STOI")
    head.get_by_role("button").click()
    assert (
        names(page) == sorted(cells, key=lambda name: -cells[name]) and head.get_attribute("aria-sort") == "descending"
    )
    page.keyboard.press("Enter")
    assert names(page) == sorted(cells, key=lambda name: cells[name]) and head.get_attribute("aria-sort") == "ascending"
    page.locator("#systems th", has_text="system").get_by_role("button").click()
    assert names(page) == sorted(cells) and head.get_attribute("aria-sort") is None


def test_published_rows_and_intervals_can_be_hidden(visit):
    page = visit("report.html")
    assert page.locator("tr.reported:visible").count() > 10 and page.locator("small.interval:visible").count() > 0
    page.get_by_label("Published figures").uncheck()
    page.get_by_label("95 % intervals").uncheck()
    assert page.locator("tr.reported:visible").count() == 0 and page.locator("small.interval:visible").count() == 0


def test_the_table_downloads(visit, run):
    page = visit("report.html")
    with page.expect_download() as download:
        page.get_by_text("Download table.csv").click()
    assert Path(download.value.path()).read_bytes() == (run / "table.csv").read_bytes()


def test_dark_and_light(visit):
    page = visit("report.html")
    back = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(back) == "rgb(255, 255, 255)"
    page.get_by_text("Dark / light").click()
    assert page.evaluate(back) == "rgb(20, 23, 28)"
    text = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    assert text == "rgb(230, 232, 235)", "figures follow"


def test_every_sound_decodes_in_the_browser(visit):
    page = visit("report.html")
    lengths = page.evaluate("""async () => {
        const context = new OfflineAudioContext(1, 1, 16000);
        return Promise.all([...document.querySelectorAll("audio")].map(async audio => {
            const data = await (await fetch(audio.src)).arrayBuffer();
            return (await context.decodeAudioData(data)).length;
        }));
    }""")
    assert len(lengths) >= 2 * 4 and set(lengths) == {32000}


def test_a_clip_plays_and_switches_at_the_same_position(visit):
    page = visit("report.html")
    page.locator("#listen-to").select_option("pcm:8k")
    assert page.locator(".clip:visible").count() == 3
    assert [text.split()[0].lower() for text in page.locator(".clip:visible .rank").all_inner_texts()] == [
        "best",
        "median",
        "worst",
    ]
    clip = page.locator(".clip:visible").first
    clip.locator(".play").click()
    page.wait_for_function("players.some(player => player.voice.position > 0.3)")
    assert clip.locator(".play").inner_text() == "Pause"
    before = page.evaluate("players.find(player => player.voice.playing).voice.position")
    page.keyboard.press("x")
    page.wait_for_function("players.find(player => player.voice.playing)?.system === 'pcm:8k'")
    after = page.evaluate("players.find(player => player.voice.playing).voice.position")
    assert before <= after < before + 1 and clip.locator("button[aria-pressed=true]").inner_text() == "pcm:8k"
    clip.locator(".play").click()
    at = page.evaluate("Voice.now.position")
    assert at >= after and page.evaluate("Voice.now.position") == at
    clip.locator(".seek").fill("0.5")
    assert page.evaluate("Voice.now.position") == 0.5
    page.keyboard.press("0")
    assert clip.locator("button[aria-pressed=true]").inner_text() == "original"
    for image in clip.locator(".mel img:visible").all():
        assert image.evaluate("image => image.complete && image.naturalWidth > 100")
    assert clip.locator(".mel img:visible").count() == 3


def test_two_clips_never_sound_at_once(visit):
    page = visit("report.html")
    first, second = (page.locator(".clip:visible .play").nth(n) for n in (0, 1))
    first.click()
    page.wait_for_function("players.filter(player => player.voice.playing).length === 1")
    second.click()
    page.wait_for_function(
        "players[1].voice.playing || players.some(p => p.voice.playing && p.clip !== Voice.now.clip)"
    )
    page.wait_for_timeout(100)
    assert page.evaluate("players.filter(player => player.voice.playing).length") == 1
    assert (first.inner_text(), second.inner_text()) == ("Play", "Pause")


def test_a_listening_test_from_the_name_to_the_means(visit, run, tmp_path):
    key = json.loads((run / "listen.key.json").read_text())["stimuli"]
    score = {"hidden reference": 100, "identity": 89, "pcm:8k": 70, "low-pass 3.5 kHz": 60, "spectral-mini@4": 40}
    page = visit("listen.html")
    page.keyboard.press("Tab")
    page.get_by_label("Your name").fill("ear 1")
    page.keyboard.press("Enter")
    for _ in range(2):
        rows = page.locator(".stimulus")
        assert page.get_by_text("Next").is_disabled() and rows.count() == 6
        for n in range(6):
            page.keyboard.press(str(n + 1))
            system = key[rows.nth(n).locator("button").get_attribute("data-token")]["system"]
            rows.nth(n).get_by_role("slider").fill(str(score.get(system, 10)))
        if _ == 0:
            page.reload()  # what was rated is kept
            assert page.locator(".stimulus output").all_inner_texts().count("–") == 0
        page.get_by_text("Next").click()
    with page.expect_download() as download:
        page.get_by_text("Save ratings").click()
    assert download.value.suggested_filename == "ratings-ear_1.json"
    download.value.save_as(tmp_path / "ratings.json")
    done = subprocess.run(
        [*SENONE, "eval", "listen", run, "--ratings", tmp_path], check=True, capture_output=True, text=True
    )
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert [(float(mean), rest.partition("  (")[0]) for mean, rest in lines] == [
        *((value, name) for name, value in score.items()),
        (10, "spectral-mini@1"),
    ]
    subprocess.run([*SENONE, "eval", "report", run], check=True, capture_output=True)
    assert "Listening test" in visit("report.html").locator("nav").inner_text()
