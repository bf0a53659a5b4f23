"""The algorithm on one page: kernel halving, KH-Compress, Thinformer and corrections.

    python -m docs.one_page

writes `docs/one_page.svg`, which the first page of the documentation shows, and
`docs/one_page.pdf`, a handout on A4. Run it in the root of a clone, with matplotlib for the
handout. Every choice in the picture is one that `reference/` makes. All lengths are in units of
which the page is 800 wide.
"""

import hashlib
import html
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from reference import landmarks
from reference.attention import exact_attention, select
from reference.compress import kh_compress, published_rounds
from reference.halving import kernel_halving
from reference.kernels import gaussian

HERE = Path(__file__).parent
WIDTH, HEIGHT = 800, 1131  # in the proportion of A4
LEFT, RIGHT = 40, 760
FONT = "DejaVu Sans, Verdana, sans-serif"  # both have the same widths
BLUE, RED, GREEN, GREY, PALE, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#777777", "#E4E4E4", "#111111",
)  # fmt: skip
LINE = 19.5  # from one line of text to the next


class Page:
    """What is drawn, in order: tuples of a kind, a list of points, and a style."""

    def __init__(self):
        self.shapes = []

    def line(self, points, color=BLACK, width=1.0, dashes=""):
        """Draw a line through points (n, 2)."""
        self.shapes.append(("line", np.round(points, 1), (color, width, dashes)))

    def box(self, x, y, width, height, fill="#FFFFFF", edge=GREY):
        """Draw a rectangle from its upper left corner."""
        corners = np.round([(x, y), (width, height)], 1)
        self.shapes.append(("box", corners, (fill, edge)))

    def dot(self, x, y, radius, fill, edge):
        """Draw a disc around its middle."""
        self.shapes.append(("dot", np.round([(x, y)], 1), (radius, fill, edge)))

    def text(self, x, y, words, size=13, color=BLACK, weight="normal", anchor="start"):
        """Write one line; y is its base line."""
        style = words, size, color, weight, anchor
        self.shapes.append(("text", np.round([(x, y)], 1), style))

    def lines(self, x, y, *texts, size=13):
        """Write lines of text below each other; returns the base line of the next."""
        for i, words in enumerate(texts):
            self.text(x, y + i * LINE, words, size)
        return y + len(texts) * LINE

    def arrow(self, start, end):
        """Draw an arrow."""
        start, end = np.array(start, float), np.array(end, float)
        along = (end - start) / np.linalg.norm(end - start)
        across = np.array([-along[1], along[0]])
        self.line([start, end], GREY, 1.5)
        self.line([end - 7 * along + 4 * across, end, end - 7 * along - 4 * across], GREY, 1.5)


def heading(page, y, number, words):
    """Draw a rule and a numbered heading; returns the first base line below it."""
    page.line([(LEFT, y), (RIGHT, y)], PALE, 1.5)
    page.text(LEFT, y + 22, str(number), 16, BLUE, "bold")
    page.text(LEFT + 22, y + 22, words, 16, BLACK, "bold")
    return y + 46


