"""Photographs the report's verdict and the studio, in light and in dark: python docs/pictures/screens.py RUN

RUN is the run folder of `make demo` (runs/demo). Needs what `make test` installs, and chromium.
"""

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

from raystitch.endpoint.app import create_app
from raystitch.endpoint.config import EndpointConfig, ModelConfig
from raystitch.endpoint.models import Models
from raystitch.endpoint.service import Endpoint

HERE = Path(__file__).parent
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
EPISODES = "#source=1&target=4"


@contextmanager
def served(run: Path) -> Iterator[str]:
    """Serve the run's stitcher; give the studio's address."""
    models = Models()
    config = EndpointConfig(
        models={"default": ModelConfig(stitcher=str(run / "stitcher"), dataset="demo:pointmaze")}, device="cpu"
    )
    models.load(config)
    endpoint = Endpoint(config, models)
    server = uvicorn.Server(
        uvicorn.Config(create_app(endpoint, None), host="127.0.0.1", port=0, log_level="warning", lifespan="off")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(10)
    endpoint.close()


def page_of(browser: Browser, address: str, scheme: Literal["light", "dark"], width: int, height: int) -> Page:
    """Open an address in a window of its own."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(address)
    page.wait_for_load_state("networkidle")
    return page


def main(run: Path) -> None:
    """Write the four pictures beside this file."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None or not (run / "report.html").is_file():
        sys.exit("needs chromium, and a run with a report")
    with sync_playwright() as playwright, served(run) as studio:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for scheme in SCHEMES:
            page = page_of(browser, (run / "report.html").absolute().as_uri(), scheme, 1000, 580)
            verdict = page.locator("section", has=page.get_by_role("heading", name="Did stitching help?"))
            verdict.first.screenshot(path=HERE / f"verdict-{scheme}.png")
            page = page_of(browser, studio + EPISODES, scheme, 1280, 780)
            page.get_by_role("button", name="Stitch", exact=True).click()
            page.wait_for_timeout(8_000)  # the bridge is drawn step by step
            page.screenshot(path=HERE / f"studio-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
