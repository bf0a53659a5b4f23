"""The documentation builds without a warning, and the pages need nothing from the network."""

import html.parser
import importlib
import json
import re
import subprocess
import sys
import urllib.parse

import pytest
from checkout import ROOT
from programs import BROWSERS, program

pytest.importorskip("myst_nb")
PUBLIC = (
    "thinformer", "thinformer.dask", "thinformer.kernels", "thinformer.torch",
    "thinformer.torch.distributed",
)  # fmt: skip
# what a browser loads by itself, and with which attribute
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src",
          "audio": "src", "video": "src", "embed": "src", "object": "data", "image": "href",
          "use": "href"}  # fmt: skip
# visits pages in a frame, and counts formulas, formulas without an area, and pictures without one
VISITS = """<!doctype html><body><script>
async function visit(page) {
  const frame = document.createElement("iframe");
  Object.assign(frame, { width: 1280, height: 2000, src: page });
  const loaded = new Promise(done => { frame.onload = done; });
  document.body.append(frame);
  await loaded;
  const there = frame.contentDocument;
  for (const details of there.querySelectorAll("details")) details.open = true;
  const pictures = [...there.images];
  for (const picture of pictures) {
    picture.loading = "eager";
    if (!picture.complete) await new Promise(done => { picture.onload = picture.onerror = done; });
  }
  const empty = box => !(box.width > 2 && box.height > 4);
  const formulas = [...there.querySelectorAll("math")];
  const counts = [
    formulas.length,
    formulas.filter(formula => empty(formula.getBoundingClientRect())).length,
    pictures.filter(picture => !picture.naturalWidth).length,
  ];
  frame.remove();
  return counts;
}
(async () => {
  const found = [];
  for (const page of PAGES) found.push(await visit(page));
  document.body.innerHTML = `<pre>${JSON.stringify(found)}</pre>`;
})();
</script>"""
TEX = re.compile(r"\\[A-Za-z({\[]|\$[^$\s]")


class Page(html.parser.HTMLParser):
    """What a page loads, where its links lead, its formulas, and its words outside of code."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.links, self.formulas, self.words, self.inside = [], [], 0, "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag in LOADED and attributes.get(LOADED[tag]):
            self.loaded.append(attributes[LOADED[tag]])
        self.loaded += [
            entry.split()[0] for entry in attributes.get("srcset", "").split(",") if entry
        ]
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        self.formulas += tag == "math"
        if tag in ("code", "pre", "script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.words += data


def remote(addresses):
    """Those that lead out of the site."""
    return [address for address in addresses if re.match(r"(?!data:)(\w+:|//)", address)]


def absent(page, addresses):
    """Those of a page's relative addresses that are no files of the site."""
    for address in addresses:
        path = urllib.parse.unquote(urllib.parse.urlsplit(address).path)
        if not re.match(r"\w+:|//", address) and path and not (page.parent / path).exists():
            yield address


def formulas(text):
    """How many formulas Markdown has."""
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    reader = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin)
    tokens = reader.parse(text)
    inner = [child for token in tokens for child in token.children or ()]
    return sum(token.type.startswith("math_") for token in [*tokens, *inner])


def markdown(path):
    """The Markdown of a page or of a notebook."""
    if path.suffix == ".md":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-P", "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html",
               str(ROOT / "docs"), str(folder)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """Each page, read."""
    found = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    assert len(found) > 40
    return found


@pytest.mark.slow
def test_what_is_public_has_a_place(site):
    inventory = pytest.importorskip("sphinx.util.inventory")
    content = (site / "objects.inv").read_bytes()
    found = inventory.InventoryFile.loads(content, uri="")
    there = {
        entry for kind, entries in found.data.items() if kind.startswith("py:") for entry in entries
    }
    for module in PUBLIC:
        for public in importlib.import_module(module).__all__:
            assert f"{module}.{public}" in there
    assert {
        "thinformer.torch.transformers.register",
        "thinformer.torch.transformers.configure",
    } <= there
    benchmarks = (site / "benchmarks.html").read_text()
    assert benchmarks.count("<table") == 11
    assert "compress++" in benchmarks
    assert (site / "where-it-pays.html").read_text().count("<table") == 4


@pytest.mark.slow
def test_nothing_comes_from_the_network(site, pages):
    """No script, style, font or picture, so the site reads as well without one."""
    assert {path.name: remote(page.loaded) for path, page in pages.items()} == {
        path.name: [] for path in pages
    }
    styles = [path.read_text() for path in site.rglob("*.css")]
    styles += [path.read_text() for path in pages]
    assert len(styles) > 50
    outside = re.compile(r"(?:@import\s*|url\()\s*[\"']?(?:https?:)?//")
    assert [style for style in styles if outside.search(style)] == []