def halving(page, y):
    """Draw the eight points of the first notebook, a panel for each pair."""
    y = heading(page, y, 1, "Kernel halving, KH(δ): keep one point of each pair")
    y = page.lines(
        LEFT, y,
        "A pair's difference of bumps is fᵢ = k(x₂ᵢ, ·) − k(x₂ᵢ₊₁, ·). The walk ψᵢ = ψᵢ₋₁ ± fᵢ is the error so far.",
        "Keep the first point and add fᵢ, or swap: keep the second point and subtract fᵢ.",
        "Swap if and only if Uᵢ aᵢ ≤ αᵢ, where Uᵢ is uniform in [−1, 1). So P(swap) = ½ (1 + αᵢ / aᵢ).",
        "Inner product: αᵢ = ⟨ψᵢ₋₁, fᵢ⟩.   Threshold: aᵢ = bᵢ · max(b₀, …, bᵢ) · (½ + log(2S / δ)), bᵢ = ‖fᵢ‖.",
    )  # fmt: skip
    x = np.array([-1.0, 0.4, -0.3, 1.2, 2.0, -1.6, 0.1, 0.7])
    uniform = np.random.default_rng(4).uniform(-1, 1, size=4)
    kept, trace = kernel_halving(gaussian(x[:, None], x[:, None]), 0.5, uniform)
    z = np.linspace(-3.2, 3.2, 65)
    bumps, walk = gaussian(z[:, None], x[:, None]), np.zeros(z.size)
    wide, high, top = 168, 108, y - 6
    for i in range(4):
        left = LEFT + i * (wide + 16)
        across, middle = left + wide / 2, top + 50

        def place(at, height, across=across, middle=middle):
            return np.column_stack([across + at * 26, middle - height * 26])

        f = bumps[:, 2 * i] - bumps[:, 2 * i + 1]
        swapped = kept[i] % 2 == 1
        walk = walk - f if swapped else walk + f
        page.box(left, top, wide, high, edge=PALE)
        page.line(place(np.array([-3.2, 3.2]), np.zeros(2)), PALE)
        page.line(place(z, f), RED, 1.2, "4 3")
        page.line(place(z, walk), BLUE, 2)
        for j in range(2 * i + 2):
            (at,) = place(x[j : j + 1], np.array([-1.85]))
            newest = j >= 2 * i
            page.dot(*at, 4 if newest else 2.5, BLUE if j in kept else "#FFFFFF", BLUE)
        decision = f"U a = {uniform[i] * trace.a[i]:.2f}, α = {trace.alpha[i]:.2f}"
        said = (
            "the first pair is not swapped" if i == 0 else decision + (": swap" if swapped else "")
        )
        page.text(across, top + high + 16, said.replace("-", "−"), 11, anchor="middle")
    page.line([(LEFT + 6, top + 14), (LEFT + 26, top + 14)], RED, 1.2, "4 3")
    page.text(LEFT + 30, top + 18, "fᵢ", 12)
    page.line([(LEFT + 126, top + 14), (LEFT + 146, top + 14)], BLUE, 2)
    page.text(LEFT + 150, top + 18, "ψᵢ", 12)
    return page.lines(
        LEFT, top + high + 39,
        "Filled points are kept. The mean bump of this half is off by ψ / S, here with S = 8 points.",
        "With probability at least 1 − δ/2 no step fails: |αᵢ| ≤ aᵢ for all i. At the end a fair coin keeps",
        "this half or the other one, so the result is unbiased.",
    )  # fmt: skip


def tree(page, y):
    """Draw KH-Compress(0) of 64 points, a row for each round."""
    y = heading(
        page, y, 2, "KH-Compress(g): halve small buckets first; four halves make the next bucket"
    )
    rng = np.random.default_rng(2)
    points, rounds = rng.standard_normal((64, 2)), published_rounds(64, 0, 0.5)
    left, step, total = np.arange(64), (RIGHT - LEFT - 130) / 64, 0
    at_once = 64**2 + 32**2 + 16**2
    for pairs, buckets, delta in rounds:
        kept, _ = kh_compress(
            lambda p: gaussian(p, p), points[left], [(pairs, buckets, delta)],
            [rng.uniform(-1, 1, pairs)], [rng.random(buckets) < 0.5],
        )  # fmt: skip
        size, wide = 2 * pairs // buckets, 64 // buckets * step
        for b in range(buckets):
            page.box(LEFT + b * wide + 1, y - 14, wide - 2, 22, edge=GREY)
        for j, row in enumerate(left):
            page.dot(
                LEFT + (row + 0.5) * step, y - 3, 3.2, GREEN if j in kept else "#FFFFFF", GREEN
            )
        many = f"{buckets} buckets" if buckets > 1 else "1 bucket"
        page.text(RIGHT - 120, y + 2, f"{many} of {size}", 12)
        left, total, y = left[kept], total + buckets * size**2, y + 30
    for row in left:
        page.dot(LEFT + (row + 0.5) * step, y - 3, 3.2, GREEN, GREEN)
    page.text(RIGHT - 120, y + 2, f"{len(left)} of 64 are kept", 12)
    return page.lines(
        LEFT, y + 26,
        f"Here n = 64 and g = 0. It takes {total} kernel values. To halve 64, then 32, then 16 points takes {at_once}.",
        "In general nₒᵤₜ = 2ᵍ √n points are kept, by means of 4 nₒᵤₜ² (log₄ n − g) kernel values.",
        "Up to logarithms the error of a mean is 1 / nₒᵤₜ; of as many independent points it is 1 / √nₒᵤₜ.",
        "Compress++ runs this tree with adaptive thresholds, and halves its result further by KT-SPLIT. Then",
        "KT-SWAP replaces each chosen point in turn by the candidate that makes the discrepancy smallest.",
    )  # fmt: skip


