"""The report in a real browser (headless Chromium): it draws, answers, loads nothing and runs no one else's script."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
from PIL import Image
from product_example import NAMES, UNIT_NAMES, make_inputs
from report_samples import chips, many_inputs

from pipeline.labels import FOREST_LOSS_DRIVERS
from pipeline.product.report import render
from pipeline.product.styles import NO_IMAGERY_COLOUR
from pipeline.product.write import ProductInputs

RUN = {"simulated": True, "complete": False, "config": {"output": {"uncertain_below": 0.5}}}
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\" & مرحبا"
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    sync_api = pytest.importorskip("playwright.sync_api") if not os.environ.get("CI") else None
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium on this machine: the report cannot be looked at")
        pytest.skip("no Chromium on this machine")
    if sync_api is None:
        from playwright import sync_api
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield started
        started.close()


@dataclass
class Opened:
    """A page, and what it said and asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def ready(self) -> Opened:
        self.page.locator("html[data-map=ready]").wait_for(state="attached", timeout=120_000)
        return self

    def canvas(self) -> np.ndarray:
        """Pixels of the map, uint8 [rows, columns, 3], once it rests."""
        self.page.wait_for_timeout(400)
        return np.asarray(Image.open(io.BytesIO(self.page.locator("#map").screenshot())).convert("RGB"))

    def facts(self) -> dict[str, str]:
        rows = self.page.locator("#map-facts")
        return dict(zip(rows.locator("dt").all_inner_texts(), rows.locator("dd").all_inner_texts(), strict=True))

    def spot(self, lon: float, lat: float) -> dict[str, float]:
        """Where a place is on the canvas while the whole map shows."""
        west, south, east, north = self.page.evaluate(
            "JSON.parse(document.getElementById('map-config').textContent).bounds"
        )
        box = self.page.locator("#map").bounding_box()
        cosine = np.cos(np.radians((south + north) / 2))
        scale = min(box["width"] / ((east - west) * cosine), box["height"] / (north - south))
        x = box["width"] / 2 + (lon - (west + east) / 2) * scale * cosine
        return {"x": x, "y": box["height"] / 2 - (lat - (south + north) / 2) * scale}


def opened(browser: Any, path: Path, **settings: Any) -> Opened:
    page = browser.new_page(viewport={"width": 1200, "height": 900}, **settings)
    made = Opened(page)
    page.on("console", lambda message: made.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: made.complaints.append(str(error)))
    page.on("request", lambda request: made.requests.append(request.url))
    page.goto(path.as_uri())
    return made


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> ProductInputs:
    made = make_inputs(tmp_path_factory.mktemp("inputs"))
    made = replace(made, chips=chips(made))
    for frame in (made.events, made.units):  # a unit whose name attacks the page
        frame.loc[frame["unit_id"] == "b", "unit_name"] = HOSTILE
    return replace(made, region=HOSTILE, run={**made.run, "warnings": [HOSTILE]})


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, inputs: ProductInputs) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(inputs, {**inputs.run, **RUN, "note": HOSTILE}), encoding="utf-8")
    return path


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Opened]:
    made = opened(browser, report).ready()
    yield made
    made.page.close()


def share_of(pixels: np.ndarray, colour: str) -> float:
    rgb = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    return float((np.abs(pixels.astype(int) - rgb).max(axis=2) <= 2).mean())


def test_nothing_is_loaded_nothing_complains_and_no_foreign_script_runs(page: Opened, report: Path) -> None:
    page.page.mouse.wheel(0, 3000)
    page.page.wait_for_timeout(300)
    assert [url for url in page.requests if not url.startswith("data:")] == [report.as_uri()]
    assert page.complaints == []
    assert page.page.evaluate("window.hacked") is None
    assert page.page.evaluate("document.images.length") == 2 * 6 - 1
    assert page.page.evaluate("[...document.images].every(image => !image.complete || image.naturalWidth > 0)")
    words = page.page.locator("body").inner_text()
    for name in (HOSTILE, UNIT_NAMES[0]):
        assert name in words


def test_map_shows_the_colours_of_the_styles(page: Opened) -> None:
    pixels = page.canvas()
    for item in FOREST_LOSS_DRIVERS:
        assert share_of(pixels, item.colour) > 5e-5, item.name
    assert share_of(pixels, NO_IMAGERY_COLOUR) > 5e-5
    assert page.page.evaluate("document.documentElement.dataset.drawnEvents") == "12"
    assert not page.page.locator("#map-static").is_visible()


def test_uncertain_events_are_hatched(page: Opened, inputs: ProductInputs) -> None:
    unsure = inputs.events[inputs.events["status"] == "uncertain"].nlargest(1, "area_ha").iloc[0]
    spot = page.spot(*shapely_middle(unsure))
    pixels = page.canvas()[int(spot["y"]) - 4 : int(spot["y"]) + 5, int(spot["x"]) - 4 : int(spot["x"]) + 5]
    colour = next(item.colour for item in FOREST_LOSS_DRIVERS if item.name == unsure["driver"])
    assert share_of(pixels, colour) > 0.2
    assert share_of(pixels, "#ffffff") > 0.2