@pytest.mark.slow
def test_what_pages_load_and_link_to_is_there(pages):
    for path, page in pages.items():
        assert list(absent(path, page.loaded + page.links)) == [], path


@pytest.mark.slow
def test_every_formula_is_mathml(site, pages):
    """As many as the sources have, and no TeX is left."""
    for path, page in pages.items():
        assert TEX.findall(page.words) == [], path
    sources = [*(ROOT / "notebooks").glob("*.ipynb")]
    sources += [ROOT / "docs" / f"{name}.md" for name in ("explanation", "map", "migration")]
    counts = {}
    for source in sources:
        folder = site / "notebooks" if source.suffix == ".ipynb" else site
        counts[source.stem] = formulas(markdown(source))
        assert pages[folder / f"{source.stem}.html"].formulas == counts[source.stem], source
    assert counts["01_kernel_halving_by_hand"] > 20
    assert pages[site / "reference" / "thinformer.html"].formulas > 20


def visited(paths, folder):
    """What a browser without a network counts on each page."""
    harness = folder / "visits.html"
    harness.write_text(VISITS.replace("PAGES", json.dumps([path.as_uri() for path in paths])))
    command = [program(*BROWSERS), "--headless", "--no-sandbox", "--disable-gpu",
               "--allow-file-access-from-files", "--host-resolver-rules=MAP * ~NOTFOUND",
               f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=600000",
               "--dump-dom", harness.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return json.loads(re.search(r"<pre>(\[.*)</pre>", done.stdout).group(1))


@pytest.mark.slow
def test_a_browser_shows_every_formula_and_picture(pages, tmp_path):
    for (path, page), (formulas, empty, broken) in zip(
        pages.items(), visited(pages, tmp_path), strict=True
    ):
        assert formulas >= page.formulas, path
        assert (empty, broken) == (0, 0), path


@pytest.mark.slow
def test_a_browser_finds_what_is_not_there(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<math><mi>x</mi></math><math></math><img src="none.png">')
    assert visited([page], tmp_path) == [[2, 1, 1]]


def test_what_a_page_must_not_have_is_seen(tmp_path):
    """The tests above fail for a script of another host, a picture that is not there, raw TeX."""
    page = Page(
        '<script src="https://cdn.example/x.js"></script><img src="none.png">'
        r"<p>\(\alpha\)</p><code>\alpha</code><math></math>"
    )
    assert remote(page.loaded) == ["https://cdn.example/x.js"]
    assert list(absent(tmp_path / "page.html", page.loaded)) == ["none.png"]
    assert TEX.findall(page.words)
    assert page.formulas == 1
    assert TEX.findall(Page(r"<pre>\d+ $HOME</pre>").words) == []


@pytest.fixture
def mathml(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "extensions")
    return importlib.import_module("mathml").mathml


def flat(found):
    """MathML on one line."""
    return re.sub(r"\s*\n\s*", "", found)


def test_formulas(mathml):
    assert "<mfrac><mn>1</mn><mn>2</mn></mfrac>" in flat(mathml(r"\frac{1}{2}"))
    assert "<msub><mi>a</mi><mi>i</mi></msub>" in flat(mathml("a_i"))
    assert 'display="block"' in mathml("a_i", block=True)
    for short, whole in (
        (r"\tfrac12 (1 + x)", r"\tfrac{1}{2} (1 + x)"),
        (r"\big(x\Big) \big/ y", r"\bigl(x\Bigr) / y"),
        (r"x_1, \dots, x_n", r"x_1, \ldots, x_n"),
        (r"\log_4 n + \log\tfrac{2S}{\delta}", r"\log_4\,n + \log\,\tfrac{2S}{\delta}"),
    ):
        assert mathml(short) == mathml(whole)
    # as TeX: only \left and \right make delimiters as high as what is between them
    assert mathml(r"\|x\|_2").count('<mo stretchy="false">‖</mo>') == 2
    assert "stretchy" not in mathml(r"\left\|\frac{a}{b}\right\|")
    both = mathml(r"\left\|\frac{a}{b}\right\| + \langle a, b\rangle")
    assert re.findall(r"<mo(.*?)>[‖⟨⟩]", both) == ["", ""] + 2 * [' stretchy="false"']
    for unclear in (r"x^10", r"\sqrt 12", "a_12"):
        with pytest.raises(ValueError, match="need braces"):
            mathml(unclear)
    with pytest.raises(ValueError, match=r"no MathML for the formula.*Unknown LaTeX command"):
        mathml(r"\nonsense{x}")
