"""A server in a process of its own, for tests of its API: ``python api_server.py FOLDER SECRET``.

It asks for tokens and runs no trainings. Its address is the only line it prints; it ends with its standard input.
"""

from __future__ import annotations

import asyncio
import sys

from gymcast.server import ServerConfig, running_server


async def main(folder: str, secret: str) -> None:
    config = ServerConfig(port=0, data_storage_path=folder, enable_auth=True, jwt_secret_key=secret)
    async with running_server(config) as server:
        print(server.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
