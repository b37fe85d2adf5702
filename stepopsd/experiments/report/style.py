"""The report's style sheet: light and dark, no script and nothing fetched."""

from __future__ import annotations

from stepopsd.experiments.report.transcripts import LEVELS, MODES

BASE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1f2933;--muted:#66727f;--line:#e1e6eb;--soft:#f5f7f9;
--accent:#d9541e;--good:#1d7a46;--bad:#b3261e;--plus:23,105,170;--minus:217,84,30}
@media(prefers-color-scheme:dark){:root{--paper:#14181d;--ink:#e4e8ec;--muted:#98a4b0;--line:#2c343c;--soft:#1c2229;
--accent:#ff8a50;--good:#5fca8c;--bad:#ff8a80;--plus:86,170,245;--minus:255,128,72}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1060px;margin:0 auto;padding:2.2rem 1.2rem 4rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .4rem}
h2{font-size:1.2rem;margin:2.8rem 0 .6rem;padding-top:1rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.6rem 0 .2rem}
p{margin:.5rem 0}
.lead,.meta,figcaption,.legend{color:var(--muted)}
.meta,figcaption,.legend{font-size:.86rem}
nav{font-size:.9rem;margin:.8rem 0 0}nav a{margin-right:1rem;color:var(--accent);text-decoration:none}
nav a:hover{text-decoration:underline}
figure{margin:1.1rem 0}figure img{width:100%;height:auto;display:block;background:#fff;border-radius:8px;
border:1px solid var(--line)}
figcaption{margin-top:.45rem}
.scroll{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.34rem .7rem;border-bottom:1px solid var(--line);vertical-align:baseline}
th{font-weight:600;color:var(--muted);white-space:nowrap}
td.n,th.n{text-align:right;white-space:nowrap}
td small{color:var(--muted);margin-left:.25rem}
ul.verdicts{padding:0;list-style:none;margin:.8rem 0}
ul.verdicts li,.absent{background:var(--soft);border-left:3px solid var(--accent);padding:.55rem .9rem;margin:.5rem 0;
border-radius:0 6px 6px 0}
.absent{border-color:var(--muted);color:var(--muted)}
code,pre{font:.84rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{background:var(--soft);padding:.8rem 1rem;border-radius:6px;white-space:pre-wrap;overflow-wrap:anywhere}
.won{color:var(--good)}.lost{color:var(--bad)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:1rem;align-items:start}
.member{background:var(--soft);border-radius:8px;padding:.3rem 1rem .8rem;min-width:0}
.member ol{margin:.2rem 0 0;padding-left:1.7rem}.member li{margin:.55rem 0;font-size:.88rem}
.member details ol,.member details>li{margin-left:0}
.obs{color:var(--muted);white-space:pre-wrap;overflow-wrap:anywhere}
.say{white-space:pre-wrap;overflow-wrap:anywhere;font:.84rem/1.75 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
summary{cursor:pointer;color:var(--muted);font-size:.86rem}
.t{border-radius:3px;padding:.08em 0}.t:hover{outline:1px solid var(--muted)}.out{opacity:.45}
.legend i.t{display:inline-block;width:1.1em;height:1em;vertical-align:-.12em;border-radius:0;
outline:1px solid var(--line)}
.transcripts>input{position:absolute;opacity:0}
.transcripts>label{display:inline-block;padding:.2rem .7rem;margin:0 .4rem .3rem 0;border:1px solid var(--line);
border-radius:99px;font-size:.86rem;cursor:pointer}
.transcripts>input:checked+label{background:var(--ink);color:var(--paper)}
.transcripts>input:focus-visible+label{outline:2px solid var(--accent)}
"""


def stylesheet() -> str:
    """All rules: the base, and one shade per level and colour mode of the transcripts."""
    rules = [BASE]
    for level in range(-LEVELS, LEVELS + 1):
        if level:
            shade = f"{{background:rgba(var(--{'plus' if level > 0 else 'minus'}),{0.62 * abs(level) / LEVELS:.2f})}}"
            rules += [f"#tint-{mode}:checked~div .{letter}{level}{shade}" for mode, _, letter in MODES]
            rules.append(f".x{level}{shade}")
    return "\n".join(rules)
