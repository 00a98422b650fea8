"""Style of the web page: theme, style sheet and icon, in the colours of the plots; loads nothing from other sites."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from sound.feature_plots import THEMES


def launch_options(head: str = "") -> dict[str, Any]:
    """Return the arguments of ``launch`` that style the page; ``head`` is added after the icon."""
    return {"theme": _make_theme(), "css": _make_css(), "head": _ICON + head, "footer_links": ["api", "settings"]}


def _make_css() -> str:
    drawings = "; ".join(f"--{name}: {_draw(path)}" for name, path in _DRAWINGS.items())
    return f":root {{ {drawings} }}{_CSS}{Path(__file__).with_name('desk.css').read_text(encoding='utf-8')}"


def _draw(path: str) -> str:
    """Return strokes as a data URL for the style sheet."""
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 68 48"><path fill="none" stroke="#000" stroke-width="4" '
        f'stroke-linecap="round" stroke-linejoin="round" d="{path}"/></svg>'
    )
    return f"url(data:image/svg+xml,{quote(svg)})"


def _make_theme() -> gr.themes.Base:
    light, dark = THEMES["light"], THEMES["dark"]
    orange = gr.themes.Color(
        "#fff6ed",
        "#ffe9d2",
        "#fdd0a5",
        "#fbb06d",
        dark.pitch,
        "#e07a1f",
        light.pitch,
        "#a1460d",
        "#82390f",
        "#6b3110",
        "#2b1c10",
        name="brass",
    )
    grey = gr.themes.Color(
        "#f6f7f9",
        light.grid,
        "#e2e5ea",
        light.octave,
        dark.muted,
        light.muted,
        "#4b5260",
        dark.octave,
        dark.grid,
        dark.background,
        "#0d0f13",
        name="slate",
    )
    theme = gr.themes.Base(
        primary_hue=orange,
        secondary_hue=orange,
        neutral_hue=grey,
        radius_size=gr.themes.sizes.radius_lg,
        font=("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"),
        font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"),
    )
    return theme.set(
        body_background_fill="linear-gradient(180deg, #fff1e3 0, #f6f7f9 380px)",
        body_background_fill_dark="linear-gradient(180deg, #21170f 0, #0d0f13 380px)",
        body_text_color=light.text,
        body_text_color_dark=dark.text,
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        color_accent="*primary_600",
        block_background_fill=light.background,
        block_background_fill_dark=dark.background,
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_text_color="*neutral_500",
        block_label_text_color_dark="*neutral_400",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_400",
        button_primary_background_fill_hover_dark="*primary_300",
        button_primary_text_color="white",
        button_primary_text_color_dark="*neutral_950",
        button_secondary_background_fill="*neutral_100",
        button_secondary_background_fill_hover="*neutral_200",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        checkbox_label_background_fill="*neutral_100",
        checkbox_label_background_fill_hover="*neutral_200",
        checkbox_label_background_fill_dark="*neutral_800",
        checkbox_label_background_fill_hover_dark="*neutral_700",
        checkbox_label_border_width="1px",
        checkbox_label_border_width_dark="1px",
        checkbox_label_border_color="*neutral_100",
        checkbox_label_border_color_dark="*neutral_800",
        checkbox_label_background_fill_selected="*primary_50",
        checkbox_label_background_fill_selected_dark="*primary_950",
        checkbox_label_border_color_selected="*primary_600",
        checkbox_label_border_color_selected_dark="*primary_400",
    )


_ICON = (
    "<link rel=icon href=\"data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E"
    "%3Crect width='32' height='32' rx='8' fill='%23c2570c'/%3E%3Cpath d='M6 16h3l3-7 4 14 4-10 2 3h4' fill='none' "
    "stroke='%23fff' stroke-width='2.4' stroke-linejoin='round' stroke-linecap='round'/%3E%3C/svg%3E\">"
)

# Strokes on a field of 68 x 48.
_DRAWINGS = {
    "trumpet": "M4 22h36c11 0 17-7 24-14v28c-7-7-13-14-24-14M17 22v-9M26 22v-9M35 22v-9M13 22c0 15 28 15 28 0",
    "guitar": "M40 22l24-16M21 40c-9 3-17-3-17-11 0-7 6-11 12-10 6 0 6-8 14-7 7 0 11 7 8 13-2 5-8 4-8 9 0 4-4 5-9 6z"
    "M24 26a3 3 0 1 0 6 0a3 3 0 1 0-6 0",
    "flute": "M4 36L64 20M4 44L64 28M4 36v8M64 20v8M16 33l-1-6M30 29l-1-8M40 26l-1-8M50 24l-1-8",
    "saxophone": "M12 4h10c5 0 7 3 7 8v16c0 7 9 8 11 1l4-13 14 4-6 16c-4 11-31 11-31-6V12h-9M21 21h-6M21 30h-6",
    "violin": "M38 22l24-16M19 41c-8 1-13-5-12-11 1-5 5-5 8-9 3-5 7-6 11-4 4 1 8 2 11 5 2 3 2 7 1 11-2 4-7 3-10 6"
    "-3 3-4 3-9 2M56 3l8 8M36 46L64 24",
    "note": "M26 36V10l24-5v26M12 36a7 7 0 1 0 14 0a7 7 0 1 0-14 0M36 31a7 7 0 1 0 14 0a7 7 0 1 0-14 0",
}

_CSS = """
.gradio-container { width: 100% !important; max-width: 1120px !important; margin: 0 auto !important;
  background: none !important; }
.dark { --color-accent: var(--primary-400); }
.html-container { padding: 0 !important; }
.top { display: flex; align-items: center; gap: 20px; padding: 10px 0; }
.top svg { width: 104px; }
.top svg { flex: none; fill: none; stroke-width: 3; stroke-linecap: round; stroke-linejoin: round; }
.top h1 { font-size: 1.8rem; font-weight: 700; letter-spacing: -.02em; margin: 0; line-height: 1.2; }
.top h1 span { font-weight: 400; color: var(--body-text-color-subdued); }
.top .live { margin-left: auto; flex: none; padding: 10px 18px; border-radius: 999px; font-weight: 600;
  text-decoration: none; color: var(--button-primary-text-color) !important; white-space: nowrap;
  background: var(--button-primary-background-fill); }
.top p { margin: 2px 0 0; color: var(--body-text-color-subdued); }
.voice { stroke: var(--neutral-400); }
.horn { stroke: var(--color-accent); }
.say { padding: 20px; border: 1px solid var(--border-color-primary); border-radius: 12px; margin: 0; line-height: 1.5;
  background: var(--block-background-fill); }
.say.error { border-color: #c0392b; border-left-width: 5px; }
.say.warning { border-color: var(--color-accent); border-left-width: 5px; padding: 12px 16px; }
/* Radio buttons look like cards and chips: a frame marks the selection, a ring the keyboard focus. */
#instrument label, #octave label { cursor: pointer; transition: background .15s, border-color .15s; }
#instrument input[type=radio], #octave input[type=radio] { position: absolute; opacity: 0; width: 1px; height: 1px; }
#instrument label:focus-within, #octave label:focus-within { outline: 2px solid var(--color-accent);
  outline-offset: 2px; }
#instrument label { padding: 12px 18px 12px 14px; border-radius: 12px; font-weight: 500; }
#instrument label::before { content: ""; width: 34px; height: 24px; background: var(--body-text-color-subdued);
  mask: var(--note) center / contain no-repeat; }
#instrument label.selected::before { background: var(--color-accent); }
#instrument label:has([value=trumpet])::before { mask-image: var(--trumpet); }
#instrument label:has([value=guitar])::before { mask-image: var(--guitar); }
#instrument label:has([value=flute])::before { mask-image: var(--flute); }
#instrument label:has([value=saxophone])::before { mask-image: var(--saxophone); }
#instrument label:has([value=violin])::before { mask-image: var(--violin); }
#octave .wrap { gap: 6px; }
#octave label { padding: 9px 0; min-height: 40px; min-width: 48px; justify-content: center; border-radius: 10px; }
#octave label span { margin: 0 12px; }
#play, #cancel { border-radius: 12px; font-size: 1.05rem; padding: 14px; }
input[type=range]::-webkit-slider-thumb { box-shadow: 0 0 0 2px var(--color-accent) !important; }
input[type=range]::-moz-range-thumb { box-shadow: 0 0 0 2px var(--color-accent) !important; }
.say.idle { min-height: 300px; display: flex; flex-direction: column; align-items: center; justify-content: center;
  gap: 18px; border-style: dashed; background: none; text-align: center; }