def shapely_middle(event: Any) -> tuple[float, float]:
    middle = event["geometry"].centroid
    return middle.x, middle.y


def test_a_click_reads_the_attributes_of_an_event(page: Opened, inputs: ProductInputs) -> None:
    event = inputs.events.set_index("event_id", drop=False).loc["4000-1202"]  # a square of classified loss
    page.page.locator("#map").click(position=page.spot(*shapely_middle(event)))
    facts = page.facts()
    assert facts["Event"] == event["event_id"]
    assert facts["Driver"] == next(c.title for c in FOREST_LOSS_DRIVERS if c.name == event["driver"])
    assert facts["Status"] == "Classified"
    assert facts["Confidence"] == f"{100 * event['confidence']:.1f} %"
    assert float(facts["Mapped area"].removesuffix(" ha")) == pytest.approx(event["area_ha"], abs=0.006)
    assert facts["Loss year"] == str(event["loss_year"])
    assert facts["Images"] == "5, 2022-06-01 to 2024-06-01"
    assert facts["Unit"] == HOSTILE
    page.page.locator("#map").press("Escape")
    assert page.facts() == {}
    assert page.page.evaluate("window.hacked") is None


def test_hover_tells_and_empty_land_tells_nothing(page: Opened, inputs: ProductInputs) -> None:
    event = inputs.events.iloc[1]
    page.page.locator("#map").hover(position=page.spot(*shapely_middle(event)))
    page.page.locator("#map-tip").wait_for(state="visible")
    found = re.search(r"([\d.]+) ha", page.page.locator("#map-tip").inner_text())
    assert found
    assert float(found[1]) == pytest.approx(event["area_ha"], abs=0.006)
    page.page.locator("#map").hover(position={"x": 20, "y": 400})
    page.page.locator("#map-tip").wait_for(state="hidden")


def test_wheel_drag_keys_and_buttons_move_the_map(page: Opened) -> None:
    canvas = page.page.locator("#map")
    canvas.press("0")
    home = page.canvas()
    box = canvas.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    def changed(what: str) -> np.ndarray:
        now = page.canvas()
        assert (now != home).mean() > 0.001, what
        return now

    page.page.mouse.move(*middle)
    page.page.mouse.wheel(0, -600)
    changed("wheel")
    page.page.keyboard.press("0")
    page.page.mouse.move(5, 5)
    assert (page.canvas() != home).mean() < 0.001, "0 shows all again"
    page.page.mouse.move(*middle)
    page.page.mouse.down()
    page.page.mouse.move(middle[0] + 150, middle[1] + 60, steps=4)
    page.page.mouse.up()
    changed("drag")
    assert page.facts() == {}, "a drag is no click"
    page.page.locator("#map-home").click()
    for key in ("ArrowLeft", "ArrowUp", "+", "-"):
        before = page.canvas()
        canvas.press(key)
        assert (page.canvas() != before).mean() > 0.001, key
    page.page.locator("#map-home").click()
    page.page.locator("#map-in").click()
    changed("button")
    canvas.press("Enter")
    assert page.facts()["Event"]


def test_two_fingers_pinch(browser: Any, report: Path) -> None:
    made = opened(browser, report).ready()
    before = made.canvas()
    made.page.evaluate(
        """() => {
          const canvas = document.getElementById("map"), box = canvas.getBoundingClientRect();
          canvas.setPointerCapture = () => {};
          const send = (type, id, dx) => canvas.dispatchEvent(new PointerEvent(type, {
            pointerId: id, pointerType: "touch", bubbles: true,
            clientX: box.left + box.width / 2 + dx, clientY: box.top + box.height / 2 }));
          send("pointerdown", 1, -40); send("pointerdown", 2, 40);
          send("pointermove", 1, -120); send("pointermove", 2, 120);
          send("pointerup", 1, -120); send("pointerup", 2, 120);
        }"""
    )
    wider = float(made.page.locator("#map-scale").evaluate("bar => bar.getBoundingClientRect().width"))
    assert (made.canvas() != before).mean() > 0.001
    assert wider > 0
    assert made.facts() == {}
    made.page.close()


def test_filters_hide_events_and_count_what_is_left(page: Opened, inputs: ProductInputs) -> None:
    count = page.page.locator("#map-count")
    assert count.inner_text().startswith("12 of 12 events, 408.5 ha")
    page.page.locator(f"input[data-driver={NAMES[1]}]").uncheck()
    events = inputs.events
    left = events[events["driver"] != NAMES[1]]
    assert count.inner_text() == f"{len(left)} of 12 events, {left['area_ha'].sum():.1f} ha mapped"
    pixels = page.canvas()
    assert share_of(pixels, FOREST_LOSS_DRIVERS.classes[1].colour) == 0
    assert share_of(pixels, FOREST_LOSS_DRIVERS.classes[0].colour) > 0
    page.page.locator("#map-from").select_option("2022")
    left = left[left["loss_year"] == 2022]
    assert count.inner_text().startswith(f"{len(left)} of 12 events")
    page.page.locator("input[data-status=failed]").uncheck()
    page.page.locator("#map-least").fill("60")
    left = left[left["confidence"] >= 0.6]
    assert count.inner_text().startswith(f"{len(left)} of 12 events")
    assert page.page.evaluate("document.documentElement.dataset.drawnEvents") == str(len(left))


