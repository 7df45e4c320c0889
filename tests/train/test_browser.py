"""Every page in a real browser: nothing is wrong in the console, nothing overflows, texts are readable, videos play."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.browser import Browser, open_browser
from tests.command import call_command

pytestmark = pytest.mark.processes

NAMES = ("inspect", "audit", "pretraining", "finetuning", "comparison", "reconstruct", "predict", "evaluate", "gap")
HERE = ("--views", "1x1", "--workers", "0", "--quiet")

# The largest part of a page that is wider than the window, if any.
OVERFLOW = """(() => {
  const over = document.documentElement.scrollWidth - innerWidth;
  if (over <= 0) return null;
  const wide = [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + .5);
  return `${over} px: ` + wide.slice(0, 3).map(e => e.outerHTML.slice(0, 80)).join(' | ');
})()"""

# Texts whose contrast with their background is below 4.5. Texts within a drawing are on the
# rectangles of their group.
FAINT = """(() => {
  const parse = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const luminance = rgb => rgb.slice(0, 3).map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [.2126, .7152, .0722][n], 0);
  const over = (top, under) => [0, 1, 2].map(n => top[n] * top[3] + under[n] * (1 - top[3])).concat(1);
  const ground = e => {
    if (!e) return matchMedia('(prefers-color-scheme: dark)').matches ? [0, 0, 0, 1] : [255, 255, 255, 1];
    const own = parse(getComputedStyle(e).backgroundColor);
    return own[3] === 1 ? own : over(own, ground(e.parentElement));
  };
  const behind = (e, text) => {
    const box = e.getBoundingClientRect(), own = text.getBoundingClientRect();
    const x = (own.left + own.right) / 2, y = (own.top + own.bottom) / 2;
    return e.tagName === 'rect' && box.left < x && x < box.right && box.top < y && y < box.bottom;
  };
  const drawn = text => [...text.parentElement.children].filter(e => behind(e, text)).reduce((under, e) => {
    const style = getComputedStyle(e), [r, g, b, a] = parse(style.fill);
    return over([r, g, b, a * style.fillOpacity], under);
  }, ground(text.parentElement));
  document.querySelectorAll('details').forEach(e => { e.open = true; });
  const faint = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length) continue;
    if (['STYLE', 'SCRIPT', 'title', 'VIDEO'].includes(e.tagName)) continue;
    const style = getComputedStyle(e), under = e.tagName === 'text' ? drawn(e) : ground(e);
    const ink = over(parse(e.tagName === 'text' ? style.fill : style.color), under);
    const [light, dark] = [luminance(ink), luminance(under)].sort((a, b) => b - a);
    const contrast = (light + .05) / (dark + .05);
    if (contrast < 4.5) faint.push(`${contrast.toFixed(2)}: ${e.textContent.trim().slice(0, 60)}`);
  }
  return faint;
})()"""

# Texts of drawings that appear smaller than 10 px.
SMALL = """[...document.querySelectorAll('svg text')].flatMap(e => {
  const { a, b, c, d } = e.getScreenCTM();
  const size = parseFloat(getComputedStyle(e).fontSize) * Math.sqrt(Math.abs(a * d - b * c));
  return size < 10 ? [`${size.toFixed(1)}: ${e.textContent}`] : [];
})"""

PICTURES = """[...document.images].filter(e => !e.naturalWidth).map(e => e.outerHTML.slice(0, 80))"""

# Of the first videos: played, or the reason why not.
PLAY = """Promise.all([...document.querySelectorAll('video')].slice(0, 4).map(video => new Promise(done => {
  if (!video.muted || !video.controls) done('not muted, or without controls');
  video.onerror = () => done(video.error.message);
  video.ontimeupdate = () => { if (video.currentTime > 0 && video.readyState >= 2) done('played'); };
  video.play().catch(error => done(String(error)));
})))"""
H264 = "document.createElement('video').canPlayType('video/mp4; codecs=\"avc1.42E01E\"')"
SETTLED = "new Promise(done => {{ const look = () => {0} ? done() : setTimeout(look, 5); look(); }})"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def make_page(
    demo_videos: Path,
    demo_shards: Path,
    whole_shards: Path,
    tiny_pretraining: Path,
    tiny_finetuning: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """Makes each page once, by its command."""
    folder = tmp_path_factory.mktemp("pages")
    other = _other_run(tiny_pretraining, folder / f"other-{'y' * 60}")
    video = folder / f"{'x' * 90} #1 & ü.mp4"
    shutil.copy(next(demo_videos.rglob("scene*.mp4")), video)
    commands: dict[str, tuple[str | Path, ...]] = {
        "inspect": ("vmae_data", "inspect", demo_shards, "--html"),
        # Two data sets of the same videos: all are leaks.
        "audit": ("vmae_data", "audit", demo_shards, whole_shards, "--workers", "1", "--quiet", "--html"),
        "pretraining": ("vmae_train", "report", tiny_pretraining, "--out"),
        "comparison": ("vmae_train", "report", tiny_pretraining, "--against", other, "--out"),
        "finetuning": ("vmae_train", "report", tiny_finetuning, "--out"),
        "reconstruct": ("vmae_train", "reconstruct", tiny_pretraining, "--data", demo_shards, "--videos", "2", "--out"),
        "predict": ("vmae_train", "predict", tiny_finetuning, video, "--window", "0.5", *HERE, "--html"),
        "evaluate": ("vmae_train", "evaluate", tiny_finetuning, "--data", demo_shards, *HERE, "--html"),
        "gap": ("vmae_train", "gap", demo_shards, whole_shards, "--init", tiny_pretraining, *HERE, "--html"),
    }
    assert set(commands) == set(NAMES)

    def make(name: str) -> Path:
        page = folder / f"{name}.html"
        if not page.exists():
            call_command(*commands[name], page)
        return page

    return make


def _other_run(run: Path, other: Path) -> Path:
    """A copy of a run, with another learning rate."""
    shutil.copytree(run, other)
    facts = json.loads((other / "run.json").read_text())
    facts["recipe"]["optim"]["lr"] = 0.5
    (other / "run.json").write_text(json.dumps(facts))
    return other


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_quiet_and_readable_on_every_screen(
    browser: Browser, make_page: Callable[[str], Path], name: str
) -> None:
    grounds = []
    browser.open(make_page(name))
    for scheme in ("light", "dark"):
        browser.set_scheme(scheme)
        browser.evaluate(SETTLED.format(f"matchMedia('(prefers-color-scheme: {scheme})').matches"))
        grounds.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        for width in (360, 1400):
            browser.resize(width)
            browser.evaluate(SETTLED.format(f"innerWidth === {width}"))
            assert browser.evaluate(FAINT) == [], (scheme, width)
            assert browser.evaluate(OVERFLOW) is None, (scheme, width)
            assert browser.evaluate(SMALL) == [], (scheme, width)
    assert grounds[0] != grounds[1]
    assert browser.evaluate(PICTURES) == []
    assert browser.problems == []


@pytest.mark.parametrize("name", ["inspect", "audit", "predict"])
def test_the_videos_of_a_page_play(browser: Browser, make_page: Callable[[str], Path], name: str) -> None:
    if not browser.evaluate(H264):
        pytest.skip("this browser plays no H.264")
    browser.open(make_page(name))
    played = browser.evaluate(PLAY)
    assert played and set(played) == {"played"}
    assert browser.problems == []


def test_what_is_wrong_with_a_page_is_detected(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><body style='background: white'><main><p style='color: #999; width: 500px'>faint</p></main>"
        "<svg><g font-size='10'><rect width='99' height='99' fill='#fff'/><rect width='99' height='99' fill-opacity='.6'/>"
        "<text x='20' y='50'>drawn</text></g><text x='120' y='50'>plain</text>"
        "<g transform='rotate(90) scale(.9)' font-size='10'><text x='9' y='-9'>small</text></g></svg>"
        "<img src='http://127.0.0.1:9/x.png'><img src='data:image/png;base64,AAAA'>"
        "<script>console.error('no'); throw 'thrown'</script>"
    )
    with pytest.raises(AssertionError, match="ERR_FILE_NOT_FOUND"):
        browser.open(tmp_path / "missing.html")
    browser.open(page, width=360)
    assert browser.evaluate(FAINT) == ["2.85: faint", "3.66: drawn"]
    assert browser.evaluate(SMALL) == ["9.0: small"]
    assert browser.evaluate(OVERFLOW).startswith("148 px: <p ")
    assert len(browser.evaluate(PICTURES)) == 2
    found = "\n".join(browser.problems)
    assert all(
        word in found for word in ("console: ['no']", "exception: ", "request: http://127.0.0.1:9/x.png", "log: ")
    )
