"""Opens a page in headless Chromium: its document after the scripts ran, and a picture of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--virtual-time-budget=5000",
)  # fmt: skip
#: Writes into the document what only a browser knows, and tells a page around it how wide it is.
PROBE = """<script>addEventListener("load", () => {
  const root = document.documentElement;
  parent.postMessage([name, root.scrollWidth, root.clientWidth], "*");
  root.dataset.strength = getComputedStyle(root).getPropertyValue("--strength");
  const token = document.querySelector(".t.plus, .t.minus");
  root.dataset.colour = token ? getComputedStyle(token).backgroundColor : "";
  for (const key of ["ArrowRight", "ArrowDown"]) {
    document.querySelector("[data-part=words]")?.dispatchEvent(new KeyboardEvent("keydown", { key }));
  }
})</script></body>"""


def require_chromium() -> str:
    """The browser; skips the test, or fails it with STEPOPSD_REQUIRE_CHROMIUM=1, where there is none."""
    found = os.environ.get("STEPOPSD_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return found
    reason = f"no Chromium: none of {', '.join(NAMES)} is on the path and STEPOPSD_CHROMIUM is not set"
    if os.environ.get("STEPOPSD_REQUIRE_CHROMIUM") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def widths(page: Path, rooms: tuple[int, ...]) -> dict[int, tuple[int, int]]:
    """Room -> (width of the page's content, of the frame it is shown in); a window of its own is never below 500."""
    frames = "".join(f'<iframe name="{room}" src="{_probed(page).name}" style="width:{room}px;height:900px;border:0">'
                     "</iframe>" for room in rooms)  # fmt: skip
    listen = "addEventListener('message', (e) => document.body.append(`[${e.data.join(' ')}]`))"
    around = page.with_name("frames.html")
    around.write_text(f"<!doctype html><body><script>{listen}</script>{frames}</body>", encoding="utf-8")
    shown = re.findall(r"\[(\d+) (\d+) (\d+)\]", _run(around, "", "--window-size=1400,900", "--dump-dom"))
    return {int(room): (int(wide), int(has)) for room, wide, has in shown}


def document(page: Path, *, width: int, address: str = "", dark: bool = False) -> str:
    """The document of a page after its scripts and the probe ran."""
    return _run(_probed(page), address, f"--window-size={width},900", "--dump-dom", *_theme(dark))


def picture(
    page: Path, path: Path, *, width: int, height: int = 900, address: str = "", dark: bool = False
) -> np.ndarray:
    """(height, width, 3) of a page as it is shown, in [0, 1]; also written to ``path``."""
    _run(page, address, f"--window-size={width},{height}", f"--screenshot={path}", *_theme(dark))
    return imread(path)[..., :3]


def _probed(page: Path) -> Path:
    probed = page.with_name(f"probed-{page.name}")
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    return probed


def _theme(dark: bool) -> list[str]:
    return [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]


def _run(page: Path, address: str, *options: str) -> str:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [require_chromium(), *FLAGS, f"--user-data-dir={profile}", *options, f"{page.as_uri()}{address}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
