"""Drawing: a game's state as a small JSON frame for the page, as an image, as text."""