.idle p { margin: 0; max-width: 44ch; color: var(--body-text-color-subdued); }
#status .pending { opacity: 1 !important; }
#status .wrap { opacity: 1 !important; background: none; z-index: 2; overflow: visible; }
#status .progress-text { display: none; }
.steps { list-style: none; margin: 0; padding: 16px 20px; border: 1px solid var(--border-color-primary);
  border-radius: 12px; background: var(--block-background-fill); }
.steps li { padding: 5px 0 5px 28px; margin: 0; position: relative; color: var(--body-text-color-subdued); }
.steps li::before { content: ""; position: absolute; left: 4px; top: 12px; width: 10px; height: 10px;
  border-radius: 50%; border: 2px solid var(--neutral-400); box-sizing: border-box; }
.steps .done::before, .steps .now::before { border-color: var(--color-accent); background: var(--color-accent); }
.steps .now { color: var(--body-text-color); font-weight: 600; }
.steps .now::before { animation: pulse 1.1s ease-in-out infinite alternate; }
@keyframes pulse { to { transform: scale(1.5); opacity: .55; } }
@media (prefers-reduced-motion: reduce) { .steps .now::before { animation: none; } }
.flow { display: flex; align-items: center; justify-content: space-between; gap: 10px; padding: 16px 0 8px; }
.node { flex: 1; min-width: 0; text-align: center; padding: 16px 10px; border-radius: 12px;
  background: var(--block-background-fill); border: 1px solid var(--border-color-primary); }
.node svg { width: 80px; height: 30px; fill: none; stroke: var(--neutral-500); stroke-width: 2.2;
  stroke-linecap: round; stroke-linejoin: round; display: block; margin: 0 auto 8px; }
.node.brass svg { stroke: var(--color-accent); }
.node.teal svg { stroke: #0e7c86; }
.dark .node.teal svg { stroke: #45b8c2; }
.node b, .node span { display: block; }
.node span { font-size: .8rem; color: var(--body-text-color-subdued); }
.stack { flex: 1.2; display: flex; flex-direction: column; gap: 10px; min-width: 0; }
.arrow { flex: none; width: 11px; height: 11px; border: solid var(--neutral-400) !important;
  border-width: 2px 2px 0 0 !important; transform: rotate(45deg); }
.words { max-width: 72ch; line-height: 1.6; margin: 14px 0 24px; }
#card { padding: 8px 24px 20px !important; border: 1px solid var(--border-color-primary) !important;
  border-radius: 12px; background: var(--block-background-fill); }
#card h1 { font-size: 1.2rem; }
#card h2 { font-size: 1rem; }
#card table { display: block; overflow-x: auto; border: 0 !important; padding: 0; }
#card td { padding: 6px 12px !important; border-color: var(--border-color-primary) !important; white-space: nowrap; }
.foot { color: var(--body-text-color-subdued); font-size: .85rem; margin: 0; }
/* Outside the media query, because Gradio applies no rule of a media query to its footer. */
footer .divider { display: none !important; }
footer { gap: 18px; }
footer button, [role=tab], button.label-wrap { min-height: 40px; }
button.label-wrap { align-items: center; }
@media (max-width: 700px) {
  .top { gap: 14px; flex-wrap: wrap; } .top > div { flex: 1 1 180px; } .top svg { width: 68px; }
  .top h1 { font-size: 1.35rem; } .top h1 span { display: block; font-size: 1rem; }
  .say.idle { min-height: 0; }
  .flow { flex-direction: column; } .node, .stack { width: 100%; flex: none; }
  .stack { flex-direction: row; } .stack .node { flex: 1; width: auto; }
  .arrow { transform: rotate(135deg); }
}
"""
