"""Styles and themes. Text styles name theme variables, so that they follow every theme."""

from __future__ import annotations

from textual.theme import Theme

MUTED = "$foreground 60%"
"""For text beside the point. (``$text-muted`` is "auto 60%", which a style of a piece of text does not
resolve.)"""

DARK = Theme(
    name="infinichat",
    primary="#7aa2f7",
    secondary="#9d7cd8",
    accent="#e0af68",
    warning="#e0af68",
    error="#f7768e",
    success="#73daca",
    foreground="#c8d0e8",
    background="#16171f",
    surface="#1c1e29",
    panel="#242736",
    dark=True,
    variables={"footer-key-foreground": "#e0af68", "footer-background": "#16171f"},
)
LIGHT = Theme(
    name="infinichat-light",
    primary="#2e5bb8",
    secondary="#7847bd",
    accent="#9a6200",
    warning="#9a6200",
    error="#c0304a",
    success="#1d7f6e",
    foreground="#2b2f3d",
    background="#fafaf7",
    surface="#f1f1ec",
    panel="#e6e6df",
    dark=False,
    variables={"footer-key-foreground": "#9a6200", "footer-background": "#fafaf7"},
)