def grid(page, x, y, weights, side, kept=()):
    """Draw a matrix of weights (T, S) in shades of grey, with marks under the columns kept."""
    darkest = weights.max()
    for t, row in enumerate(weights):
        for s, weight in enumerate(row):
            shade = round(255 - 205 * float(weight / darkest) ** 0.5)
            page.box(
                x + s * side, y + t * side, side, side, f"#{shade:02X}{shade:02X}{shade:02X}", PALE
            )
    for s in kept:
        page.dot(x + (s + 0.5) * side, y + len(weights) * side + 9, 4, BLUE, BLUE)


def thinformer(page, y):
    """Draw the attention of six queries to sixteen keys, and to the four that are kept."""
    y = heading(page, y, 3, "Thinformer: attention to the keys that are kept")
    rng = np.random.default_rng(5)
    query, key, value = (rng.standard_normal((n, 4)) for n in (6, 16, 4 * 4))
    rounds = published_rounds(16, 0, 0.5)
    draws = [rng.uniform(-1, 1, r[0]) for r in rounds], [rng.random(r[1]) < 0.5 for r in rounds]
    kept, _ = select(key, value, 0.5, SimpleNamespace(length=16, rounds=rounds), *draws)
    matrices = []
    for rows in (np.arange(16), kept):
        arrays = (a[None, :, None] for a in (query, key[rows], value[rows]))
        matrices.append(exact_attention(*arrays, 0.5)[1][0, 0])
    side, top = 13, y - 2
    grid(page, LEFT, top, matrices[0], side, kept)
    page.text(LEFT, top + 6 * side + 34, "T queries, S keys; marked: kept", 12)
    page.arrow((LEFT + 16 * side + 6, top + 39), (LEFT + 16 * side + 28, top + 39))
    grid(page, LEFT + 16 * side + 34, top, matrices[1], side, range(len(kept)))
    page.text(LEFT + 16 * side + 34, top + 6 * side + 34, "nₒᵤₜ keys", 12)
    end = page.lines(
        LEFT + 318, y + 8,
        "Exact: out(q) = Σ e(q, kⱼ) vⱼ / Σ e(q, kⱼ) over all S keys,",
        "where e(q, k) = exp(β ⟨q, k⟩). Darker: a larger weight.",
        "A point is a pair (k, v). KH-Compress thins these pairs",
        "under the kernel exp(β ⟨k, k′⟩) · (⟨v, v′⟩ + max ‖v‖²).",
        "Numerator and denominator are sums of functions in its",
        "space, so one subset serves every query. It takes T · nₒᵤₜ",
        "weights in place of T · S.",
    )  # fmt: skip
    return end


def groups(page, left, top):
    """Draw keys in the plane, their landmarks, and the mean keys of their groups."""
    rng = np.random.default_rng(1)
    key = 0.28 * rng.standard_normal((28, 2)) + rng.choice([-0.8, 0, 0.9], (28, 2))
    query = rng.standard_normal((12, 2))
    weights = exact_attention(*(a[None, :, None] for a in (query, key, key)), 1.0)[1][0, 0]
    h = landmarks.exponents(key, weights)
    chosen = landmarks.draw_landmarks(h, 7, 0.4)
    nearest = landmarks.nearest_landmarks(key, chosen)
    means, _, _ = landmarks.merge(key, h, np.ones((28, 1)), chosen)

    def place(points):
        return np.array([left + 135, top + 74]) + points * np.array([78, 46])

    page.box(left, top, 270, 148, edge=PALE)
    for j, s in enumerate(nearest):
        page.line(place(np.array([key[j], means[s]])), GREY, 0.8)
    for j, at in enumerate(place(key)):
        page.dot(*at, 4, RED if j in chosen else "#FFFFFF", RED)
    for at in place(means):
        for corner in np.array([[4, 4], [4, -4]]):
            page.line([at - corner, at + corner], BLUE, 2.2)
    page.dot(left + 10, top + 163, 4, RED, RED)
    page.text(left + 18, top + 167, "landmark", 12)
    page.dot(left + 94, top + 163, 4, "#FFFFFF", RED)
    page.text(left + 102, top + 167, "key", 12)
    page.line([(left + 143, top + 159), (left + 151, top + 167)], BLUE, 2.2)
    page.line([(left + 143, top + 167), (left + 151, top + 159)], BLUE, 2.2)
    page.text(left + 157, top + 167, "mean of its group", 12)


