"""The page that runs the algorithm in a browser keeps the package's points, and its controls work.

``pytest tests/house/test_explore.py`` runs all of it where node and chromium are installed.
"""

import html
import json
import os
import re
import shutil
import subprocess

import documents
import explore_cases
import numpy as np
import pytest
from checkout import ROOT
from programs import BROWSERS, program

from thinformer import Draws, mmd
from thinformer.halving.draws import make_draws
from thinformer.halving.schedule import compress_schedule

FOLDER = ROOT / "docs" / "_static" / "explore"
HELPERS = ROOT / "tests" / "helpers"
SCRIPTS = ("thinformer", "experiment", "drawing", "panels", "picture", "explore")


@pytest.fixture(scope="module")
def cases():
    """Recorded ones of each kind, and computed ones."""
    found = [*explore_cases.recorded(), *explore_cases.computed()]
    kinds = [case.given["kind"] for case in found]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "halve": 18 + 5,
        "points": 13 + 6,
        "attention": 17 + 18 + 6,
    }
    return found


def in_node(script, *arguments):
    """What a script prints, as JSON."""
    done = subprocess.run(
        [program("node"), *map(str, script), *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def differing(cases, choices):
    """Names of the cases in which other points were kept."""
    pairs = zip(cases, choices, strict=True)
    return [case.name for case, choice in pairs if case.expected != choice]


def chosen_in_node(folder, cases, tmp_path):
    given = tmp_path / "cases.json"
    given.write_text(json.dumps([case.given for case in cases]))
    return in_node([HELPERS / "explore_choices.js"], folder, given)


@pytest.mark.slow
def test_keeps_the_same_points_in_node(cases, tmp_path):
    assert differing(cases, chosen_in_node(FOLDER, cases, tmp_path)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("uniform[i] * a <= alpha", "uniform[i] * a < alpha"),  # twins have a = alpha = 0
        ("0.5 + Math.log", "0.4 + Math.log"),
        ("b_max = Math.max(b_max, b)", "b_max = b"),
        ("0xbf58476d1ce4e5b9n", "0xbf58476d1ce4e5b8n"),
        ("swap !== coin", "swap"),
    ],
)
def test_a_mistake_shows(cases, tmp_path, right, wrong):
    text = (FOLDER / "thinformer.js").read_text()
    assert text.count(right) == 1
    (tmp_path / "thinformer.js").write_text(text.replace(right, wrong))
    small = [case for case in cases if "activations" not in case.name]
    assert differing(small, chosen_in_node(tmp_path, small, tmp_path))


@pytest.mark.slow
def test_draws_are_the_package_s():
    """All of them, to the last bit."""
    seed, head = 2**64 - 3, 2
    script = (
        f"const t = require('{FOLDER}/thinformer.js');"
        "const schedule = t.compress_schedule(1000, 60, 0.3);"
        f"console.log(JSON.stringify([schedule, t.make_draws(schedule, {seed}n, {head})]))"
    )
    schedule, drawn = in_node(["-e", script])
    expected = compress_schedule(1000, 60, 0.3)
    assert [[r["pairs"], r["buckets"], r["delta"]] for r in schedule["rounds"]] == [
        list(round_) for round_ in expected.rounds
    ]
    draws = Draws(*([x[head] for x in part] for part in make_draws(expected, seed, 3)[:2]))
    assert drawn["uniforms"] == [uniform.tolist() for uniform in draws.uniforms]
    assert drawn["coins"] == [coin.tolist() for coin in draws.coins]
    assert drawn["strata"] == make_draws(expected, seed, 3).strata[head].tolist()


@pytest.mark.slow
def test_errors_are_the_package_s():
    """The last MMD of both subsets, and the weighted one half way, for each set of points."""
    script = f"""
        const experiment = require('{FOLDER}/experiment.js');
        console.log(JSON.stringify(Object.keys(experiment.SETS).map((name) => {{
          const points = experiment.pointSet(name, 64, 3, name === "ring");
          const run = experiment.run({{ points, bandwidth: 0.7, delta: 0.5, size: 8, seed: 5 }});
          const t = 50;
          return {{ points, kept: run.kept, random: run.order.slice(56), last: run.states.at(-1),
            weights: [...experiment.weightsAt(run, t)], half: run.states[t],
            seeds: experiment.overSeeds(run, [5])[0] }};
        }})))"""
    found = in_node(["-e", script])
    assert len(found) == 8
    for one in found:
        points = np.array(one["points"])
        assert points.shape in ((64, 1), (64, 2))
        assert len(np.unique(points, axis=0)) > 60
        kernel = explore_cases.kernels.gaussian(0.7)
        for name, rows in (("thinned", one["kept"]), ("random", sorted(one["random"]))):
            expected = mmd(points, np.array(rows), kernel=kernel)
            assert one["last"][name] == pytest.approx(expected, rel=1e-6)
            assert one["seeds"][name] == pytest.approx(expected, rel=1e-6)
        weights = np.array(one["weights"])
        rows = np.flatnonzero(weights)
        assert len(rows) == one["half"]["left"] < 64
        assert weights.sum() == 64
        expected = mmd(points, rows, kernel=kernel, coreset_weights=weights[rows] / 64)
        assert one["half"]["thinned"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_figures_of_the_page_are_what_it_computes():
    """Mean MMD over the seeds, for the settings in each link of the table."""
    text = (ROOT / "docs" / "explore.md").read_text()
    row = r"^\| <a .*index\.html\?(.*?)\">.*\| (.*) \| (.*) \|$"
    rows = re.findall(row, text, re.MULTILINE)
    assert len(rows) == 8
    links = json.dumps([html.unescape(row[0]) for row in rows])
    script = f"""
        const experiment = require('{FOLDER}/experiment.js');
        const {{ SETTINGS, SEEDS }} = experiment;
        console.log(JSON.stringify({links}.map((link) => {{
          const given = Object.fromEntries(new URLSearchParams(link));
          const {{ set, n, keep, order, points, ...rest }} = {{ ...SETTINGS, ...given }};
          const run = experiment.run({{ ...rest, size: Number(keep), delta: Number(rest.delta),
            points: experiment.pointSet(set, Number(n), points, order === "sorted") }});
          return experiment.overSeeds(run, SEEDS);
        }})))"""
    for (_, *stated), of_seeds in zip(rows, in_node(["-e", script]), strict=True):
        assert len(of_seeds) == 40
        means = [np.mean([one[name] for one in of_seeds]) for name in ("thinned", "random")]
        assert [f"{mean:.3f}" for mean in means] == stated


def in_browser(page, folder, query=""):
    """The document of a page after half a minute of the browser's own, virtual time."""
    browser = program(*BROWSERS)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
               "--window-size=1280,1700", "--virtual-time-budget=30000", "--dump-dom",
               f"--user-data-dir={folder / 'profile'}"]  # fmt: skip
    command = [browser, *options, page.as_uri() + query]
    home = os.environ | {"HOME": str(folder)}  # where it keeps what it remembers
    done = subprocess.run(command, capture_output=True, text=True, env=home, timeout=300)
    assert "</html>" in done.stdout, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def used(cases, tmp_path_factory):
    """What explore_check.js finds in the page, in a browser."""
    folder = tmp_path_factory.mktemp("browser")
    shutil.copytree(FOLDER, folder / "explore")
    given = json.dumps([case.given for case in cases])
    (folder / "explore" / "cases.js").write_text(f"const cases = {given};")
    for script in ("explore_choices.js", "explore_check.js"):
        shutil.copy(HELPERS / script, folder / "explore")
    added = ("cases.js", "explore_choices.js", "explore_check.js")
    tags = "".join(f'<script src="{script}"></script>\n' for script in added)
    page = folder / "explore" / "test.html"
    page.write_text((FOLDER / "index.html").read_text().replace("</body>", tags + "</body>"))
    document = in_browser(page, folder, "?set=normal&n=32&keep=16&seed=4")
    written = re.search(r'<pre id="found">(.*?)</pre>', document, re.DOTALL)
    assert written
    return json.loads(html.unescape(written.group(1)))


@pytest.mark.slow
def test_keeps_the_same_points_in_a_browser(cases, used):
    assert used["errors"] == []
    assert differing(cases, used["choices"]) == []


@pytest.mark.slow
def test_steps(used):
    """A run of 32 points to 16: sixteen pairs and a coin."""
    assert used["at"] == {
        "start": 0,
        "three steps": 3,
        "back": 2,
        "right arrow": 3,
        "left arrow": 2,
        "end of the bucket": 17,
        "home": 0,
        "end": 17,
        "slider": 5,
        "arrow in a slider": 5,
        "playing": 3,
        "paused": 3,
        "played again": 1,
        "reset": 0,
    }
    assert used["live"] == "off"
    assert re.fullmatch(
        r"U a = \S+ [≤>] α = \S+: the (first|second) point is kept\.", used["decision"]
    )
    assert all(re.fullmatch(r"16 points, MMD 0\.\d{3}", last) for last in used["last"])


@pytest.mark.slow
def test_programs_of_the_page_find_its_rows(used, capsys):
    """After each change of a setting, and after points were moved."""
    texts = used["programs"]
    assert len(set(texts.values())) == len(texts) == 11
    for name, text in texts.items():
        documents.run(text, {}, name)
        assert capsys.readouterr().out == "True\n", name
    before, dragged, moved = (
        [json.loads(row) for row in re.findall(r"^    (\[.*\]),$", texts[name], re.MULTILINE)]
        for name in ("ring", "dragged", "moved by a key")
    )
    assert len(before) == 32
    assert dragged == [[1.5, 0], *before[1:]]
    x, y = before[1]
    assert used["point"] == f"Point 2: {x:g}, {moved[1][1]:g}"
    assert moved == [dragged[0], [x, pytest.approx(y + 0.1, abs=1e-9)], *before[2:]]


@pytest.mark.slow
def test_settings(used):
    assert used["buckets"] == 64 + 16 + 4 + 1
    assert used["seeds"] == 2 * 40
    assert "set=line-mixture&order=sorted&n=256&keep=16&delta=0.01&seed=77" in used["link"]
    assert not used["linked"]  # its points were moved
    assert used["touches"] == [True, False]


@pytest.mark.slow
def test_fits_a_phone_and_takes_the_theme_of_its_page(used):
    page, window = used["widths"]
    assert page <= window == 390
    assert used["height"] >= used["scrolls"] > 800
    assert used["backgrounds"] == ["rgb(255, 255, 255)", "rgb(19, 20, 22)"]
    assert used["step"] == "30"


@pytest.mark.slow
def test_its_frame_gets_its_height(tmp_path):
    """The block of explore.md, as it stands in the built page."""
    text = (ROOT / "docs" / "explore.md").read_text()
    block = re.search(r"^```\{raw\} html\n(.*?)^```$", text, re.DOTALL | re.MULTILINE).group(1)
    shutil.copytree(FOLDER, tmp_path / "_static" / "explore")
    page = tmp_path / "explore.html"
    page.write_text(f"<!doctype html><body data-theme='dark'>{block}</body>")
    written = float(re.search(r"height: ([\d.]+)px", block).group(1))
    found = float(re.search(r"height: ([\d.]+)px", in_browser(page, tmp_path)).group(1))
    assert found != written
    assert 1000 < found < 2000


def test_loads_nothing_from_elsewhere():
    text = {path.name: path.read_text() for path in FOLDER.iterdir()}
    assert set(text) == {"index.html", "explore.css", *(f"{name}.js" for name in SCRIPTS)}
    addresses = {found for page in text.values() for found in re.findall(r"\w+://[^\"\s]+", page)}
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert re.findall(r'src="(\w+)\.js"', text["index.html"]) == list(SCRIPTS)
    assert all(len(page.splitlines()) <= 400 for page in text.values())


def luminance(colour):
    """Relative luminance of #rrggbb, as WCAG defines it."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read(theme):
    """Contrast of at least 4.5 on both backgrounds; of 3 for points and lines."""
    text = (FOLDER / "explore.css").read_text()
    block = re.findall(r"^:root.*?^}", text, re.MULTILINE | re.DOTALL)[theme]
    colours = dict(re.findall(r"--(\w+): (#\w{6});", block))
    assert len(colours) == 13
    needed = dict.fromkeys(("ink", "soft", "thinned", "random"), 4.5) | {"waiting": 3.0}
    for name, least in needed.items():
        for background in ("paper", "panel"):
            dark, light = sorted(luminance(colours[x]) for x in (name, background))
            assert (light + 0.05) / (dark + 0.05) >= least, (name, background)
