"""Features declared once: replayed over history, updated live when serving."""
