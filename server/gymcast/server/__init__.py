"""The aiohttp server, the page and the command line."""
