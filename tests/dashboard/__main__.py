"""The dashboard and `kiln top`, seen by a real browser and a real terminal.

    make test-dashboard

Three nodes of `kiln dev` under load: what Chromium shows is held against `/metrics`, a node
is killed, names that would be markup are seen to be text. `--shots DIR` keeps pictures.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from browser import DESKTOP, PHONE, Browser, shot, until
from demo import Table, kernel, slow_kernels
from demo_cluster import ClaimFailed, Cluster, Node, require
from figures import figure, figures_equal_metrics, metric
from load import HOSTILE, KERNELS, Values, compiles
from terminal import Tmux, quit_and_check, start

# A node that is killed is shown as gone within this.
GONE = 5.0
SCREENS = (
    ("desktop", DESKTOP, False),
    ("dark", DESKTOP, True),
    ("phone", PHONE, False),
    ("phone-dark", PHONE, True),
)


def state_of(node: Node) -> dict[str, Any]:
    """The view of `node`."""
    with urllib.request.urlopen(f"http://{node.http}/api/v1/state", timeout=10) as answer:
        return json.load(answer)


def page_is_live(cluster: Cluster, page: Any, seen: list[str]) -> None:  # noqa: ANN401
    """The page opens, is live, and shows every node."""
    page.goto(f"http://{cluster.nodes[0].http}/")
    require(page.url.endswith("/ui/"), f"it leads to {page.url}")
    until(page, "3 of 3 nodes", lambda: figure(page, "nodes_up") == "3 of 3", 30)
    until(page, "live news", lambda: page.locator("#live.on").count() == 1, 10)
    before = figure(page, "resp_hits", cluster.nodes[0])
    grown = lambda: figure(page, "resp_hits", cluster.nodes[0]) != before  # noqa: E731
    until(page, "figure that grows under load", grown, 10)
    seen.append(page.locator("#cluster").inner_text())


def names_are_text(page: Any, seen: list[str]) -> None:  # noqa: ANN401
    """Names that would be markup are shown as they are, and nothing of them runs."""
    until(page, "hostile name", lambda: page.get_by_text(HOSTILE[:30]).count() > 0, 15)
    require(page.evaluate("window.hacked") is None, "a name ran as a script")
    require(page.locator("main img").count() == 0, "a name became an element")
    seen.append("shown as text")


def misses_have_reasons(cluster: Cluster, page: Any, folder: Path, seen: list[str]) -> None:  # noqa: ANN401
    """A compile whose options differ in one field says which."""
    file = folder / "reason.cu"
    file.write_text(kernel("reason"))
    node = cluster.nodes[0]
    cluster.compile(node, file)
    cluster.run(node, "compile", str(file), "-D", "TILE=64", within=180)
    misses = page.locator("section", has_text="Recent misses")
    found = misses.get_by_text(re.compile("^only options.* differ"))
    until(page, "reason of a miss", lambda: found.count() > 0, 30)
    seen.append(found.first.inner_text())


def compile_is_seen(cluster: Cluster, page: Any, folder: Path, seen: list[str]) -> None:  # noqa: ANN401
    """A compile that goes on is shown with its node, and is gone from the list after."""
    file = folder / "slow.cu"
    file.write_text(slow_kernels(14))
    process = cluster.compiling(cluster.nodes[1], file)
    row = page.locator("section", has_text="Under way").locator("tr", has_text="slow.cu")
    until(page, "compile under way", lambda: row.count() == 1, 30)
    stage = row.inner_text().replace("\t", " ")
    process.communicate(timeout=180)
    until(page, "end of it", lambda: row.count() == 0, 15)
    seen.append(stage)


def keyboard_works(page: Any, seen: list[str]) -> None:  # noqa: ANN401
    """Tab and Enter alone lead to an artifact and back, and focus follows."""
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.keyboard.press("Tab")
    require("Skip" in page.evaluate("document.activeElement.textContent"), "no link to skip")
    page.keyboard.press("Enter")
    focused = "document.activeElement.getAttribute('href') || ''"
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate(focused).startswith("#/artifact/"):
            break
    require(page.evaluate(focused).startswith("#/artifact/"), "no artifact can be reached by Tab")
    key = page.evaluate(focused).rsplit("/", 1)[1]
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Components").wait_for()
    heading = page.evaluate("document.activeElement.textContent")
    require(heading.startswith("Artifact"), f"the focus is on {heading!r}")
    parts = [h.inner_text() for h in page.get_by_role("heading", level=2).all()]
    for part in ("Artifact", "Holders", "Components", "Files", "History"):
        require(part in parts, f"no {part} among {parts}")
    require(page.get_by_text(key, exact=True).count() > 0, "the key is not shown")
    page.go_back()
    page.get_by_role("heading", name="Recent misses").wait_for()
    seen.append(f"{key[:12]}: {', '.join(parts)}")


def killed_node_is_gone(cluster: Cluster, page: Any, seen: list[str]) -> None:  # noqa: ANN401
    """A node that is killed is shown as gone in time, and the page stays live."""
    node = cluster.nodes[2]
    node.signal(signal.SIGKILL)
    killed = time.monotonic()
    gone = lambda: figure(page, "state", node).startswith("gone")  # noqa: E731
    until(page, f"node {node.id} shown as gone", gone, GONE)
    took = time.monotonic() - killed
    require(took <= GONE, f"it took {took:.1f} s")
    require(figure(page, "nodes_up") == "2 of 3", figure(page, "nodes_up"))
    seen.append(f"node {node.id} gone after {took:.1f} s")
    cluster.restart(node)
    until(page, "node that is back", lambda: figure(page, "nodes_up") == "3 of 3", 60)


def pictures(cluster: Cluster, browser: Browser, folder: Path | None, seen: list[str]) -> None:
    """On a phone and in the dark the page fits and can be read."""
    for name, size, dark in SCREENS:
        page = browser.page(size, dark=dark)
        page.goto(f"http://{cluster.nodes[0].http}/ui/")
        until(page, "3 of 3 nodes", lambda page=page: figure(page, "nodes_up") == "3 of 3", 30)
        until(page, "charts", lambda page=page: page.locator(".chart canvas").count() == 6, 30)
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        require(wide <= 0, f"{name}: the page is {wide} pixels wider than the screen")
        ground, text = contrast(page)
        ratio = (max(ground, text) + 0.05) / (min(ground, text) + 0.05)
        require(ratio >= 4.5, f"{name}: the contrast is {ratio:.1f}")
        require((ground < 0.2) == dark, f"{name}: the ground has a luminance of {ground:.2f}")
        shot(page, folder, name)
        page.context.close()
        seen.append(f"{name} {ratio:.0f}:1")


def contrast(page: Any) -> tuple[float, float]:  # noqa: ANN401
    """Luminance of the ground and of the text."""
    body = "getComputedStyle(document.body)"
    colours = [page.evaluate(f"{body}.{of}") for of in ("backgroundColor", "color")]

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    return luminance(colours[0]), luminance(colours[1])


def top_in_a_terminal(cluster: Cluster, folder: Path, seen: list[str]) -> None:
    """`kiln top` shows the same, follows keys, sees a node go, and leaves a clean terminal."""
    node, other = cluster.nodes[0], cluster.nodes[1]
    tmux = Tmux(folder)
    try:
        start(tmux, cluster.kiln, node)
        told = metric(node, "kiln_requests_total", outcome="hit")
        row = next(line for line in tmux.screen().splitlines() if line.startswith(f"{node.id} "))
        require(f" {told} " in row, f"{told} hits, but: {row}")
        tmux.keys("Right", "Right", "Right")
        tmux.shows("A COMPILE")
        tmux.keys("BTab", "BTab", "BTab")
        tmux.shows("VERSION")
        other.signal(signal.SIGSTOP)
        paused = time.monotonic()
        screen = tmux.shows("GONE", GONE)
        took = time.monotonic() - paused
        require("2 of 3 nodes up" in screen, screen)
        other.signal(signal.SIGCONT)
        tmux.shows("3 of 3 nodes up")
        quit_and_check(tmux)
        seen.append(f"a paused node GONE after {took:.1f} s; the terminal is as before")
    finally:
        other.signal(signal.SIGCONT)
        tmux.stop()


def once_is_the_view(cluster: Cluster, seen: list[str]) -> None:
    """`kiln top --once --json` prints what `/api/v1/state` tells."""
    node = cluster.nodes[1]
    (printed,) = cluster.run(node, "top", "--once")
    told = state_of(node)
    require(printed.keys() == told.keys(), f"{sorted(printed)} against {sorted(told)}")
    for part in ("totals", "cluster"):
        require(printed[part] == told[part], f"{part}: {printed[part]} against {told[part]}")
    piped = subprocess.run(
        [str(cluster.kiln), "top", "--endpoint", f"http://{node.grpc}"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    require(piped.returncode == 2 and "--once" in piped.stderr, f"without a terminal: {piped}")
    seen.append(f"{len(printed)} parts")


def run(cluster: Cluster, table: Table, shots: Path | None) -> None:
    """All claims, in order."""
    folder = cluster.folder
    cluster.start()
    browser = Browser()
    try:
        values = Values(cluster)
        page = browser.page(DESKTOP)
        with table.claim("the page is live under load") as seen:
            page_is_live(cluster, page, seen)
        with table.claim("compiles and hits on three nodes") as seen:
            compiles(cluster, folder)
            seen.append(f"{KERNELS + 1} kernels")
        with table.claim("a compile under way is shown") as seen:
            compile_is_seen(cluster, page, folder, seen)
        with table.claim("a miss says which field differed") as seen:
            misses_have_reasons(cluster, page, folder, seen)
        with table.claim("names that would be markup are text") as seen:
            names_are_text(page, seen)
        values.stop()
        with table.claim("figures equal /metrics") as seen:
            figures_equal_metrics(cluster, page, seen)
        with table.claim("the keyboard leads everywhere") as seen:
            keyboard_works(page, seen)
        with table.claim("desktop, phone and dark") as seen:
            pictures(cluster, browser, shots, seen)
        with table.claim("kiln top --once --json is the view") as seen:
            once_is_the_view(cluster, seen)
        with table.claim("kiln top in tmux") as seen:
            top_in_a_terminal(cluster, folder, seen)
        with table.claim(f"a killed node is gone within {GONE:.0f} s") as seen:
            killed_node_is_gone(cluster, page, seen)
        with table.claim("no complaint in the console") as seen:
            require(not browser.complaints, "; ".join(browser.complaints[:5]))
            seen.append("none")
    finally:
        browser.stop()


def main() -> int:
    """Runs all, tidies up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kiln", type=Path, required=True)
    parser.add_argument("--shots", type=Path, help="folder for pictures of the page")
    options = parser.parse_args()
    if options.shots is not None:
        options.shots.mkdir(parents=True, exist_ok=True)
    table = Table()
    table.heading()
    with tempfile.TemporaryDirectory(prefix="kiln-dashboard-") as folder:
        cluster = Cluster(options.kiln.resolve(), Path(folder))
        try:
            run(cluster, table, options.shots)
        except ClaimFailed as e:
            print(f"{e}\n{cluster.tails()}", file=sys.stderr)
            return 1
        finally:
            cluster.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
