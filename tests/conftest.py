"""What tests share: a Streamlit server, a page of a real Chromium, and a model and texts for the dashboard.

A test that uses ``page`` or ``chromium`` gets the marker ``browser``. Where there is no Chromium such tests
are skipped and named at the end of the run, or fail if AMP_EXPLORE_REQUIRE_BROWSER=1.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from waiting import WAIT

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM_ARGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
NO_BROWSER = "no browser"
SERVER_LOGS = pytest.StashKey[list[Path]]()


def find_chromium() -> str | None:
    """The path of a Chromium: $CHROMIUM, or the first of the usual names that is installed."""
    named = os.environ.get("CHROMIUM")
    if named:
        return shutil.which(named)
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


def why_no_browser() -> str | None:
    """What is missing for tests in a browser; None if nothing is."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed"
    if find_chromium() is None:
        return "no Chromium is installed (or set CHROMIUM to one)"
    return None


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SERVER_LOGS] = []


@pytest.fixture(scope="session", autouse=True)
def _tried_versions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever is installed counts as tried, here and in servers: that is what these tests are for."""
    from amp_explore.measure.identities import versions

    lock = tmp_path_factory.mktemp("lock") / "requirements.lock"
    lock.write_text("".join(f"{name}=={found.split('+')[0]}\n" for name, found in versions().items()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMP_EXPLORE_LOCK", str(lock))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"page", "chromium"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("browser")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("browser") and (reason := why_no_browser()):
        if os.environ.get("AMP_EXPLORE_REQUIRE_BROWSER") == "1":
            pytest.fail(f"{NO_BROWSER}: {reason}", pytrace=False)
        pytest.skip(f"{NO_BROWSER}: {reason}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = terminalreporter.stats.get("skipped", [])
    skipped = [report for report in reports if NO_BROWSER in str(report.longrepr)]
    if not skipped:
        return
    terminalreporter.section("NOT TESTED: everything that needs a browser", sep="!", red=True, bold=True)
    for report in skipped:
        terminalreporter.line(f"did not run: {report.nodeid}", red=True)
    reason = f"{len(skipped)} tests did not run: {why_no_browser()}."
    terminalreporter.line(reason, red=True, bold=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    if report.failed and item.get_closest_marker("browser"):
        for log in item.config.stash[SERVER_LOGS]:
            tail = log.read_text("utf-8", "replace")[-4000:]
            report.sections.append((f"Log of the server ({log.name})", tail))
    return report


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium, of which tests take contexts and pages."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(CHROMIUM_ARGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def _context(chromium):
    """One for all pages: they share its cache, which makes every load but the first a quick one."""
    context = chromium.new_context()
    context.set_default_timeout(1000 * WAIT)
    return context


@pytest.fixture
def page(_context):
    """A page of 1400 x 1000; the test fails if its scripts raise."""
    page = _context.new_page()
    page.set_viewport_size({"width": 1400, "height": 1000})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not errors, f"scripts of the page raised: {errors}"


@pytest.fixture(scope="session")
def serve(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """``serve(script, cwd, **environment)`` starts Streamlit on ``script``, the dashboard behind its own server, until
    the session ends; returns its address. The same call again returns the same server."""
    servers: dict[tuple, tuple[subprocess.Popen, str]] = {}

    def start(script: Path, cwd: Path, **environment: str) -> str:
        key = (script, cwd, *sorted(environment.items()))
        if key not in servers:
            log = tmp_path_factory.mktemp("server") / f"{script.stem}.log"
            servers[key] = _start_streamlit(script, cwd, log, environment)
            pytestconfig.stash[SERVER_LOGS].append(log)
            _wait_until_healthy(*servers[key], log)
        return servers[key][1]

    yield start
    for process, _ in servers.values():
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama with a tokenizer of one token per character; every job on it is done at once."""
    from made_up import save_tiny

    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with a small made-up text in place of Wikipedia, and nothing else."""
    from made_up import made_up_text

    from amp_explore.seals import seal
    from amp_explore.texts import assets

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMP_EXPLORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = assets.TEXTS.folder
        folder.mkdir(parents=True)
        articles = (f"<doc id={number}>\n{made_up_text(1000, number)}\n</doc>\n" for number in range(40))
        (folder / "wiki.utf8").write_text("".join(articles))
        for name in ("c4.utf8", "code.utf8", "LICENSE"):
            (folder / name).touch()
        seal(folder)
        return assets.cache_root()


def _start_streamlit(script: Path, cwd: Path, log: Path, environment: dict[str, str]) -> tuple[subprocess.Popen, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if script.name == "app.py":
        command = [sys.executable, "-m", "amp_explore.ui.server", str(port)]
    else:
        command = [sys.executable, "-m", "streamlit", "run", str(script), "--server.address", "127.0.0.1"]
        command += ["--server.port", str(port), "--server.headless", "true", "--server.fileWatcherType", "none"]
        command += ["--browser.gatherUsageStats", "false"]
    # A script outside cwd finds the package all the same.
    path = os.pathsep.join(filter(None, [str(cwd), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, **environment}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdout=output, stderr=subprocess.STDOUT)
    return process, f"http://127.0.0.1:{port}"


def _wait_until_healthy(process: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"Streamlit did not start. Its log:\n{log.read_text('utf-8', 'replace')}", pytrace=False)
