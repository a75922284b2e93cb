"""The style sheet of the HTML report, for light and dark screens and for paper."""

STYLE = """
:root{--ink:#1b2330;--quiet:#667085;--paper:#fff;--card:#f7f8fa;--line:#dfe3ea;--done:#1a7f4b;--done-soft:#dff3e7;
--stays:#9a6700;--stays-soft:#fdf1d0;--solved:#5b4bc4;--solved-soft:#e8e5fb;--bar:#9aa4b5}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ef;--quiet:#9aa4b5;--paper:#14181f;--card:#1c222c;--line:#323a48;
--done:#5fd39a;--done-soft:#173a2a;--stays:#f0c14b;--stays-soft:#40330f;--solved:#b3a8ff;--solved-soft:#2b2752;
--bar:#5a6579}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,"Segoe UI","DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 24px 60px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:38px 0 10px;overflow-wrap:anywhere}
h3{font-size:16px;margin:24px 0 8px}
h4{font-size:13px;margin:0 0 4px;color:var(--quiet);font-weight:600}
.headline{font-size:17px;margin:2px 0 8px}
.share{height:10px;border-radius:5px;background:var(--stays-soft);overflow:hidden;max-width:460px;margin-bottom:18px}
.share div{height:100%;background:var(--done)}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th,td{text-align:left;padding:6px 12px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--quiet);font-weight:600}
td{overflow-wrap:anywhere}td:nth-child(4){white-space:nowrap}
a{color:inherit}
code,pre{font-family:ui-monospace,"SF Mono","DejaVu Sans Mono",monospace;font-size:12.5px}
pre{margin:0;overflow-x:auto}
.quiet{color:var(--quiet)}
article{background:var(--card);border:1px solid var(--line);border-left:4px solid var(--done);border-radius:8px;
padding:14px 18px;margin:12px 0}
article.stays{border-left-color:var(--stays)}
article p{margin:8px 0}
.formula{font-size:19px;overflow-x:auto;padding:2px 0}
.formula math{text-align:left;display:inline-block}
.where{margin:2px 0 6px;padding-left:20px}
.badge{display:inline-block;border-radius:10px;padding:1px 9px;font-size:12.5px;font-weight:600}
.badge.done{background:var(--done-soft);color:var(--done)}.badge.stays{background:var(--stays-soft);color:var(--stays)}
.source{background:var(--paper);border:1px solid var(--line);border-radius:6px;padding:8px 12px}
.caret{color:#d1242f;font-weight:700}
.obstruction{border-top:1px solid var(--line);margin-top:10px;padding-top:2px}
.obstruction p{margin:6px 0}
figure{margin:8px 0;overflow-x:auto}figcaption{font-size:12.5px;color:var(--quiet);margin-top:2px}
svg{max-width:100%;height:auto;display:block}
svg text{font:12px system-ui,"DejaVu Sans",sans-serif;fill:var(--ink)}
.states .state text{text-anchor:middle;font-style:italic;font-size:13px}
.states .state rect{fill:var(--paper);stroke-width:2}
.states .state.done rect{stroke:var(--done)}.states .state.stays rect{stroke:var(--stays)}
.component{fill:none;stroke-dasharray:5 4;stroke-width:1.5}
.component.done{fill:var(--done-soft);stroke:var(--done)}.component.stays{fill:var(--stays-soft);stroke:var(--stays)}
.edge{fill:none;stroke:var(--quiet);stroke-width:1.6}.tip{fill:var(--quiet)}
.bars .label{text-anchor:end}.bars .tick{text-anchor:middle;fill:var(--quiet);font-size:11px}
.bars .note{fill:var(--quiet);font-size:11px}.grid{stroke:var(--line)}
.bar{fill:var(--bar)}.bar.chosen{fill:var(--done)}.bar.loop{fill:var(--stays)}
.graphs{display:grid;grid-template-columns:1fr 1fr;gap:14px}
.graphs>div{border:1px solid var(--line);border-radius:8px;padding:10px 12px;min-width:0}
.line{border-radius:3px;padding:0 3px;margin-left:-3px}
.line.moved{background:var(--done-soft)}.line.solved{background:var(--solved-soft)}.line.kept{background:var(--stays-soft)}
@media (max-width:900px){.graphs{grid-template-columns:1fr}}
@media print{section{break-inside:avoid}}
"""
