"""`archers_stage` of this folder: a match whose every detail a test can set."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
