# SPDX-License-Identifier: GPL-3.0-or-later
"""The report: its numbers and frames, and the page itself in a real browser."""

import base64
import dataclasses
import io
import json
import re
import shutil
import zlib

import numpy as np
import pytest
from helpers import make_map
from PIL import Image
from scipy.spatial.transform import Rotation

from jaxstem.crystal.cell import reciprocal_lattice, reflections
from jaxstem.detection.scan import calibrated
from jaxstem.diffraction.settings import Microscope, Specimen
from jaxstem.errors import InputError
from jaxstem.files.distortion import from_numbers
from jaxstem.files.light import Detector, Light, ScanLight, encoded
from jaxstem.files.map_file import write_map
from jaxstem.files.map_schema import SINGLE
from jaxstem.files.packed import write_packed
from jaxstem.files.scan import DiskScan, source_of
from jaxstem.maps import measured, report
from jaxstem.maps.colours import LAB_X, LAB_Z, rgb_map
from jaxstem.maps.counted import Counted, Exposed, count
from jaxstem.maps.drawing import thinned
from jaxstem.maps.grains import bunge_angles
from jaxstem.maps.overruling import single_answers
from jaxstem.maps.payload import ABSENT
from jaxstem.maps.predicted import ReportConfig, predict
from jaxstem.maps.report import write_report

pytestmark = [pytest.mark.usefixtures("quick_compile"), pytest.mark.filterwarnings("ignore")]

K_MAX, VOLTAGE = 1.2, 300.0
SHAPE = (5, 7)
PIXEL = 0.05


def numbers_of(page):
    """The data in a page."""
    text = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    return json.loads(text.group(1))


def unpacked(text, kind):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), kind)


def some_map(crystals, seed=3):
    """5 x 7 positions of two phases, random orientations, one unassigned and one empty."""
    orientation = Rotation.random(35, random_state=seed).as_matrix().reshape(*SHAPE, 3, 3)
    phase = np.arange(35).reshape(SHAPE) % 2
    phase[0, 0], phase[4, 6] = -1, -2
    found = make_map(orientation, phase, [crystals["Cu"], crystals["Mg"]])
    thickness = np.where(np.arange(7) < 3, 150.0, np.nan) * np.ones(SHAPE)
    second = np.roll(found.orientation, 1, axis=1)
    return dataclasses.replace(
        found,
        thickness=thickness.astype(np.float32),
        second_orientation=second,
        second_phase=np.roll(found.phase, 1, axis=1),
        attributes={"voltage_kv": VOLTAGE, "k_max": K_MAX, "command": "jaxstem map </script> x"},
    )


def predictions(found, i, j):
    """(hkl, q) of the disks that the report predicts for the answer at a position."""
    unit_cell = found.crystals[found.phase[i, j]]
    disks = predict(
        found.orientation[i, j][None],
        found.thickness[i, j][None],
        unit_cell,
        Microscope(VOLTAGE, k_max=K_MAX),
        Specimen(),
        ReportConfig(),
    )
    of = reflections(unit_cell, K_MAX)
    index = disks.reflection[0][disks.reflection[0] != ABSENT].astype(int)
    return of.hkl[index], (of.g[index] @ found.orientation[i, j])[:, :2], disks.strength[0]


def disk_scan(found):
    """The predicted disks as measured ones, with the direct beam and a false disk everywhere."""
    rows, counts = [], []
    for (i, j), phase in np.ndenumerate(found.phase):
        q = predictions(found, i, j)[1][:6] if phase >= 0 else np.zeros((0, 2))
        disks = np.concatenate([[[0.0, 0.0]], q, [[0.31, -0.77]]])
        rows.append(np.c_[disks, np.linspace(100, 1, len(disks))])
        counts.append(len(disks))
    qx, qy, intensity = np.concatenate(rows).astype(np.float32).T
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return DiskScan(qx, qy, intensity, offsets, SHAPE, 20.0, "A", VOLTAGE, "a test")


