"""How the page looks, measured instead of compared with pictures, which differ with every build of a browser:
nothing leaves the window, nothing lies on anything else, and every text can be read.
"""

import pytest
from playwright.sync_api import Page, expect

from erllama.chat.tool_formats.json_format import HERMES
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, replies, served
from tests.support.http_site import serving
from tests.support.hub_fakes import FakeLibrary, manifest
from tests.support.page_cluster import WithCluster, after_eviction

REPLY = """<think>Let me think about it.</think># A heading

A paragraph with `code`, **bold** and a [link](https://example.com/a/path), and averyveryverylongword%s.

- one
  1. nested
- two

```python
print("a line that is much longer than a phone is wide, and scrolls inside of its own box" * 20)
```

| a | b | c | d | e | f | g |
|---|---|---|---|---|---|---|
| many cells | in one row | which is | wider than | any phone | that there | is today |

> quoted
""" % ("x" * 200)

MEASURE = """() => {
    const problems = [];
    const visible = (node) => node.checkVisibility({ visibilityProperty: true, opacityProperty: true }) && node.getClientRects().length > 0;
    const clipped = (node) => node.closest(".unseen, .skip") !== null;
    const scrolls = (node) => ["auto", "scroll"].includes(getComputedStyle(node).overflowX) || getComputedStyle(node).overflowX === "hidden";
    const insideScroller = (node) => { for (let at = node.parentElement; at; at = at.parentElement) if (scrolls(at) && at !== document.body && at.tagName !== "HTML" && at.scrollWidth > at.clientWidth) return true; return false; };
    const seen = (node) => { // what its scrolling boxes show of it
        let { left, right, top, bottom } = node.getBoundingClientRect();
        for (let at = node.parentElement; at; at = at.parentElement) if (scrolls(at)) {
            const box = at.getBoundingClientRect();
            [left, right, top, bottom] = [Math.max(left, box.left), Math.min(right, box.right), Math.max(top, box.top), Math.min(bottom, box.bottom)];
        }
        return { left, right, top, bottom };
    };
    const name = (node) => `${node.tagName.toLowerCase()}.${node.className} ${node.textContent.slice(0, 40)}`;
    const all = [...document.querySelectorAll("body *")].filter((node) => visible(node) && !clipped(node));
    if (document.documentElement.scrollWidth > innerWidth) problems.push("the page scrolls sideways");
    for (const node of document.querySelectorAll(".scroller, .cluster, .bar, .toolbar, .composer, .card, .chart, .tile")) {
        const bar = visible(node) && node.scrollWidth > node.clientWidth + 1;
        if (bar) problems.push(`wider than its box: ${name(node)}`);
    }
    for (const node of all) {
        const box = node.getBoundingClientRect();
        if ((box.right > innerWidth + 1 || box.left < -1) && !insideScroller(node)) problems.push(`outside of the window: ${name(node)}`);
    }
    const controls = all.filter((node) => node.matches("button, a, input, select, textarea, summary, b, dt, th, td, figcaption, .badge"));
    controls.forEach((a, index) => controls.slice(index + 1).forEach((b) => {
        if (a.contains(b) || b.contains(a) || a.closest("dialog") !== b.closest("dialog")) return;
        const [p, q] = [seen(a), seen(b)];
        const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left), high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
        if (wide > 1 && high > 1) problems.push(`${name(a)} lies on ${name(b)}`);
    }));
    return problems;
}"""

CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgba = (text) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
    const light = (rgb) => { const [r, g, b] = rgb.slice(0, 3).map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const behind = (node) => { for (let at = node; at; at = at.parentElement) { const found = rgba(getComputedStyle(at).backgroundColor); if (found[3] === 255) return found; } return [255, 255, 255, 255]; };
    const problems = new Set();
    let n = 0;
    for (const node of document.querySelectorAll("body *")) {
        const says = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
        if (!says || !node.checkVisibility({ opacityProperty: true }) || node.closest("[disabled], .unseen, noscript")) continue;
        n += 1;
        const [a, b] = [light(rgba(getComputedStyle(node).color)), light(behind(node))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) problems.add(`${ratio.toFixed(2)}: ${node.tagName} ${node.className} ${node.textContent.slice(0, 30)}`);
    }
    return [n, [...problems]];
}"""


@pytest.fixture(params=[(390, 780), (1280, 800)], ids=["phone", "desk"])
def viewport(request):
    width, height = request.param
    return {"width": width, "height": height}


def chat(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("#model")).to_have_value("demo")
    page.locator("#prompt").fill("A question of some length. " * 12)
    page.locator("#prompt").press("Enter")
    expect(page.locator(".message.assistant[data-state=done]")).to_have_count(1)
    page.get_by_role("button", name="Regenerate").click()  # branches to step through
    expect(page.get_by_role("group", name="Branches")).to_have_count(1)


def cluster(page: Page, url: str) -> None:
    page.goto(f"{url}#cluster")
    expect(page.locator("figure.chart")).to_have_count(6)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_its_place_and_can_be_read(page, scheme):
    model = served(FakeModel(replies(REPLY, per_item=64)), FakePrompts(tool_format=HERMES))
    page.emulate_media(color_scheme=scheme)
    library = FakeLibrary(manifest("someones/model-with-a-long-name:of-many-parameters-q4_k_m"))
    with serving(WithCluster(app_of(model, library=library), after_eviction())) as url:
        for show in (chat, cluster):
            show(page, url)
            assert page.evaluate(MEASURE) == [], show.__name__
            n_texts, unreadable = page.evaluate(CONTRAST)
            assert unreadable == [], show.__name__
            assert n_texts > 20, "it has looked at something"
        page.get_by_role("link", name="Chat").click()
        if page.get_by_role("button", name="Chats").is_visible():
            page.get_by_role("button", name="Chats").click()
            expect(page.get_by_role("button", name="New chat")).to_be_visible()
            page.get_by_role("button", name="Back to the chat").click()
            expect(page.get_by_role("button", name="New chat")).to_be_hidden()
        page.get_by_role("button", name="Settings").click()
        assert page.evaluate(MEASURE) == [], "with the settings"
        page.get_by_role("button", name="Keyboard shortcuts").click()
        assert page.evaluate(MEASURE.replace("body *", "dialog *")) == [], "with a dialog"


def test_a_measurement_finds_what_is_wrong(page):
    """The checks above can fail."""
    with serving(app_of(served(FakeModel()))) as url:
        page.goto(url)
        expect(page.locator("#model")).to_have_value("demo")
        page.evaluate(
            """() => {
                const style = document.querySelector("#send").style;
                style.position = "fixed"; style.left = "0"; style.width = "3000px"; style.bottom = "20px"; style.color = "#888"; style.background = "#777";
            }"""
        )
        problems = " ".join(page.evaluate(MEASURE))
        assert "outside of the window: button.primary Send" in problems
        assert "lies on" in problems
        assert any("Send" in found for found in page.evaluate(CONTRAST)[1])


def test_every_control_has_a_name_and_every_id_is_unique(page):
    model = served(FakeModel(replies(REPLY, per_item=64)), FakePrompts(tool_format=HERMES))
    with serving(WithCluster(app_of(model), after_eviction())) as url:
        for show in (chat, cluster):
            show(page, url)
            unnamed = page.evaluate(
                """() => [...document.querySelectorAll("button, a, input:not([hidden]), select, textarea, meter, progress, [role=img], dialog")]
                    .filter((node) => node.checkVisibility())
                    .filter((node) => !(node.getAttribute("aria-label") || node.labels?.[0]?.textContent.trim() || node.textContent.trim()))
                    .map((node) => node.outerHTML.slice(0, 100))"""
            )
            assert unnamed == []
            ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map((node) => node.id)")
            assert len(ids) == len(set(ids))
