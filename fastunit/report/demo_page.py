"""The page of `fastunit.demo`: drop an image, see its translation."""

from __future__ import annotations

import html

from fastunit.report import document

_BODY = """
<section><h2>Image</h2>
<p id="drop">Drop an image here, or <label><u>choose a file</u><input
 type="file" id="file" accept="image/*" hidden></label>{examples}.</p>
<p><label>Direction <select id="direction">{directions}</select></label>{style}</p>
<p id="status" role="status"></p></section>
<section id="result" hidden><h2>Translation</h2>
<div class="over"><img id="before" alt="input"><img id="after" alt="translation"></div>
<input type="range" id="slider" min="0" max="100" value="50" autocomplete="off"
 aria-label="input and translation">
<p><a id="download" download="translation.png">Download the translation (PNG)</a></p></section>
<section id="all" hidden><h2>Input, translation, and back</h2>
<div class="row"><figure><figcaption>input</figcaption><img id="input" alt="input"></figure>
<figure><figcaption>translation</figcaption><img id="translation" alt="translation"></figure>
<figure id="way-back"><figcaption>back again</figcaption><img id="cycle" alt="cycle"></figure>
</div></section>
<noscript><section>This page needs JavaScript.</section></noscript>
<style>
#drop {{ border: 2px dashed var(--line); border-radius: 10px; padding: 1.6rem;
        text-align: center; }}
#drop.on {{ border-color: var(--accent); }}
label u, #drop a {{ color: var(--accent); cursor: pointer; }}
.over {{ display: grid; justify-content: center; }}
.over img {{ grid-area: 1 / 1; max-width: 100%; min-width: min(24rem, 80vw); border-radius: 6px; }}
.row {{ display: flex; gap: 1rem; flex-wrap: wrap; }}
.row figure {{ flex: 1 1 14rem; margin: 0; }} .row img {{ width: 100%; }}
a {{ color: var(--accent); }} #status.bad {{ color: #d33; }}
</style>
"""

_STYLE = """
<label>Style <input type="range" id="style" min="0" max="{most}" step="0.25" value="0"
 autocomplete="off"></label>
"""

_SCRIPT = """
const at = id => document.getElementById(id);
let last = null, asked = 0;
const show = () => { at("after").style.clipPath = `inset(0 0 0 ${at("slider").value}%)`; };
async function translate(file) {
  last = file; const mine = ++asked;
  at("status").className = ""; at("status").textContent = "translating ...";
  let found;
  try {
    const style = at("style") ? `&style=${at("style").value}` : "";
    const url = `/translate?direction=${at("direction").value}${style}`;
    found = await (await fetch(url, { method: "POST", body: file })).json();
  } catch (error) { found = { error: "the server does not answer; is it still running?" }; }
  if (mine != asked) return;
  const bad = "error" in found;
  at("status").className = bad ? "bad" : "";
  at("status").textContent = bad ? found.error : found.text;
  at("result").hidden = at("all").hidden = bad;
  if (bad) return;
  at("before").src = at("input").src = found.input;
  at("after").src = at("translation").src = at("download").href = found.translation;
  at("way-back").hidden = !found.cycle;
  if (found.cycle) at("cycle").src = found.cycle;
  show();
}
const example = async n => translate(await (await fetch(`/example/${n}`)).blob());
at("slider").oninput = show;
at("file").onchange = () => at("file").files[0] && translate(at("file").files[0]);
for (const choice of ["direction", "style"])
  if (at(choice)) at(choice).onchange = () => last && translate(last);
for (const kind of ["dragover", "dragleave", "drop"])
  document.addEventListener(kind, event => {
    event.preventDefault(); at("drop").classList.toggle("on", kind == "dragover");
    if (kind == "drop" && event.dataTransfer.files[0]) translate(event.dataTransfer.files[0]);
  });
for (const link of document.querySelectorAll("[data-example]"))
  link.onclick = () => { at("direction").value = link.dataset.way; example(link.dataset.example); };
document.querySelector("[data-example]")?.click();
"""


def demo_page(title: str, directions: dict[str, str], examples: list[str], styles: int) -> str:
    """Return the page.

    Args:
        title: the heading.
        directions: what each direction is called.
        examples: the direction of each example that the server has; the first is shown at once.
        styles: the last place on the slider of styles; 0: no slider.
    """
    links = ", ".join(
        f'<a data-example="{number}" data-way="{way}">{number + 1}</a>'
        for number, way in enumerate(examples)
    )
    options = "".join(
        f'<option value="{way}">{html.escape(text)}</option>' for way, text in directions.items()
    )
    offered = f"; or try example {links}" if links else ""
    style = _STYLE.format(most=styles) if styles else ""
    body = _BODY.format(examples=offered, directions=options, style=style)
    return document.document(title, [body], _SCRIPT)
