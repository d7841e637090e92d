"""One self-contained page about a run, as HTML or Markdown: content.py says what is on it, the rest how it looks."""
