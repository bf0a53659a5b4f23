"""Lines of the quality benchmark as tables, as a file and as a figure."""

import json

import pytest

from thinformer.measuring import quality_report
from thinformer.measuring.quality import BEST, EXACT, NYSTROM, PLAIN, Line


def line(method, kept, error, seconds, ratio=None):
    return Line("text", method, kept, 512, error, 0.01, seconds, ratio, {"layer0": error})


LINES = [
    line(EXACT, 512, 0.0, 0.01),
    line("evenly spaced", 16, 0.8, 0.001), line(PLAIN, 16, 0.6, 0.002, 1.0),
    line(NYSTROM, 16, 0.5, 0.0005, 0.25), line(BEST, 16, 0.1, None),
    line("evenly spaced", 64, 0.2, 0.004), line(NYSTROM, 64, 0.1, 0.02),
]  # fmt: skip


def test_tables():
    assert quality_report.format_lines(LINES).split("\n") == [
        "text: 512 keys, 1 layers; exact attention 10.0 ms",
        "  16 of 512 keys                      error                    time   ratio",
        "  evenly spaced                      0.8000 +- 0.0100       1.00 ms       -",
        "  Thinformer                         0.6000 +- 0.0100       2.00 ms    1.00",
        '  Thinformer, correction="nystrom"   0.5000 +- 0.0100       0.50 ms    0.25',
        "  best rank                          0.1000",
        "  64 of 512 keys                      error                    time   ratio",
        "  evenly spaced                      0.2000 +- 0.0100       4.00 ms       -",
        '  Thinformer, correction="nystrom"   0.1000 +- 0.0100      20.00 ms       -',
    ]
    assert quality_report.format_equal_time(LINES).split("\n") == [
        "text: error at equal time, divided by that of",
        "  Thinformer                         evenly  WildCat",
        "  16 keys                  2.00 ms     1.50    >1.20",
        '  Thinformer, correction="nystrom"   evenly  WildCat',
        "  16 keys                  0.50 ms    <0.62        -",
        "  64 keys                 20.00 ms    exact        -",
    ]


def test_stored_figures(tmp_path):
    quality_report.save([LINES, LINES], 5, {"processor": "x"}, tmp_path / "x.json")
    stored = json.loads((tmp_path / "x.json").read_text())
    assert (stored["machine"], stored["rounds"]) == ({"processor": "x"}, 5)
    assert [Line(**each) for each in stored["lines"]] == [*LINES, *LINES]
    assert stored["equal_time"][:2] == [
        {"input": "text", "method": "evenly spaced", "kept": 16, "other": PLAIN,
         "ratio": pytest.approx(0.8 / 0.6), "bound": "<"},
        {"input": "text", "method": "evenly spaced", "kept": 16, "other": NYSTROM,
         "ratio": pytest.approx(1.6), "bound": ">"},
    ]  # fmt: skip
    assert len(stored["equal_time"]) == 2 * (4 + 2 + 4)


@pytest.mark.slow
def test_figure(tmp_path, monkeypatch):
    """Two panels an input, of which the upper has errors at equal time, with hollow bounds."""
    from matplotlib.figure import Figure

    drawn = []
    real = Figure.savefig

    def keep(figure, *arguments, **options):
        drawn.append(figure)
        return real(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    quality_report.plot([LINES] * 5, tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text().count("evenly spaced keys at equal time") == 2
    visible = [axes for axes in drawn[0].axes if axes.get_visible()]
    assert len(visible) == 10
    above = visible[0]
    points = [each for each in above.lines if each.get_marker() not in ("None", "")]
    marks = {tuple(each.get_xydata()[0].round(3)): each.get_markerfacecolor() for each in points}
    assert marks == {(2.0, 1.5): "#0072B2", (0.5, 0.625): "none"}
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == ["evenly spaced", PLAIN, NYSTROM, EXACT]
