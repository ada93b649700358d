"""What people wrote for the OpenAPI document: the introduction, the groups, examples of bodies."""

from __future__ import annotations

from typing import Any, Final

ABOUT: Final = """\
**Errors** are `application/problem+json` (RFC 9457). `type` is an address of this server that says what it means, see
`GET /problems`; `instance` is the id of the request, which is in `X-Request-Id` and in the server's log as well. A 422
lists every value that is wrong in `errors`.

**Lists** come page by page: `limit` entries (1 to 1000), and `next_cursor` for the page that follows. A cursor means
something to the list that handed it out only.

**Versions.** The ETag of a session is its version. With `If-Match`, PUT and DELETE do nothing (412) when somebody else
changed the session in between; with `If-None-Match`, GET answers 304 when nothing did.

**Reports.** 201 means committed. A full server answers 503 with `Retry-After`, and has stored nothing of the request.

**Numbers** are finite, integers have at most 64 bits: a producer that has no value sends null. **Text** has no U+0000.
**Times** are RFC 3339 and in UTC.

Every GET may be sent as HEAD. Unknown query parameters and unknown fields in bodies are refused (422), so a slip of the
pen is noticed. Another method answers 405 with `Allow`."""

WEBSOCKET: Final = """\
**Live messages** come by WebSocket from `/ws/{session_id}`, each as `{v, type, session, epoch, seq, ts, data}`. First
`connection_status` with the epoch and the newest number of each type, then the state of the session, then what happens.
A client may send `Subscribe`, `Unsubscribe`, `Ping` and `Resume` (see the models). The numbers of a type have no gaps;
after a lost connection `Resume` brings all that was missed, or says `recovered: false` and begins anew. A browser,
which can send no header, brings a ticket of `POST /api/tickets`. Close codes: 1001 the server ends, 1008 too many
messages, 1009 message too large, 1011 the server failed, 4008 too slow, 4010 state lost (connect again after all of
these); 4400 and above (connect again to no purpose): 4401 no or another token, 4404 no such session, 4410 the session
is gone."""

SCOPES: Final[dict[str, str]] = {
    "read": "look at everything",
    "ingest": "report trainings that run elsewhere: create, change and fill external sessions",
    "control": "create, change, pause, stop and delete sessions of any kind; includes read and ingest",
    "admin": "everything",
}

GROUPS: Final[dict[str, str]] = {
    "Sessions": "Trainings, waiting, at work or ended.",
    "Reports": "What a trainer sends: metrics, decisions, graphs, events.",
    "History and replays": "What is kept of a training, and watching it live.",
    "Rooms": "Guests who watch one session, by code and password.",
    "Server": "Health, load, games, problem types.",
}

_METRICS: Final[dict[str, Any]] = {
    "timestamp": "2026-01-01T12:00:00Z",
    "episode": 100,
    "total_episodes": 1000,
    "current_reward": 15.5,
    "average_reward": 12.3,
    "best_reward": 20.1,
    "episode_length": 250,
    "win_rate": 75.5,
    "loss_value": 0.05,
    "learning_rate": 0.001,
    "epsilon": 0.1,
    "model_generation": 2,
    "algorithm": "DQN",
    "training_time_elapsed": 3600.0,
    "actions_per_second": 30.5,
    "frames_per_second": 60.0,
    "memory_usage_mb": 512.0,
}

# operationId -> name -> example of a body.
EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "create_ticket": {"one session": {"value": {"session_id": "01m7z63xt066nqvqcbxms5d746"}}, "any": {"value": {}}},
    "create_session": {
        "managed": {
            "summary": "gymcast trains it",
            "value": {"config": {"env_id": "CartPole-v1", "total_timesteps": 20000}, "priority": 1},
        },
        "camelCase": {
            "summary": "the same, in the other spelling",
            "value": {"config": {"envId": "CartPole-v1", "totalTimesteps": 20000}, "priority": 1},
        },
        "external": {
            "summary": "your own trainer reports here",
            "value": {
                "training_session_id": "my_training_001",
                "model_generation": 2,
                "algorithm": "DQN",
                "total_episodes": 1000,
            },
        },
    },
    "update_session": {
        "progress": {"summary": "how far it is", "value": {"current_episode": 250}},
        "end": {"summary": "it has ended", "value": {"status": "completed"}},
    },
    "create_room": {
        "password": {
            "summary": "with a password that the server makes",
            "value": {"session_id": "01kag2vkcpq6h6dj3t4m7x8y9z", "password_protected": True, "max_spectators": 20},
        },
        "open": {
            "summary": "the code is enough, for an hour",
            "value": {"session_id": "01kag2vkcpq6h6dj3t4m7x8y9z", "expires_in": 3600},
        },
    },
    "join_room": {
        "password": {"summary": "what the guest was told", "value": {"password": "k7mw-r4tx-93hc"}},
        "open": {"summary": "a room without a password", "value": {}},
    },
    "report_metrics": {
        "one": {"summary": "a reading", "value": _METRICS},
        "list": {
            "summary": "several",
            "value": [_METRICS, {**_METRICS, "timestamp": "2026-01-01T12:00:01Z", "episode": 101}],
        },
    },
    "report_decisions": {
        "one": {
            "summary": "a decision",
            "value": {
                "timestamp": "2026-01-01T12:00:00Z",
                "action_probabilities": {"move_left": 0.3, "move_right": 0.2, "jump": 0.1, "shoot": 0.4},
                "state_values": 5.5,
                "q_values": [1.2, 2.3, 0.8, 3.1],
                "selected_action": "shoot",
                "confidence_score": 0.4,
            },
        }
    },
    "report_graphs": {
        "one": {
            "summary": "two points of a curve",
            "value": {
                "graph_id": "reward_progress",
                "title": "Reward Progress",
                "y_label": "Reward",
                "metrics": ["current_reward"],
                "data_points": {
                    "current_reward": [
                        {"timestamp": "2026-01-01T12:00:00Z", "value": 10.0},
                        {"timestamp": "2026-01-01T12:01:00Z", "value": 12.5},
                    ]
                },
                "max_points": 1000,
            },
        }
    },
    "report_events": {
        "status": {
            "summary": "a state and a reading",
            "value": {
                "producer": "worker-1",
                "events": [
                    {
                        "seq": 1,
                        "ts": "2026-01-01T12:00:00Z",
                        "type": "training_status",
                        "data": {"status": "running", "phase": "training", "timesteps": 4096, "progress": 0.2},
                    },
                    {"seq": 2, "ts": "2026-01-01T12:00:00Z", "type": "training_metrics", "data": _METRICS},
                ],
            },
        },
        "heartbeat": {"summary": "still there", "value": {"producer": "worker-1", "events": []}},
    },
}