@pytest.fixture(scope="module")
def found(crystals):
    return some_map(crystals)


@pytest.fixture(scope="module")
def scan(found):
    return disk_scan(found)


@pytest.fixture(scope="module")
def written(found, scan, tmp_path_factory):
    """The map, its scan as a packed table, in which disks lie where a wrong calibration puts them,
    as the map says; and the report on both.
    """
    folder = tmp_path_factory.mktemp("report")
    wrong = from_numbers([0.02, -0.01, 0.005, 0.03, -0.02])
    settings = {**found.settings, "distortion": wrong.stored()}
    write_map(folder / "map.h5", dataclasses.replace(found, settings=settings))
    q = np.stack([scan.qx, scan.qy], axis=1) @ (np.eye(2) + wrong.stretch) + wrong.shift
    scan = dataclasses.replace(scan, **dict(zip(("qx", "qy"), q.T.astype(np.float32), strict=True)))
    write_packed(folder / "disks.h5", source_of(scan), progress=False)
    write_report(folder / "map.h5", folder / "report.html", folder / "disks.h5")
    return folder / "report.html"


def test_numbers_survive_the_page(found, written):
    page = written.read_text(encoding="utf-8")
    data = numbers_of(page)
    assert page.count("</script>") == 2  # that in the command is escaped
    assert ("command", "jaxstem map </script> x") in [tuple(row) for row in data["about"]]
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", page) and "://" not in page
    known = found.phase.ravel() >= 0

    def number(name):
        packed = data["numbers"][name]
        return unpacked(packed["data"], "<u2") * packed["unit"]

    euler = np.stack([number(name) for name in ("phi1", "Phi", "phi2")], axis=-1)[known]
    expected = bunge_angles(found.orientation.reshape(-1, 3, 3)[known])
    np.testing.assert_allclose(np.mod(euler - expected + 180, 360), 180, atol=0.01)
    np.testing.assert_allclose(number("score"), found.score.ravel(), atol=2e-5)
    phase = unpacked(data["numbers"]["phase"]["data"], "i1")
    np.testing.assert_array_equal(phase, found.phase.ravel())
    picture = next(entry for entry in data["maps"] if entry["name"] == "ipf-x")["image"]
    rgb = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.split(",")[1]))))
    np.testing.assert_allclose(rgb / 255, rgb_map(found, LAB_X), atol=1 / 255)
    assert {entry["name"] for entry in data["maps"]} >= {"thickness", "phase", "confidence"}
    assert data["counts"] is None and data["overruled"] is None and len(data["predicted"]) == 2


