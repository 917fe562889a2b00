"""How the page looks: fonts of the system, one colour, light and dark.

Authors
 * The blsp_plugin team 2026
"""

import gradio as gr

__all__ = ["CSS", "theme"]

CSS = """
.gradio-container { max-width: 1160px !important; margin: 0 auto !important; }
.html-container { padding: 0 !important; }
#head { align-items: center; }
#head h1 { font-size: 1.45rem; font-weight: 650; margin: 0; line-height: 1.2; }
#head p { margin: .25rem 0 0; }
#head p, .hint, .side-head span { color: var(--body-text-color-subdued); }
.hint, .side-head { font-size: .86rem; }
.side { gap: .4rem !important; }
.side-head h2 { display: inline; font-size: 1rem; font-weight: 650;
  margin: 0 .6rem 0 0; }
.side-head span { color: var(--body-text-color-subdued) !important; }

/* What is forgotten is forgotten on the server: by "New conversation". */
#speech .top-panel, #text .top-panel { display: none; }
/* Under a clip there is nothing to copy, and nobody to share it with. */
.message-buttons-right { display: none !important; }
#speech .minimal-audio-player .waveform-wrapper { height: 36px;
  overflow: hidden; display: flex; align-items: center; }
#speech .minimal-audio-player .waveform-wrapper > div { flex: 1; }

#clip { min-height: 0; }
#clip .wrap { padding-top: .6rem; }
#clip .audio-container { min-height: 150px; }
#say { gap: .5rem; }

/* Nothing to show takes no room. */
#figures:not(:has(table)), #note:not(:has(p)), #heard:not(:has(dl)) {
  display: none; }
#figures { overflow-x: auto !important; }
#figures table { width: 100%; margin: 0; border: 0 !important;
  border-collapse: collapse; font-size: .84rem;
  font-variant-numeric: tabular-nums; }
#figures :is(table, tbody, thead, tr) { border: 0 !important;
  padding: 0 !important; margin: 0 !important; }
#figures table :is(th, td) { padding: .22rem .6rem; text-align: right;
  white-space: nowrap; border: 0 !important; background: none; }
#figures thead th { font-weight: 400;
  color: var(--body-text-color-subdued); }
#figures table tbody th { text-align: left !important; font-weight: 600;
  padding-left: 0; }
#figures tbody tr {
  border-top: 1px solid var(--border-color-primary) !important; }
dl.heard { display: grid; grid-template-columns: max-content 1fr;
  gap: .3rem 1rem; margin: .3rem 0; }
dl.heard dt { font-weight: 600; }
dl.heard dd { margin: 0; overflow-wrap: anywhere; }
#listen { align-self: flex-start; width: auto; }
p.note { margin: 0; padding: .55rem .8rem; border-radius: 6px;
  border-left: 4px solid #d97706; background: #fef3c7; color: #78350f; }
@media (max-width: 700px) {
  #head { flex-direction: column; align-items: flex-start; }
  #speech, #text { height: 280px !important; }
  /* The table on its side: a column for each LLM. */
  #figures :is(table, tbody) { display: flex; }
  #figures tbody { flex: 1; }
  #figures thead :is(th, td) { text-align: left !important; }
  #figures table :is(th, td) { padding: .22rem .2rem; }
  #figures tr { display: flex; flex-direction: column; flex: 1; }
  #figures tbody tr { border: 0 !important; }
  #figures table tbody th { text-align: right !important; }
}
.dark p.note { background: #3a2a0c; color: #fcd9a0; }
"""


def theme():
    """A theme that asks no other machine for anything.

    Returns
    -------
    gradio.themes.Base
    """
    return gr.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "Segoe UI", "Roboto", "Helvetica", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )
