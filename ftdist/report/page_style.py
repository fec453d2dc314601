"""The style of the report's page, for light and dark screens, phones and paper."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #566070; --paper: #fff; --box: #f4f6f9; --edge: #cfd6df;
  --accent: #0b62a8; --good: #12703c; --c0: #0b62a8; --c1: #b8500a; --c2: #12703c; --c3: #8e3f86; --c4: #6b5900;
  --c5: #4a4f57; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #a4adba; --paper: #14181e; --box: #1e242c;
  --edge: #3a434f; --accent: #6db8f2; --good: #63d08f; --c0: #6db8f2; --c1: #ff9d5c; --c2: #63d08f; --c3: #e3a1dc;
  --c4: #e6d55a; --c5: #c3c8cf; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 62rem; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid var(--edge); }
h3 { font-size: 1rem; margin: .4rem 0; }
a { color: var(--accent); }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.numbers div { background: var(--box); border-radius: 8px; padding: .6rem .8rem; }
.numbers dt { color: var(--soft); font-size: .85rem; }
.numbers dd { margin: 0; font-size: 1.25rem; font-weight: 600; }
.numbers small { display: block; font-size: .8rem; font-weight: 400; color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1.2rem; }
figure { margin: 0; max-width: 34rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr)); gap: .6rem; margin: 0; }
.pair div, .tokens, pre { background: var(--box); border-radius: 8px; padding: .6rem .8rem; }
.pair dt { color: var(--soft); font-size: .85rem; }
.pair dd, .tokens { margin: 0; white-space: pre-wrap; }
.tokens, pre, code { font: 13px/1.6 ui-monospace, monospace; }
.tokens { color: var(--soft); }
.tokens mark { color: var(--good); background: none; font-weight: 600; text-decoration: underline; }
pre { white-space: pre-wrap; margin: .6rem 0; }
article { margin: 1.2rem 0; }
.wrap { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--edge); }
td { overflow-wrap: break-word; max-width: 26rem; }
.short { white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; }
summary { cursor: pointer; color: var(--accent); }
svg { width: 100%; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .name { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
svg .on { fill: #111; font-weight: 600; }
.grid { stroke: var(--edge); fill: none; }
.axis { stroke: var(--soft); fill: none; }
.line, .bar { fill: none; stroke-width: 2; stroke-linejoin: round; }
.bar { stroke-width: 1.5; }
.mark { stroke-width: 2; fill-opacity: .9; }
.s0 { stroke: var(--c0); } .mark.s0 { fill: var(--c0); }
.s1 { stroke: var(--c1); } .mark.s1 { fill: var(--c1); } .line.s1 { stroke-dasharray: 7 3; }
.s2 { stroke: var(--c2); } .mark.s2 { fill: var(--c2); } .line.s2 { stroke-dasharray: 2 3; }
.s3 { stroke: var(--c3); } .mark.s3 { fill: var(--c3); } .line.s3 { stroke-dasharray: 9 3 2 3; }
.s4 { stroke: var(--c4); } .mark.s4 { fill: none; } .line.s4 { stroke-dasharray: 12 4; }
.s5 { stroke: var(--c5); } .mark.s5 { fill: var(--c5); } .line.s5 { stroke-dasharray: 4 2 1 2; }
.lead { stroke: var(--soft); fill: none; }
.line.thin { stroke-width: 1; stroke-dasharray: none; }
.part { stroke: var(--paper); }
.f0 { fill: #56b4e9; } .f1 { fill: #e69f00; } .f2 { fill: #2bb58a; } .f3 { fill: #f0e442; } .f4 { fill: #d7935f; }
.f5 { fill: #d493bd; } .f6 { fill: #b4b9c0; } .f7 { fill: #9d9df0; }
.heat { fill: var(--c0); }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --paper: #fff; --box: #f4f4f4; --edge: #bbb; --accent: #000;
    --good: #12703c; --c0: #0b62a8; --c1: #b8500a; --c2: #12703c; --c3: #8e3f86; --c4: #6b5900; --c5: #4a4f57; }
  body { font-size: 11pt; max-width: none; padding: 0; }
  h2 { break-after: avoid; } figure, .pair, tr { break-inside: avoid; } .wrap { overflow: visible; }
  details::details-content { content-visibility: visible; } summary { list-style: none; color: var(--soft); }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
""".strip()
