"""The pages as a person sees them, in chromium: `make verify` takes screenshots of them, into CNNLAB_SCREENSHOTS."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import PROGRAM, Browser, browser
from commands import ok, run
from fast_run import train_fast
from PIL import Image

from cnnlab.cli import evaluate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed"),
]
HOSTILE = "<img src=x onerror=document.title='run'>"
# what stands in each tab of TensorBoard, and text that is there once it is drawn
TABS = {
    "timeseries": ["Pinned", "first/val", "second"],
    "scalars": ["accuracy", "descent|gradient_norm|lr"],
    "custom_scalars": ["curves", "loss", "first/val"],
    "images": ["filters", "explain/ablation", "first"],
    "histograms": ["activations/conv1"],
    "hparams": ["optimizer.lr", "best/accuracy/test"],
    "text": ["1_command", "2_what_the_tags_mean", "the learning rate of the optimizer's first group"],
    "graphs": ["Main Graph", "conv1"],
    "pr_curves": ["precision_recall_val/0"],
    "projector": ["PCA", r"Points:\s*\d\d"],
}
# all text of a page, that within shadow roots and frames, too
TEXT = """(() => {
  const parts = [];
  const walk = node => {
    if (node.nodeType === 3) parts.push(node.data);
    if (node.shadowRoot) walk(node.shadowRoot);
    if (node.contentDocument?.body) walk(node.contentDocument.body);
    if (!["SCRIPT", "STYLE", "TEMPLATE"].includes(node.nodeName)) node.childNodes.forEach(walk);
  };
  walk(document.body);
  return parts.join(" ");
})()"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short runs with images, one of them evaluated, the other explained, and their comparison."""
    folder = tmp_path_factory.mktemp("runs")
    settings = ("trainer.max_steps=12", "data.limit=128", "trainer.validate_every_epochs=1")
    settings += ("trainer.snapshot_every_epochs=1", "trainer.validate_every_steps=null")
    for name, lr in (("first", 0.05), ("second", 0.01)):
        ok(train_fast(f"run_dir={folder / name}", f"optimizer.lr={lr}", *settings))
    ok(run(evaluate, f"run={folder / 'first'}", "layers=[conv1]"))
    figure = next((folder / "first" / "figures").iterdir())
    shutil.copy(figure, figure.with_name(f"{HOSTILE}.png"))
    ok(run(evaluate, f"run={folder / 'first'}"))
    ok(run(evaluate, f"run={folder / 'second'}", "explain=true"))
    ok(run(evaluate, f"compare=[{folder / 'first'},{folder / 'second'}]"))
    return folder


@pytest.fixture(scope="module")
def shown() -> Iterator[Browser]:
    with browser() as one:
        yield one


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("CNNLAB_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def colours(path: Path) -> int:
    """Different colours in an image: an empty page has a few."""
    return len(Image.open(path).convert("RGB").getcolors(1 << 24) or ())


@pytest.mark.parametrize("width", [1600, 400])
@pytest.mark.parametrize("page", ["first/report.html", "second/report.html", "compare.html"])
def test_a_page_fits_the_screen_and_shows_all_its_images(
    shown: Browser, runs: Path, screenshots: Path, page: str, width: int
) -> None:
    shown.open((runs / page).as_uri(), width)
    assert shown.run("document.documentElement.scrollWidth") <= width
    assert shown.run("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert shown.run("document.title") != "run"  # no script of a name ran
    assert shown.run("performance.getEntriesByType('resource').every(one => one.name.startsWith('data:'))")
    smallest = shown.run(
        "Math.min(...[...document.querySelectorAll('p, td, figcaption')].map("
        "one => parseFloat(getComputedStyle(one).fontSize)))"
    )
    assert smallest >= 12
    taken = shown.screenshot(screenshots / f"{page.replace('/', '-')}-{width}.png", whole=True)
    assert colours(taken) > 100


def test_a_report_prints_on_paper(shown: Browser, runs: Path, screenshots: Path) -> None:
    shown.open((runs / "first/report.html").as_uri(), 800)
    printed = shown.pdf(screenshots / "report.pdf").read_bytes()
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 20


@pytest.fixture(scope="module")
def tensorboard(runs: Path) -> Iterator[str]:
    """The address of a TensorBoard of the runs, on a free port of this machine."""
    environment: dict[str, Any] = {name: value for name, value in os.environ.items() if not name.endswith("_proxy")}
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                yield found[0]
                break
        process.terminate()
        process.communicate()


@pytest.mark.parametrize("tab", TABS)
def test_tensorboard_shows_a_run(shown: Browser, tensorboard: str, screenshots: Path, tab: str) -> None:
    shown.open(f"{tensorboard}#{tab}", 1600, 1200)
    for text in TABS[tab]:
        shown.wait(f"new RegExp({text!r}).test({TEXT})")
    shown.wait("new Promise(done => setTimeout(() => done(true), 3000))")  # charts are drawn after their titles
    assert colours(shown.screenshot(screenshots / f"tensorboard-{tab}.png")) > 50
