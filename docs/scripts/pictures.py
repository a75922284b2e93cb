"""The two drawings of `docs/how-it-works.md`: `python -m docs.scripts.pictures` writes them to docs/pictures."""

from __future__ import annotations

from html import escape

from docs.scripts.pages import DOCS

STYLE = (
    "text{font:14px system-ui,sans-serif;fill:#1b1f24}.m{font:13px ui-monospace,monospace}"
    ".h{font-weight:600}.s{fill:#57606a}.box{fill:#eef1ff;stroke:#5c6bc0}.state{fill:#fff3e0;stroke:#ef6c00}"
    ".free{fill:#e8f5e9;stroke:#2e7d32}.e{stroke:#57606a;stroke-width:1.5;fill:none;marker-end:url(#a)}"
    "rect.p{fill:#fff}"
)
HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"><style>{style}</style>'
    '<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
    'orient="auto-start-reverse"><path d="M0 0 10 5 0 10z" fill="#57606a"/></marker></defs>'
    '<rect class="p" width="{width}" height="{height}" rx="8"/>'
)
Box = tuple[str, str, str]
"""(class, heading, formula)."""


def drawing(loop: tuple[Box, Box, Box], after: tuple[Box, Box, Box]) -> str:
    """The step of a loop on the left, its state reading itself; on the right what becomes of its three parts."""
    parts = [HEAD.format(width=860, height=330, style=STYLE)]
    parts.append(_text(200, 32, "one step of the loop, T times", "h"))
    parts.append(_text(650, 32, "after linrec, once for all steps", "h"))
    for k, (left, right) in enumerate(zip(loop, after, strict=True)):
        y = 56 + 90 * k
        parts += [_box(60, y, 280, left), _box(500, y, 300, right)]
        parts.append(f'<path class="e" d="M340 {y + 30}H496"/>')
        if k:
            parts += [f'<path class="e" d="M{x} {y - 30}v26"/>' for x in (200, 650)]
    parts.append('<path class="e" d="M60 188h-24v-24h24" transform="translate(0 0)"/>')
    parts.append(_text(22, 180, "t-1", "s"))
    parts.append("</svg>\n")
    return "".join(parts)


def _text(x: int, y: int, text: str, kind: str) -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="middle">{escape(text)}</text>'


def _box(x: int, y: int, width: int, box: Box) -> str:
    kind, heading, formula = box
    middle = x + width // 2
    rectangle = f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="60" rx="6"/>'
    return rectangle + _text(middle, y + 25, heading, "h") + _text(middle, y + 46, formula, "m")


LMU = drawing(
    (
        ("free", "encoder: reads no state", "u = f1(U x[t] + b)"),
        ("state", "memory: reads itself", "m = A m + B u"),
        ("free", "readout: nobody reads it", "o = f2(W m + V x[t])"),
    ),
    (
        ("free", "one product over all steps", "u = f1(U x + b)"),
        ("box", "dense, time-invariant: FFT or powers", "m = [B, AB, A²B, ...] * u"),
        ("free", "one product over all steps", "o = f2(W m + V x)"),
    ),
)
MAMBA = drawing(
    (
        ("free", "projections: read no state", "dt, B, C = P x[t]"),
        ("state", "state: reads itself", "h = exp(dt A) h + dt B x[t]"),
        ("free", "readout: nobody reads it", "y = C h + D x[t]"),
    ),
    (
        ("free", "products over all steps", "dt, B, C = P x"),
        ("box", "diagonal, time-varying: one scan", "h = scan(exp(dt A), dt B x)"),
        ("free", "one product over all steps", "y = C h + D x"),
    ),
)


def main() -> None:
    folder = DOCS / "pictures"
    folder.mkdir(exist_ok=True)
    for name, text in (("lmu", LMU), ("mamba", MAMBA)):
        (folder / f"{name}.svg").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
