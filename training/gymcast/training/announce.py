"""How a training that runs in somebody's own process is announced to a server."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, field

from gymcast.training.http_client import SESSIONS, HttpClient, ServerAway, ServerDenied, ServerRefused, retry_after


@dataclass(frozen=True)
class Announcement:
    """What a server is told about a training that somebody else runs. ``key`` tells a repeat from another session."""

    training_session_id: str
    algorithm: str
    total_episodes: int | None = None
    model_generation: int = 1
    env_id: str | None = None
    key: str = field(default_factory=lambda: secrets.token_hex(16))

    def __call__(self, client: HttpClient) -> str:
        """Announce it; returns the session id. Raises :class:`ServerAway`, :class:`ServerRefused`."""
        fields = {name: value for name, value in asdict(self).items() if name != "key"}
        if self.env_id is None:
            del fields["env_id"]
        status, headers, content = client.post(SESSIONS, json.dumps(fields).encode(), Idempotency_Key=self.key)
        if status in (409, 429) or status >= 500:
            raise ServerAway(f"POST {client.url}{SESSIONS} was answered {status}", retry_after(headers))
        if status not in (200, 201):
            raise ServerRefused(f"POST {client.url}{SESSIONS} was answered {status}: {content[:500]!r}")
        try:
            return str(json.loads(content)["session_id"])
        except (ValueError, KeyError, TypeError):
            raise ServerRefused(f"{client.url} does not answer like a gymcast server") from None


def register_external_session(
    base_url: str,
    *,
    training_session_id: str,
    algorithm: str,
    total_episodes: int | None = 0,
    model_generation: int = 1,
    env_id: str | None = None,
    token: str | None = None,
) -> str:
    """Announce a training that runs in this process to a server; returns the session id to send events to.

    Raises :class:`ServerAway` when the server cannot be reached, :class:`ServerRefused` when it says no.
    """
    client = HttpClient(base_url, token=token)
    try:
        return Announcement(training_session_id, algorithm, total_episodes, model_generation, env_id)(client)
    except ServerDenied:
        raise
    except ServerAway as error:
        raise ServerAway(f"no server answers at {base_url} ({error}); start one with: gymcast serve") from None
    finally:
        client.close()
