"""Control characters that an attacker may print, for tests."""

from __future__ import annotations

# Sets the title, clears the screen, answers as if typed, hides text, turns writing around.
CODES = "\x1b]0;owned\x07\x1b[2J\x1b[6n\x1bP$q\x1b\\\x9b31m\u202etxt\x08\r"
