"""The style sheet of the page of a curation: light or dark as the reader's system."""

STYLE = """
:root { --bg: #fafaf8; --card: #fff; --ink: #1d1f24; --soft: #696f7a; --line: #e4e4df;
  --c0: #2563a8; --c1: #d1631b; --c2: #2f8a4d; --c3: #9a3fa8; --c4: #b08900; --c5: #b3304a;
  --bad: #b3261e; --warn: #a86500; --good: #2f7d46; }
@media (prefers-color-scheme: dark) { :root { --bg: #14161a; --card: #1c1f25; --ink: #e7e8ea;
  --soft: #9aa1ad; --line: #32363e; --c0: #6fb1f5; --c1: #f59a5b; --c2: #6fce8e; --c3: #d28be0;
  --c4: #e3c04b; --c5: #f07f95; --bad: #ff8a80; --warn: #f0b45a; --good: #7fd397; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 20px 16px 60px; }
h1 { font-size: 24px; margin: 8px 0 14px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 34px 0 10px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 10px; }
.tiles div, figure, .verdict li, .wide { background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
.tiles div { padding: 10px 14px; }
.tiles b { display: block; font-size: 18px; font-weight: 600; overflow-wrap: anywhere; }
.tiles span, .legend, figcaption { color: var(--soft); font-size: 13px; }
.bar { height: 4px; background: var(--line); border-radius: 2px; margin-top: 12px; }
.bar i { display: block; height: 4px; background: var(--c0); border-radius: 2px; }
.verdict { list-style: none; margin: 0; padding: 0; display: grid; gap: 8px; }
.verdict li { padding: 10px 14px; border-left: 4px solid var(--soft); overflow-wrap: anywhere; }
.verdict .problem { border-left-color: var(--bad); }
.verdict .warning { border-left-color: var(--warn); }
.verdict .fine { border-left-color: var(--good); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 360px), 1fr));
  gap: 12px; }
figure { margin: 0; padding: 10px 12px; }
figcaption b { color: var(--ink); font-weight: 600; }
.picture { margin-bottom: 12px; overflow-x: auto; width: fit-content; max-width: 100%; }
.picture img { display: block; max-width: 100%; height: auto; border-radius: 4px;
  image-rendering: pixelated; margin-bottom: 6px; }
.looks { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr));
  gap: 12px; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 13px; }
.grid { stroke: var(--line); stroke-width: 1; }
line.mark { stroke: var(--soft); stroke-dasharray: 5 4; }
text.mark { font-style: italic; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.legend { margin: 2px 0 0; display: flex; flex-wrap: wrap; gap: 2px 14px; }
.legend b { color: var(--ink); font-weight: 600; }
.legend i { display: inline-block; width: 12px; height: 3px; margin-right: 5px;
  vertical-align: middle; background: currentColor; }
polyline.c0 { stroke: var(--c0); } circle.c0 { fill: var(--c0); }
.legend .c0 i { background: var(--c0); }
polyline.c1 { stroke: var(--c1); } circle.c1 { fill: var(--c1); }
.legend .c1 i { background: var(--c1); }
polyline.c2 { stroke: var(--c2); } circle.c2 { fill: var(--c2); }
.legend .c2 i { background: var(--c2); }
polyline.c3 { stroke: var(--c3); } circle.c3 { fill: var(--c3); }
.legend .c3 i { background: var(--c3); }
polyline.c4 { stroke: var(--c4); } circle.c4 { fill: var(--c4); }
.legend .c4 i { background: var(--c4); }
polyline.c5 { stroke: var(--c5); } circle.c5 { fill: var(--c5); }
.legend .c5 i { background: var(--c5); }
.wide { overflow-x: auto; margin-bottom: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th, td { text-align: left; padding: 5px 10px; border-bottom: 1px solid var(--line);
  vertical-align: top; }
tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 500; }
td:first-child { white-space: nowrap; }
summary { cursor: pointer; color: var(--soft); margin: 8px 0; }
"""