def test_an_event_is_found_by_its_id_and_from_the_gallery(page: Opened) -> None:
    wanted = "8000-1202"
    page.page.locator("#map-id").fill(wanted)
    page.page.locator("#map-id").press("Enter")
    assert page.facts()["Event"] == wanted
    page.page.locator("#map-id").fill("nothing")
    page.page.locator("#map-id").press("Enter")
    assert "No event" in page.page.locator("#map-found").inner_text()
    button = page.page.locator("button[data-event]").first
    name = button.get_attribute("data-event")
    button.click()
    assert page.facts()["Event"] == name
    before = page.canvas()
    page.page.locator("button[data-unit='1']").click()
    assert (page.canvas() != before).mean() > 0.001


def test_plots_are_drawn_in_the_page(page: Opened) -> None:
    plots = page.page.locator("svg.plot")
    assert plots.count() >= 8
    wide = plots.evaluate_all(
        "all => all.map(plot => [plot.getBoundingClientRect().width, plot.querySelectorAll('rect').length])"
    )
    visible = [(width, boxes) for width, boxes in wide if width]
    assert len(visible) >= 7
    assert all(width > 300 for width, _ in visible)
    assert sum(boxes for _, boxes in visible) > 30
    # names for those who do not see them
    assert all(plots.evaluate_all("all => all.map(plot => plot.getAttribute('aria-label'))"))


def test_without_scripts_and_in_print_the_static_map_shows(browser: Any, report: Path) -> None:
    made = opened(browser, report, java_script_enabled=False)
    assert made.page.locator("#map-static").is_visible()
    assert not made.page.locator("#map-area").is_visible()
    assert not made.page.locator("button[data-event]").first.is_visible()
    pixels = np.asarray(Image.open(io.BytesIO(made.page.locator("#map-static svg").screenshot())).convert("RGB"))
    for item in FOREST_LOSS_DRIVERS:
        assert share_of(pixels, item.colour) > 5e-5, item.name
    made.page.close()
    live = opened(browser, report).ready()
    live.page.emulate_media(media="print")
    assert live.page.locator("#map-static").is_visible()
    assert not live.page.locator("#map-area").is_visible()
    live.page.close()


def test_a_narrow_screen_needs_no_sideways_scrolling(browser: Any, report: Path) -> None:
    made = opened(browser, report).ready()
    made.page.set_viewport_size({"width": 380, "height": 800})
    made.page.wait_for_timeout(300)
    wide = made.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 380
    assert made.canvas().std() > 5
    made.page.close()


def test_a_sharp_screen_and_no_events(browser: Any, tmp_path: Path, inputs: ProductInputs) -> None:
    path = tmp_path / "sharp.html"
    path.write_text(render(inputs, RUN), encoding="utf-8")
    made = opened(browser, path, device_scale_factor=2).ready()
    event = inputs.events.iloc[0]
    made.page.locator("#map").click(position=made.spot(event["lon"], event["lat"]))
    assert made.facts()["Event"] == event["event_id"]
    made.page.close()
    empty = make_inputs(tmp_path, 0)
    path.write_text(render(empty, {}), encoding="utf-8")
    made = opened(browser, path).ready()
    assert made.complaints == []
    assert "No loss event" in made.page.locator("body").inner_text()
    assert made.page.locator("#map-count").inner_text().startswith("0 of 0 events")
    made.page.close()


@pytest.mark.parametrize("count", [6_000, pytest.param(500_000, marks=pytest.mark.slow)])
def test_many_events(browser: Any, tmp_path: Path, count: int) -> None:
    many = many_inputs(tmp_path, count)
    path = tmp_path / "many.html"
    path.write_text(render(many, RUN), encoding="utf-8")
    assert path.stat().st_size < 15_000_000
    made = opened(browser, path).ready()
    assert made.complaints == []
    assert [url for url in made.requests if not url.startswith("data:")] == [path.as_uri()]
    assert f"of {count:,} events".replace(",", "\u202f") in made.page.locator("#map-count").inner_text()
    whole = made.canvas()
    for item in FOREST_LOSS_DRIVERS:
        assert share_of(whole, item.colour) > 1e-4, item.name
    wanted: gpd.GeoDataFrame = many.events[many.events["status"] == "classified"].nlargest(1, "area_ha")
    made.page.locator("#map-id").fill(wanted["event_id"].iloc[0])
    made.page.locator("#map-id").press("Enter")
    assert made.facts()["Event"] == wanted["event_id"].iloc[0]
    near = made.canvas()
    colour = next(c.colour for c in FOREST_LOSS_DRIVERS if c.name == wanted["driver"].iloc[0])
    assert share_of(near, colour) > 0.002
    assert (near != whole).mean() > 0.05
    made.page.close()