@pytest.mark.slow
def test_large_scans_are_thinned(found, scan, tmp_path):
    """Every other position drawn, of those every other one kept, disks alike."""
    write_map(tmp_path / "map.h5", found)
    config = ReportConfig(most_drawn=4, most_kept=4)
    write_packed(tmp_path / "disks.h5", source_of(scan), progress=False)
    write_report(tmp_path / "map.h5", tmp_path / "a.html", tmp_path / "disks.h5", config=config)
    data = numbers_of((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert data["shape"] == [3, 4] and data["every"] == 2 and data["apart"] == 2
    offsets = unpacked(data["measured"]["offsets"], "<u4")
    wanted = [i * 7 + j for i in (0, 4) for j in (0, 4)]
    np.testing.assert_array_equal(np.diff(offsets), np.diff(scan.offsets)[wanted])


def test_bad_input_is_refused_in_one_sentence(found, written, tmp_path):
    map_file, out = written.parent / "map.h5", tmp_path / "out.html"
    with pytest.raises(InputError, match="exists already"):
        write_report(map_file, written)
    with pytest.raises(InputError, match="itself"):
        write_report(map_file, map_file, overwrite=True)
    with pytest.raises(InputError, match="not a jaxstem map"):
        write_report(written.parent / "disks.h5", out)
    mute = dataclasses.replace(found, attributes={"k_max": 1.0})
    write_map(tmp_path / "mute.h5", mute)
    with pytest.raises(InputError, match="voltage_kv"):
        write_report(tmp_path / "mute.h5", out)
    write_map(tmp_path / "other.h5", thinned(found, 2))
    with pytest.raises(InputError, match="5 × 7 positions and the map 3 × 4"):
        write_report(tmp_path / "other.h5", out, written.parent / "disks.h5")
    assert not out.exists()


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; the tests that need it are skipped where it is not installed."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("no Chromium with chromedriver (Debian: chromium, chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = binary
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "disable-gpu",
        "window-size=1300,950",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = selenium.Chrome(options, selenium.ChromeService(driver))
    chromium.set_page_load_timeout(120)
    yield chromium
    chromium.quit()


def opened(browser, page):
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(page.as_uri())
    ready = "return document.body.dataset.ready === 'yes'"
    WebDriverWait(browser, 120).until(lambda b: b.execute_script(ready))


def click_position(browser, name, i, j):
    from selenium.webdriver.common.action_chains import ActionChains

    canvas = browser.find_element("id", f"map-{name}")
    width, height = canvas.size["width"], canvas.size["height"]
    x, y = ((j + 0.5) / SHAPE[1] - 0.5) * width, ((i + 0.5) / SHAPE[0] - 0.5) * height
    ActionChains(browser).move_to_element_with_offset(canvas, round(x), round(y)).click().perform()
    return canvas


def shown(browser):
    return dict(table(browser, "numbers"))


def table(browser, name):
    """The texts of a table's cells, row by row."""
    script = """return [...document.getElementById(arguments[0]).querySelectorAll('tr')].map(
        (row) => [...row.children].map((cell) => cell.textContent))"""
    return browser.execute_script(script, name)


def colour_at(browser, canvas, x, y):
    """rgb of a canvas at a share of its width and height."""
    script = """const [id, x, y] = arguments, c = document.getElementById(id);
        const pixel = c.getContext('2d').getImageData(x * c.width, y * c.height, 1, 1);
        return [...pixel.data].slice(0, 3)"""
    return browser.execute_script(script, canvas, float(x), float(y))


def settled(browser, script):
    """Waits until a script's answer is true; patterns are decoded as they are asked for."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 30).until(lambda b: b.execute_script(script))


def complaints(browser):
    """What the console says, but for the advice on how these tests read pixels."""
    return [entry for entry in browser.get_log("browser") if entry["source"] != "rendering"]


def test_the_page_answers_clicks_and_keys(browser, found, written, tmp_path):
    from selenium.webdriver.common.keys import Keys

    opened(browser, written)
    i, j = 2, 2  # phase 0, thickness known
    canvas = click_position(browser, "confidence", i, j)
    numbers = shown(browser)
    assert numbers["position"].startswith("row 2, column 2 (x 4.000 nm, y 4.000 nm)")
    assert numbers["phase"] == "Cu (Laue group m-3m)" and numbers["thickness"] == "150 Å"
    angles = [float(text.rstrip("°")) for text in numbers["Euler angles φ₁, Φ, φ₂"].split(", ")]
    np.testing.assert_allclose(angles, bunge_angles(found.orientation[i, j][None])[0], atol=0.02)
    assert float(numbers["score"]) == pytest.approx(found.score[i, j], abs=1e-3)
    browser.save_screenshot(str(tmp_path / "clicked.png"))

    # the measured disks are those predicted, so the table must name them; the last is false
    settled(browser, "return document.querySelectorAll('#disks td').length > 0")
    rows = table(browser, "disks")[1:]
    hkl, q, _ = predictions(found, i, j)
    assert rows[0][3] == "0 0 0" and rows[-1][3] == "–"
    for row, index, spot in zip(rows[1:-1], hkl, q, strict=False):
        assert row[3] == " ".join(f"{-k}\u0305" if k < 0 else str(k) for k in index)
        assert float(row[0]) == pytest.approx(np.hypot(*spot), abs=2e-3)

    for hidden in ("counted", "sources", "alone", "best"):
        assert not browser.find_element("id", hidden).is_displayed()

    # a map's colours are those of the map; the crosshair avoids other rows and columns
    expected = 255 * rgb_map(found, LAB_Z)[4, 5]
    found_colour = colour_at(browser, "map-ipf-z", 5.5 / SHAPE[1], 4.5 / SHAPE[0])
    np.testing.assert_allclose(found_colour, expected, atol=2)

    canvas.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    assert shown(browser)["position"].startswith("row 3, column 3")
    canvas.send_keys(Keys.SHIFT, Keys.ARROW_UP, Keys.ARROW_LEFT, Keys.NULL)
    numbers = shown(browser)
    assert numbers["position"].startswith("row 0, column 0")
    assert numbers["phase"] == "unassigned" and "score" not in numbers
    scale = "return document.querySelector('.scale i').offsetWidth"
    before = browser.execute_script(scale)
    browser.find_element("id", "in").click()
    length = browser.execute_script("return document.querySelector('.scale').textContent")
    assert browser.execute_script(scale) > before or length != "5 nm"
    canvas.send_keys("0")
    assert browser.execute_script(scale) == before

    assert complaints(browser) == []
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map((e) => e.name)"
    )
    assert all(name.startswith("data:") for name in loaded)


def test_the_page_shows_either_answer(browser, found, tmp_path, monkeypatch):
    """Of a map whose patterns alone are half a turn away at (2, 2) and see no crystal at (2, 4)."""
    monkeypatch.setattr(report, "_figures", lambda *_: [])
    orientation, phase = found.orientation.copy(), found.phase.copy()
    orientation[2, 2] *= np.float32([-1, -1, 1])
    orientation[2, 4], phase[2, 4] = np.nan, -2
    single = dict(zip(SINGLE, (orientation, phase, 1 - found.confidence), strict=True))
    both = dataclasses.replace(found, **single)
    write_map(tmp_path / "map.h5", both)
    write_report(tmp_path / "map.h5", tmp_path / "report.html")
    opened(browser, tmp_path / "report.html")

    def told(i, j):
        click_position(browser, "overruled", i, j)
        return {name: values for name, *values in table(browser, "numbers")}

    rows = told(2, 2)
    assert "half a turn about the beam" in rows["overruled"][0]
    euler = [[float(x.rstrip("°")) for x in y.split(", ")] for y in rows["Euler angles φ₁, Φ, φ₂"]]
    matrices = np.stack([found.orientation[2, 2], orientation[2, 2]])
    np.testing.assert_allclose(euler, bunge_angles(matrices), atol=0.02)
    scan, alone = (float(x) for x in rows["confidence"])
    assert [scan, 1 - alone] == pytest.approx([found.confidence[2, 2]] * 2, abs=1e-3)
    assert told(2, 4)["phase"] == ["Cu (Laue group m-3m)", "no crystal"]
    alone = float(told(1, 3)["… of the pattern alone"][0])
    assert alone == pytest.approx(1 - found.confidence[1, 3], abs=1e-3)
    told(4, 6)  # away from what is looked at
    legend = "return document.querySelector('#map-phase ~ .legend').innerText"
    for source, of in (("patterns", single_answers(both)), ("scan", found)):
        browser.find_element("id", f"of-{source}").click()
        colour = colour_at(browser, "map-ipf-x", 4.5 / SHAPE[1], 2.5 / SHAPE[0])
        np.testing.assert_allclose(colour, 255 * rgb_map(of, LAB_X)[2, 4], atol=2)
        told_below = browser.execute_script(legend)
        assert f"Cu {100 * np.mean(of.phase == 0):.1f} %" in told_below
        assert ("each pattern alone" in told_below) == (source == "patterns")
    browser.save_screenshot(str(tmp_path / "either.png"))
    assert complaints(browser) == []


def some_light(rng, side=48):
    """Counts of 35 patterns that are anything, on a background of 40 electrons a disk."""
    detector = Detector(
        np.full(999, 40.0, np.float32),
        np.float32(1 / 16),
        np.ones((side, side), bool),
        np.eye(2, dtype=np.float32) / np.float32(0.06),
        np.float32(4.0),
        np.float32(0.076),
        np.float32(1.0),
    )
    sums = np.asarray(encoded(np.exp(rng.uniform(2, 9, (35, side, side)))))
    factor, centre = np.full((35, 12, 12), 128, np.uint8), np.full((35, 2), side / 2, np.float32)
    return ScanLight(Light(sums, factor, centre), detector)


def test_counts_are_weighed_by_the_beam_that_the_map_knows(found, scan, tmp_path, monkeypatch, rng):
    """Where it is hidden its counts are known from nowhere else."""
    scan = dataclasses.replace(scan, light=some_light(rng))

    class Weighed(Exception):
        """That it came so far is enough."""

    def count(_, __, ___, exposed, *____):
        raise Weighed(exposed.incident)

    monkeypatch.setattr(report, "measured_patterns", lambda *_: (scan, None))
    monkeypatch.setattr(report, "count", count)
    attributes = {**found.attributes, "judge": "counts"}
    beams = []
    for beam in ({}, {"unseen": True, "incident": 1e9}):
        settings = {**found.settings, "beam": beam}
        by_counts = dataclasses.replace(found, attributes=attributes, settings=settings)
        write_map(tmp_path / "map.h5", by_counts, overwrite=True)
        with pytest.raises(Weighed) as caught:
            write_report(tmp_path / "map.h5", tmp_path / "report.html", "cube.h5", overwrite=True)
        beams.append(caught.value.args[0])
    assert (beams[0] < 1e6).all() and (beams[1] == np.float32(1e9)).all()


def test_counts_are_shown_for_either_answer(browser, found, scan, tmp_path, monkeypatch, rng):
    """Those of `count`, each with what the other answer predicts there and its place."""
    from selenium.webdriver.common.action_chains import ActionChains

    monkeypatch.setattr(report, "_figures", lambda *_: [])
    scan = dataclasses.replace(scan, intensity=1e4 * scan.intensity, light=some_light(rng))
    monkeypatch.setattr(report, "measured_patterns", lambda *_: (scan, None))
    by_counts = dataclasses.replace(found, attributes={**found.attributes, "judge": "counts"})
    write_map(tmp_path / "map.h5", by_counts)
    write_report(tmp_path / "map.h5", tmp_path / "report.html", "cube.h5")
    opened(browser, tmp_path / "report.html")
    i, j = 1, 4
    click_position(browser, "phase", i, j)
    exposed, microscope = Exposed.of(scan, found.crystals, K_MAX), Microscope(VOLTAGE, k_max=K_MAX)
    answers, places = [], []
    for orientation, phase in (
        (found.orientation, found.phase),
        (found.second_orientation, found.second_phase),
    ):
        flat = orientation.reshape(-1, 3, 3), phase.ravel()
        of = count(*flat, found.crystals, exposed, microscope, Specimen(), 24)
        answers.append(Counted(*(x[7 * i + j] for x in of)))
        g = answers[-1].hkl @ reciprocal_lattice(found.crystals[phase[i, j]].lattice)
        places.append((g @ orientation[i, j])[:, :2])

    def number(text):
        return float(text.replace("−", "-").replace("\u2009", "").lstrip("± "))

    for which, of in enumerate(answers):
        browser.find_element("id", f"counts-of-{which}").click()
        labels = browser.find_elements("css selector", "#answers label")
        thickness, evidence = re.search(r": (\d+) Å, (\S+) nat", labels[which].text).groups()
        assert float(thickness) == pytest.approx(of.thickness, abs=0.6)
        assert number(evidence) == pytest.approx(of.evidence, abs=0.11)
        rows, other = table(browser, "counts")[1:], answers[1 - which]
        assert len(rows) == (of.hkl != 0).any(-1).sum() > 5
        for k, (name, *values, there) in enumerate(rows):
            assert name == " ".join(f"{-x}\u0305" if x < 0 else str(x) for x in of.hkl[k])
            shown = [number(text) for text in values]
            assert shown[0] == pytest.approx(of.predicted[k], rel=0.01, abs=0.6)
            assert shown[1] == pytest.approx(of.measured[k], rel=2e-3, abs=0.06 * of.error[k] + 0.6)
            assert shown[2] == pytest.approx(of.error[k], rel=0.06, abs=0.6)
            assert shown[3:] == pytest.approx([of.deviation[k], of.log_ratio[k]], abs=0.11)
            apart = np.hypot(*(places[1 - which] - places[which][k]).T)
            apart[~(other.hkl != 0).any(-1)] = np.inf
            near = apart.argmin()
            if abs(apart[near] - microscope.disk_radius) > 1e-3:
                assert (there == "–") == (apart[near] > microscope.disk_radius)
            if there != "–":
                assert number(there) == pytest.approx(other.predicted[near], rel=0.01, abs=0.6)
        line = browser.find_elements("css selector", "#counts tr")[1]
        ActionChains(browser).move_to_element(line).perform()
        spot = browser.execute_script("""const s = document.getElementById("spot");
            return [s.style.top, s.style.left].map(parseFloat)""")
        assert spot == pytest.approx(50 + 50 * places[which][0] / (1.06 * K_MAX), abs=0.5)
    browser.save_screenshot(str(tmp_path / "counts.png"))
    assert complaints(browser) == []


@pytest.mark.slow
def test_patterns_are_drawn_in_the_lab_frame(browser, found, bright, tmp_path, monkeypatch):
    from selenium.webdriver.support.ui import WebDriverWait

    cube, _, detected = bright
    detections = detected(np.full((*SHAPE, 2), 11.5))
    monkeypatch.setattr(measured, "open_disks", lambda *_: None)
    monkeypatch.setattr(measured, "open_cube", lambda *_: cube)
    monkeypatch.setattr(measured, "find_disks", lambda *_, **__: detections)
    write_map(tmp_path / "map.h5", found)
    write_report(tmp_path / "map.h5", tmp_path / "report.html", "cube.h5")
    opened(browser, tmp_path / "report.html")
    for name in ("measured", "best"):
        browser.find_element("id", f"show-{name}").click()
    disks = calibrated(detections)
    q = np.stack([disks.qx, disks.qy], axis=-1).reshape(*SHAPE, 2)
    # seen, and not so near the middle that what lies opposite is lit by the same pixel
    farthest = np.abs(q).max(-1)
    inside = np.argwhere((farthest < 0.8 * K_MAX) & (farthest > 3 * PIXEL))[:4]
    for i, j in inside:
        click_position(browser, "ipf-x", i, j)
        x, y = 0.5 + q[i, j, ::-1] / (2 * 1.06 * K_MAX)
        WebDriverWait(browser, 30).until(
            lambda b, x=x, y=y: min(colour_at(b, "pattern", x, y)) > 200, f"dark at {x}, {y}"
        )
        opposite = colour_at(browser, "pattern", 1 - x, 1 - y)
        assert max(opposite) < 200
    browser.save_screenshot(str(tmp_path / "pattern.png"))
    assert complaints(browser) == []


@pytest.mark.slow
def test_the_page_fits_a_phone_and_says_where_it_holds_no_pattern(browser, found, tmp_path):
    write_map(tmp_path / "map.h5", found)
    config = ReportConfig(most_kept=12)
    write_report(tmp_path / "map.h5", tmp_path / "report.html", config=config)
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        opened(browser, tmp_path / "report.html")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        click_position(browser, "phase", 1, 1)
        settled(browser, "return document.querySelector('#note button') !== null")
        assert "one row and one column in 2" in browser.find_element("id", "note").text
        browser.find_element("css selector", "#note button").click()
        assert shown(browser)["position"].startswith("row 2, column 2")
        settled(browser, "return document.querySelector('#note button') === null")
        browser.save_screenshot(str(tmp_path / "phone.png"))
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert complaints(browser) == []
