"""How the page behaves for everybody: keys, names, contrast, narrow windows, motion, tokens and bad connections."""

import re
import urllib.request

from playwright.sync_api import Page, expect

NARROW = (360, 780)

# Texts whose colour stands out too little from what lies behind them (WCAG AA), as [text, ratio].
FAINT = """() => {
  const parse = (colour) => {
    const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const light = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour[3] === 1) return colour;
    }
    return [255, 255, 255, 1];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    if (element.closest('.visually-hidden, noscript')) continue;
    const style = getComputedStyle(element);
    const colour = parse(element.closest('svg') ? style.fill : style.color);
    const [a, b] = [light(colour), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (isLarge ? 3 : 4.5)) found.push([text, Math.round(ratio * 100) / 100]);
  }
  return found;
}"""

# Graphical marks that carry meaning, against the surface that they are drawn on: [name, ratio].
MARKS = """() => {
  const style = getComputedStyle(document.documentElement);
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const light = (name) => {
    canvas.fillStyle = style.getPropertyValue(name).trim();
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const names = ['--source', '--target', '--c0', '--c1', '--c2', '--c3', '--c4', '--edge', '--accent'];
  return names.flatMap((name) => ['--floor', '--surface'].map((ground) => {
    const [a, b] = [light(name), light(ground)].sort((x, y) => y - x);
    return [`${name} on ${ground}`, (a + 0.05) / (b + 0.05)];
  }));
}"""


def test_texts_and_marks_have_contrast(open_page, stitch):
    page = open_page()
    page.click("#options summary")
    grounds = []
    for _ in range(2):  # before and after stitching
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert [scheme, page.evaluate(FAINT)] == [scheme, []]
            assert [mark for mark in page.evaluate(MARKS) if mark[1] < 3] == []
            grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        if len(grounds) == 2:
            stitch(page)
            page.click("#steps summary")
            page.check("input[name=view][value=time]")
    assert len(set(grounds)) == 2


def overflow(page: Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def test_a_narrow_window_does_not_scroll_sideways(open_page, stitch):
    page = open_page(viewport=NARROW)
    assert overflow(page) <= 0
    for summary in ("#source summary", "#target summary", "#options summary"):
        page.click(summary)
    page.check("#target input[value=own]")
    assert overflow(page) <= 0
    page.check("#target input[value=dataset]")
    stitch(page)
    page.click("#steps summary")
    page.check("input[name=view][value=time]")
    assert overflow(page) <= 0
    wide = page.locator("button:visible, select:visible, input:visible, svg:visible").evaluate_all(
        "(all) => all.filter((one) => one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML)"
    )
    assert wide == []


def test_a_choice_without_a_mouse(open_page):
    page = open_page()
    stops, unseen = [], []
    for _ in range(60):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            """() => {
              const one = document.activeElement;
              const ring = [one, one.closest('label'), one.closest('.segments')].filter(Boolean);
              const styles = ring.map((part) => getComputedStyle(part));
              const seen = styles.some((style) => style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2);
              return [one.id || one.name || one.tagName, one.value ?? '', seen];
            }"""
        )
        stops.append(focused[0])
        if not focused[2]:
            unseen.append(focused)
        if focused[0] == "source-run":
            chosen = page.inner_text("#source .chosen")
            page.keyboard.press("ArrowDown")
            expect(page.locator("#source .chosen")).not_to_have_text(chosen)
        if focused[0] == "stitch":
            break
    assert stops[0] == "A" and unseen == []  # the link past the choice comes first
    wanted = ["source-mode", "source-order", "source-run", "target-mode", "target-order", "target-run", "stitch"]
    assert [stop for stop in stops if stop in wanted] == wanted
    page.keyboard.press("Enter")
    page.wait_for_selector("#drawing .state")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('role')") == "listbox":
            break
    before = page.inner_text("#which")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#which")).not_to_have_text(before)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "delta"
    was = page.locator("#delta").get_attribute("aria-valuetext")
    page.keyboard.press("End")
    off = page.locator("#delta").get_attribute("aria-valuetext")
    assert off != was and off.startswith("off: every residual is accepted; ")
    page.keyboard.press("ArrowLeft")
    assert "off" not in (page.locator("#delta").get_attribute("aria-valuetext") or "")


def test_enter_in_a_field_stitches(open_page):
    page = open_page()
    page.click("#options summary")
    page.fill("#seed", "3")
    page.press("#seed", "Enter")
    page.wait_for_selector("#drawing .state")
    assert "seed=3" in page.url


