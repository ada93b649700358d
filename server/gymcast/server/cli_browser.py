"""Opening the page in the user's browser, where there is one."""

from __future__ import annotations

import os
import sys
import webbrowser


def open_browser(url: str) -> bool:
    """Open ``url`` in a browser with a window; false when there is none to open.

    Without a display Python would start a text browser, which takes the terminal away and cannot show the page.
    """
    windows = sys.platform in ("win32", "darwin") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))
    return bool(windows) and webbrowser.open(url)
