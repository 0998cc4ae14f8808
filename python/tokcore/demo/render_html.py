"""A scored text as one self-contained HTML page, coloured by entropy, for light and dark screens."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from pathlib import Path

from tokcore.demo.score import ScoredText
from tokcore.demo.theme import DARK, LIGHT, Theme, ramp_color

RAMP_STEPS = 16  # colour classes; more cannot be told apart
MARKED_SHARE = 0.02  # of the tokens carry the mark of the highest entropies
LISTED = 12  # of them are listed above the text


@dataclass(frozen=True)
class EntropyScale:
    """Entropies in nats of the weakest and of the strongest colour; beyond them the colour stays."""

    low: float
    high: float

    def position(self, entropy: float) -> float:
        """Where ``entropy`` lies on the ramp, in [0, 1]; NaN counts as high, for it should be seen."""
        if not math.isfinite(entropy):
            return 0.0 if entropy == -math.inf else 1.0
        return min(1.0, max(0.0, (entropy - self.low) / (self.high - self.low)))


def entropy_scale(scored: ScoredText) -> EntropyScale:
    """From the 2nd to the 98th percentile, so that a few outliers do not pale the rest."""
    values = scored.entropy[scored.entropy.isfinite()].sort().values
    last = values.numel() - 1
    low, high = (values[round(share * last)].item() for share in (0.02, 0.98)) if last >= 0 else (0.0, 1.0)
    return EntropyScale(low, max(high, low + 1e-6))


def marked_count(scored: ScoredText) -> int:
    """How many tokens are marked."""
    return max(1, math.ceil(MARKED_SHARE * len(scored.texts)))


def write_html(scored: ScoredText, path: Path) -> None:
    """Write the page: a summary, a legend, links to the highest-entropy tokens, the text with a tooltip per token."""
    scale = entropy_scale(scored)
    marked = scored.highest_entropy(marked_count(scored))
    marked_set = frozenset(marked)
    tokens = "".join(_token(scored, position, scale, position in marked_set) for position in range(len(scored.texts)))
    path.write_text(
        f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(scored.name)} by token entropy</title>
<style>{_style()}</style>
</head>
<body>
<main>
<h1>{html.escape(scored.name)}, token by token</h1>
<p class="summary">{len(scored.texts)} tokens the model never saw in training · loss {scored.loss:.3f} nats per token ·
{scored.bits_per_byte:.3f} bits per byte · mean entropy {scored.mean_entropy:.3f} nats</p>
<div class="legend">
<span>≤ {scale.low:.1f} nats</span><span class="ramp">{_ramp()}</span><span>≥ {scale.high:.1f} nats, undecided</span>
<span class="key"><b class="h">token</b> highest {MARKED_SHARE:.0%} of entropies</span></div>
<p class="summary">The colour is the entropy of the model's distribution <em>before</em> it sees the token.
Point at a token for its numbers.</p>
<h2>Highest entropy</h2>
<ol class="top">{"".join(_listed(scored, position) for position in marked[:LISTED])}</ol>
<pre>{tokens}</pre>
</main>
</body>
</html>
""",
        encoding="utf-8",
        errors="replace",  # a lone surrogate cannot be written
    )


def _token(scored: ScoredText, position: int, scale: EntropyScale, marked: bool) -> str:
    text = scored.texts[position]
    if not text:
        return ""
    step = min(RAMP_STEPS - 1, int(scale.position(scored.entropy[position].item()) * RAMP_STEPS))
    tag, extra = ("b", f' class="h e{step}" id="t{position}"') if marked else ("i", f' class="e{step}"')
    return f'<{tag}{extra} title="{html.escape(token_note(scored, position))}">{html.escape(text)}</{tag}>'


def token_note(scored: ScoredText, position: int) -> str:
    """Entropy, probability and alternatives of a token, in three short lines."""
    probability = math.exp(scored.logprob[position].item())
    row = zip(scored.topk_texts[position], scored.topk_logprob[position].tolist(), strict=True)
    expected = ", ".join(f"{text!r} {math.exp(value):.1%}" for text, value in row)
    entropy, text = scored.entropy[position].item(), scored.texts[position]
    return f"entropy {entropy:.2f} nats\nprobability of {text!r}: {probability:.2%}\nexpected: {expected}"


def _listed(scored: ScoredText, position: int) -> str:
    line = "".join(scored.texts[:position]).count("\n") + 1
    expected = ", ".join(repr(text) for text in scored.topk_texts[position][:3])
    return (
        f'<li><a href="#t{position}"><code>{html.escape(repr(scored.texts[position]))}</code></a> '
        f"{scored.entropy[position].item():.2f} nats, line {line}; expected {html.escape(expected)}</li>"
    )


def _ramp() -> str:
    return "".join(f'<i class="e{step}"></i>' for step in range(RAMP_STEPS))


def _variables(theme: Theme) -> str:
    colors = {"page": theme.page, "ink": theme.ink, "muted": theme.muted, "grid": theme.grid, "mark": theme.mark}
    colors |= {f"e{step}": ramp_color(theme, step / (RAMP_STEPS - 1)) for step in range(RAMP_STEPS)}
    return "".join(f"--{name}:{color};" for name, color in colors.items())


def _style() -> str:
    steps = "".join(f".e{step}{{background:var(--e{step})}}" for step in range(RAMP_STEPS))
    return f"""
:root{{color-scheme:light dark;{_variables(LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}
body{{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}}
main{{max-width:62rem;margin:0 auto;padding:2rem 1rem 4rem}}
h1{{font-size:1.5rem;margin:0 0 .25rem}}h2{{font-size:1.05rem;margin:1.5rem 0 .25rem}}
.summary{{color:var(--muted);margin:.25rem 0}}
.legend{{display:flex;flex-wrap:wrap;gap:.6rem;align-items:center;margin:.75rem 0;color:var(--muted)}}
.ramp{{display:inline-flex;border:1px solid var(--grid)}}.ramp i{{width:.9rem;height:1rem}}
.key{{margin-left:1rem}}
pre{{font:13px/1.65 ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;overflow-x:auto;
border:1px solid var(--grid);border-radius:6px;padding:1rem}}
i,b{{font-style:normal;font-weight:inherit}}pre i:hover,pre b:hover{{outline:1px solid var(--ink)}}
.h{{box-shadow:0 0 0 1.5px var(--mark);border-radius:2px;font-weight:700}}
.h:target{{outline:3px solid var(--mark)}}
.top{{columns:2 24rem;padding-left:1.5rem;margin:.25rem 0 1rem}}.top a{{color:var(--mark);text-decoration:none}}
{steps}
"""
