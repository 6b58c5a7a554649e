"""A real Chromium, driven by playwright-core, to open pages in."""

import json
import os
import pathlib
import shutil
import subprocess

import pytest

_FOLDER = pathlib.Path(__file__).parent
_PLAYWRIGHT = _FOLDER.parent / "build" / "browser" / "node_modules" / "playwright-core"
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def open_page(path, steps):
    """Opens a page and goes through steps (see browser.js).

    Returns:
      `seen` (the page at first and after each step), `problems` and `requests`.
    """
    browser = next(filter(None, map(shutil.which, _NAMES)), None)
    if not (browser and shutil.which("node") and _PLAYWRIGHT.exists()):
        message = "no browser to test with: launch/install_browser.sh installs it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    done = subprocess.run(
        ["node", _FOLDER / "browser.js", _PLAYWRIGHT, browser, path.as_uri()],
        input=json.dumps(steps),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
