"""The real endpoint application in this process, and a real browser that looks at it."""

import itertools
import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
import uvicorn
from playwright.sync_api import ConsoleMessage, Page, Request, sync_playwright

import raystitch as rs
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.minari_io import write_minari
from raystitch.endpoint.app import create_app
from raystitch.endpoint.config import EndpointConfig, ModelConfig
from raystitch.endpoint.models import Models
from raystitch.endpoint.service import Endpoint
from raystitch.endpoint.tokens import Tokens
from raystitch.models.config import FitConfig
from raystitch.stitching.config import QualifyConfig, StitchConfig

TOKEN = "open-sesame-of-tests"
CHOSEN = "#source=38&target=6"  # a low and a high return; without them the page itself chooses
COUNT = itertools.count()
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass(frozen=True)
class Server:
    """Where the endpoint listens, and what it says without a browser."""

    url: str

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=20) as answer:
            return json.load(answer)

    def stitch(self, body: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/v1/stitch", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)


@pytest.fixture(scope="session")
def endpoint(
    drift: EpisodeDataset, tiny_fit: FitConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    """Two models with the same data: ``default`` in the maze, ``plane`` of no known environment."""
    write_minari(drift, "browser/drift-v0")
    bundle = rs.fit(rs.load_dataset("minari:browser/drift-v0"), tiny_fit)
    # Judges that were fitted for a moment err more than any noise: auto needs noise that is larger.
    tables = bundle.calibration.tables
    tables = {**tables, "noise": 9 * tables["recorded"]}
    bundle = replace(bundle, calibration=replace(bundle.calibration, tables=tables))
    folder = tmp_path_factory.mktemp("bundles")
    bundle.save(folder / "maze")
    replace(bundle, env=None).save(folder / "plane")
    served = {
        name: ModelConfig(stitcher=str(folder / kind), dataset="minari:browser/drift-v0")
        for name, kind in (("default", "maze"), ("plane", "plane"))
    }
    # A termination head that learnt nothing would refuse every bridge.
    stitch = StitchConfig(qualify=QualifyConfig(termination_max=None))
    config = EndpointConfig(models=served, stitch=stitch, device="cpu")
    models = Models()
    models.load(config)
    endpoint = Endpoint(config, models)
    yield endpoint
    endpoint.close()


def _serve(endpoint: Endpoint, token: str | None) -> Iterator[Server]:
    # Without a lifespan: two applications share the endpoint, which its fixture closes.
    config = uvicorn.Config(
        create_app(endpoint, None if token is None else Tokens.one(token)),
        host="127.0.0.1",
        port=0,
        log_level="warning",
        lifespan="off",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive() and time.monotonic() < until, "the server did not start"
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Server(f"http://127.0.0.1:{port}")
    server.should_exit = server.force_exit = True
    thread.join(10)


@pytest.fixture(scope="session")
def server(endpoint: Endpoint) -> Iterator[Server]:
    yield from _serve(endpoint, None)


@pytest.fixture(scope="session")
def guarded_server(endpoint: Endpoint) -> Iterator[Server]:
    """The same models for those who know ``TOKEN``."""
    yield from _serve(endpoint, TOKEN)


# Not for the session: while Playwright runs, this thread has an event loop, and other tests start their own.
@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    """One tab for all tests of a module: a new one each costs more than all they do."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        context = browser.new_context()
        context.set_default_timeout(20_000)
        yield context.new_page()
        browser.close()


@pytest.fixture
def open_page(tab: Page, server: Server) -> Iterator[Callable[..., Page]]:
    """``open_page(fragment, url=None, errors=(), viewport=.., motion=..)``: the studio, once two runs are drawn.

    Whatever else a test looks at: nothing may go wrong in the page's console except what contains one of ``errors``,
    and no other host may be asked for anything.
    """
    found: list[str] = []
    known: list[str] = []

    def console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            found.append(message.text)

    def error(what: object) -> None:
        found.append(f"uncaught: {what}")

    def request(what: Request) -> None:
        parts = urlsplit(what.url)
        if parts.scheme not in ("blob", "data", "about") and parts.hostname != "127.0.0.1":
            found.append(f"a request to {what.url}")

    def open_(
        fragment: str = CHOSEN,
        *,
        url: str | None = None,
        errors: tuple[str, ...] = (),
        viewport: tuple[int, int] = (1280, 900),
        motion: Literal["reduce", "no-preference"] = "reduce",
    ) -> Page:
        known.extend(errors)
        tab.set_viewport_size({"width": viewport[0], "height": viewport[1]})
        tab.emulate_media(color_scheme="light", reduced_motion=motion)
        # An address of its own: with another fragment alone the page would stay.
        tab.goto(f"{url or server.url}/?{next(COUNT)}{fragment}")
        if url is None:
            tab.wait_for_selector("#drawing .run.source")
            tab.wait_for_selector("#drawing .run.target")
        return tab

    listeners = {"console": console, "pageerror": error, "request": request}
    for event, listener in listeners.items():
        tab.on(event, listener)  # type: ignore[call-overload]
    yield open_
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    tab.context.set_offline(False)
    assert [text for text in found if not any(part in text for part in known)] == []


@pytest.fixture
def stitch() -> Callable[[Page], Any]:
    """Presses Stitch and gives the answer that the page got."""

    def press(page: Page) -> Any:
        with page.expect_response("**/v1/stitch") as response:
            page.click("#stitch")
        answer = response.value.json()
        page.wait_for_function("() => document.getElementById('choose').getAttribute('aria-busy') === 'false'")
        return answer

    return press


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Page, str], str]:
    """Presses a download button and gives the file's text."""

    def save(page: Page, button: str) -> str:
        with page.expect_download() as download:
            page.click(f"text={button}")
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        return path.read_text(encoding="utf-8")

    return save