def corrections(page, y):
    """Draw landmarks with their groups, and say how values and masses are fitted."""
    y = heading(page, y, 4, "Corrections: landmarks with fitted values zₛ and masses mₛ")
    groups(page, LEFT, y - 6)
    return page.lines(
        LEFT + 292, y + 4,
        "out(q) = Σ e(q, kₛ) zₛ / Σ e(q, kₛ) mₛ, over few landmarks.",
        "“queries”: the exact outputs of some queries are computed.",
        "Landmarks are drawn; keys that these queries attend to are",
        "likely. Every key joins a landmark near to it. The landmark",
        "gets the mean key of its group, the sum of the values, and",
        "the number of keys as mass. Then a ridge regression moves",
        "zₛ and mₛ so that the sampled queries get their outputs.",
        "“nystrom”: landmarks are pivots of a random Cholesky",
        "factor of exp ⟨x, x′⟩, on scaled keys x. Nystrom's formula",
        "gives their values and masses, for the worst of all queries.",
    )  # fmt: skip


def draw():
    """Return the page."""
    page = Page()
    page.box(0, 0, WIDTH, HEIGHT, edge="#FFFFFF")
    page.text(LEFT, 44, "Thinning on one page", 24, weight="bold")
    page.text(
        RIGHT, 44, "a small subset stands for all points, or for all keys", 13, GREY, anchor="end"
    )
    y = halving(page, 62)
    y = tree(page, y)
    y = thinformer(page, y)
    y = corrections(page, y)
    page.line([(LEFT, HEIGHT - 42), (RIGHT, HEIGHT - 42)], PALE, 1.5)
    papers = (
        "arXiv 2502.12063 (1 to 3), 2105.05842 and 2111.07941 (Compress++), 2602.10056 (nystrom)"
    )
    page.text(LEFT, HEIGHT - 24, f"thinformer; papers: {papers}", 11, GREY)
    return page


def to_svg(page):
    """Return the page as text of an SVG file, with text as text."""
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="{FONT}" stroke-linejoin="round">',
        "<title>Thinning on one page</title>",
    ]
    for kind, points, style in page.shapes:
        (x, y), *others = [tuple(f"{number:g}" for number in point) for point in points]
        if kind == "line":
            color, width, dashes = style
            path = " ".join(f"{a},{b}" for a, b in [(x, y), *others])
            dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
            out.append(
                f'<polyline points="{path}" fill="none" stroke="{color}" '
                f'stroke-width="{width}"{dashed}/>'
            )
        elif kind == "box":
            (w, h), (fill, edge) = others[0], style
            out.append(
                f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="{fill}" stroke="{edge}"/>'
            )
        elif kind == "dot":
            radius, fill, edge = style
            out.append(f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{fill}" stroke="{edge}"/>')
        else:
            words, size, color, weight, anchor = style
            out.append(
                f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" font-weight="{weight}" '
                f'text-anchor="{anchor}">{html.escape(words, quote=False)}</text>'
            )
    return "\n".join([*out, "</svg>", ""])


def digest(svg):
    """Return what the handout says it was made from."""
    return "one_page.svg " + hashlib.sha256(svg.encode()).hexdigest()


def write_pdf(page, path, keywords):
    """Write the page on A4."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle, Rectangle

    unit = 210 / 25.4 * 72 / WIDTH  # points
    figure = Figure(figsize=(WIDTH * unit / 72, HEIGHT * unit / 72))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    axes.set_axis_off()
    for order, (kind, points, style) in enumerate(page.shapes):
        if kind == "line":
            color, width, dashes = style
            pattern = (0, [float(d) / width for d in dashes.split()]) if dashes else "-"
            axes.plot(*points.T, color=color, lw=width * unit, ls=pattern, zorder=order)
        elif kind == "box":
            fill, edge = style
            axes.add_patch(
                Rectangle(points[0], *points[1], fc=fill, ec=edge, lw=unit, zorder=order)
            )
        elif kind == "dot":
            radius, fill, edge = style
            axes.add_patch(Circle(points[0], radius, fc=fill, ec=edge, lw=unit, zorder=order))
        else:
            words, size, color, weight, anchor = style
            side = {"start": "left", "middle": "center", "end": "right"}[anchor]
            axes.text(*points[0], words, size=size * unit, color=color, weight=weight, ha=side,
                      va="baseline", zorder=order, parse_math=False)  # fmt: skip
    with mpl.rc_context({"pdf.fonttype": 42, "font.family": "DejaVu Sans"}):
        figure.savefig(
            path,
            metadata={"Title": "Thinning on one page", "Keywords": keywords, "CreationDate": None},
        )


def main():
    """Write both files beside this one."""
    page = draw()
    svg = to_svg(page)
    (HERE / "one_page.svg").write_text(svg, encoding="utf-8")
    write_pdf(page, HERE / "one_page.pdf", digest(svg))


if __name__ == "__main__":
    main()