def test_everything_that_takes_focus_has_a_name(open_page, stitch):
    page = open_page()
    page.click("#options summary")
    page.check("#target input[value=own]")
    stitch(page)
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    nameless = []
    for node in tree:
        properties = {one["name"]: one["value"].get("value") for one in node.get("properties", [])}
        role = node["role"]["value"]
        takes_focus = properties.get("focusable") and not node.get("ignored") and role != "RootWebArea"
        if takes_focus and not node.get("name", {}).get("value"):
            nameless.append((role, properties))
    assert nameless == []
    roles = {node["role"]["value"] for node in tree}
    assert {"banner", "main", "navigation", "form", "region", "status", "slider", "listbox"} <= roles
    assert page.locator("h1").count() == 1 and page.get_attribute("html", "lang") == "en"


def test_the_bridge_appears_step_by_step(open_page):
    page = open_page(motion="no-preference")
    page.click("#stitch")
    page.wait_for_selector("#drawing .state:not(.ahead)")
    assert page.locator("#drawing .state.ahead").count() > 0
    page.wait_for_selector("#drawing .runner.ahead", state="attached")  # it has arrived
    assert page.locator("#drawing .ahead").count() == 1
    page.click("#replay")
    page.wait_for_selector("#drawing .state.ahead", state="attached")


def test_a_request_can_be_cancelled(open_page):
    page = open_page()
    network = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 5000, "downloadThroughput": -1, "uploadThroughput": -1}
    network.send("Network.emulateNetworkConditions", slow)
    page.click("#stitch")
    expect(page.locator("#stitch")).to_contain_text("Stitching")
    page.click("#cancel")
    expect(page.locator("#live")).to_have_text("Cancelled.")
    expect(page.locator("#stitch")).to_be_focused()
    expect(page.locator("#stitch")).to_have_text("Stitch")
    network.detach()
    assert page.locator("#drawing .state").count() == 0
    page.click("#stitch")  # it is not in the way of the next one
    page.wait_for_selector("#drawing .state")


def test_without_a_connection_it_says_so(open_page):
    page = open_page(errors=("ERR_INTERNET_DISCONNECTED",))
    page.context.set_offline(True)
    page.click("#stitch")
    expect(page.locator("#stitch-error")).to_contain_text("cannot be reached")


def test_a_token_is_asked_for_and_kept_in_the_tab(open_page, guarded_server):
    page = open_page(url=guarded_server.url, errors=("401",))
    expect(page.locator("#token-field")).to_be_focused()
    page.fill("#token-field", "wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#token-hint")).to_contain_text("did not take that token")
    page.fill("#token-field", "open-sesame-of-tests")
    page.keyboard.press("Enter")
    page.wait_for_selector("#drawing .run.source")
    expect(page.locator("#token")).to_be_hidden()
    page.click("#stitch")
    page.wait_for_selector("#drawing .state")
    kept = page.evaluate("[localStorage.length, document.cookie, Object.values(sessionStorage)]")
    assert kept == [0, "", ["open-sesame-of-tests"]]
    assert "open-sesame-of-tests" not in page.url
    page.reload()
    page.wait_for_selector("#drawing .run.source")


def test_components_and_dimensions_over_time(open_page, stitch):
    page = open_page("#model=plane")
    expect(page.locator("#views")).to_contain_text("Two components")
    assert page.locator("#drawing rect.wall").count() == 0
    answer = stitch(page)
    page.check("input[name=view][value=time]")
    assert page.locator("#drawing [data-panel]").count() == 4
    assert page.locator("#drawing .state").count() == 4 * answer["gap"]
    page.locator("#dims label").nth(1).click()
    assert page.locator("#drawing [data-panel]").count() == 3
    page.select_option("#model", "default")
    expect(page.locator("#views")).to_contain_text("Maze")
    page.wait_for_function("() => /model=default&source=\\d+&target=\\d+/.test(location.hash)")


def test_lists_are_sorted_and_go_on(open_page, server):
    page = open_page()

    def ids() -> list[int]:
        return [int(text.removeprefix("#")) for text in page.locator("#source .run-id").all_inner_texts()]

    for value, query in (("length-true", "order=length&descending=true"), ("return-false", "order=return")):
        page.select_option("#source-order", value)
        rows = [row["index"] for row in server.get(f"/v1/models/default/episodes?{query}&limit=40")["episodes"]]
        expect(page.locator("#source .run-id").first).to_have_text(f"#{rows[0]}")
        assert ids() == rows[:30]
    page.click("#source .more")
    expect(page.locator("#source .run-id")).to_have_count(40)
    assert ids() == rows
    assert page.evaluate("document.activeElement.value") == str(rows[30])  # the keyboard goes on where the list does
    page.locator("#source .run").nth(39).scroll_into_view_if_needed()
    page.wait_for_selector("#source .run:last-of-type .thumb")


def test_no_inline_code_and_a_policy_against_it(server):
    with urllib.request.urlopen(server.url) as answer:
        text, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|https?://(?!www\.w3\.org)", text)
