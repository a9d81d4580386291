"""Bar charts as SVG, written by hand: one bar per server, with its spread."""

from __future__ import annotations

from xml.sax.saxutils import escape

from benchmarks.campaign import Outcome
from benchmarks.servers import OURS

WIDTH = 720
LABELS = 110
VALUES = 90
BAR = 22
GAP = 12
TOP = 44
STYLE = (
    "text{font:13px sans-serif;fill:#222}.title{font-weight:bold}.value{fill:#444}"
    ".ours{fill:#2b6cb0}.peer{fill:#a0aec0}.spread{stroke:#222;stroke-width:1.5}"
)


def bar_chart(outcome: Outcome) -> str:
    """One measure as a chart; a line over each bar goes from the lowest to the highest sample.

    :param outcome: the figures
    """
    measure = outcome.measure
    title = f"{measure.title}, {measure.unit}, TLS {outcome.tls} (lower is better)"
    # A server may have shrunk while its connections were opened: a bar has no negative length.
    longest = max((series.most for series in outcome.series.values()), default=0)
    scale = (WIDTH - LABELS - VALUES) / longest if longest > 0 else 0
    parts = [f'<text class="title" x="8" y="24">{escape(title)}</text>']
    for place, (name, series) in enumerate(outcome.series.items()):
        y = TOP + place * (BAR + GAP)
        middle = y + BAR / 2
        length, low, high = (
            max(0.0, value * scale) for value in (series.median, series.least, series.most)
        )
        kind = "ours" if name == OURS else "peer"
        parts += [
            f'<text x="8" y="{middle + 5:.1f}">{escape(name)}</text>',
            f'<rect class="{kind}" x="{LABELS}" y="{y}" width="{length:.1f}" height="{BAR}"/>',
            f'<line class="spread" x1="{LABELS + low:.1f}" x2="{LABELS + high:.1f}" '
            f'y1="{middle:.1f}" y2="{middle:.1f}"/>',
            f'<text class="value" x="{LABELS + high + 8:.1f}" y="{middle + 5:.1f}">'
            f"{measure.shown(series.median)}</text>",
        ]
    height = TOP + len(outcome.series) * (BAR + GAP)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
            *parts,
            "</svg>\n",
        ]
    )
