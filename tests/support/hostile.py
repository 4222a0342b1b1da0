"""A text that harms who shows it as something other than text."""

from __future__ import annotations

MARK = "hacked"
"""What the title of a page becomes that obeys `HOSTILE`."""
HOSTILE = (
    f"<img src=x onerror=\"document.title='{MARK}'\"><script>document.title='{MARK}'</script></script><svg onload="
    f"document.title='{MARK}'>[click](javascript:document.title='{MARK}') | `a` \x1b]0;{MARK}\x07\x1b[31m\u202eb\r\nc"
)
