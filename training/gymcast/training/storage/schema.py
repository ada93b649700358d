"""The database schema, in SQLAlchemy Core.

Every time is an integer: microseconds since 1970-01-01 UTC. Ids are text that sorts by time (see :mod:`.ids`). The
SQL is kept to what SQLite and PostgreSQL share. A change here needs a migration in ``migrations/versions``; a test
compares the two.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

# Constraint names are fixed, so that later migrations can name what they drop on every database.
metadata: Final = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite only counts a column up on its own when its type is exactly INTEGER.
_ROW_ID: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _row_id() -> sa.Column[int]:
    return sa.Column("id", _ROW_ID, primary_key=True, autoincrement=True)


def _session_id(*, primary_key: bool = False) -> sa.Column[str]:
    return sa.Column(
        "session_id",
        sa.String(64),
        sa.ForeignKey("sessions.session_id", ondelete="CASCADE"),
        primary_key=primary_key,
        nullable=False,
    )


sessions: Final = sa.Table(
    "sessions",
    metadata,
    sa.Column("session_id", sa.String(64), primary_key=True),
    sa.Column("training_session_id", sa.String(128), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),  # managed | external
    sa.Column("env_id", sa.String(128)),
    sa.Column("algorithm", sa.String(128), nullable=False),
    sa.Column("model_generation", sa.BigInteger, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("desired", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("updated_us", sa.BigInteger, nullable=False),
    sa.Column("start_us", sa.BigInteger),
    sa.Column("end_us", sa.BigInteger),
    # When a producer last spoke. Not part of the visible session, so it does not count the version up.
    sa.Column("seen_us", sa.BigInteger),
    sa.Column("current_episode", sa.BigInteger, nullable=False),
    sa.Column("total_episodes", sa.BigInteger),
    sa.Column("timesteps", sa.BigInteger, nullable=False),
    sa.Column("total_timesteps", sa.BigInteger),
    sa.Column("progress", sa.Float, nullable=False),  # 0..1
    sa.Column("eta_seconds", sa.Float),
    sa.Column("room_code", sa.String(64)),
    sa.Column("enable_spectators", sa.Boolean, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("config", sa.JSON(none_as_null=True)),
    sa.Column("resources", sa.JSON(none_as_null=True)),
    # Who runs it, until when, and when that was last said; in the database's time (see .clock), as not_before_us is.
    sa.Column("lease_owner", sa.String(128)),
    sa.Column("lease_expires_us", sa.BigInteger),
    sa.Column("heartbeat_us", sa.BigInteger),
    sa.Column("not_before_us", sa.BigInteger),
    sa.Column("wait_reason", sa.Text),
    # Readings up to this id are in the rollups; how many are not (see .rollups).
    sa.Column("rolled_id", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("unrolled", sa.BigInteger, nullable=False, server_default="0"),
    # The newest number of each type of live message (see .missed).
    sa.Column("heads", sa.JSON(none_as_null=True), nullable=False, server_default="{}"),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Index(None, "status", "session_id"),
)

transitions: Final = sa.Table(
    "transitions",
    metadata,
    _row_id(),
    _session_id(),
    sa.Column("ts_us", sa.BigInteger, nullable=False),
    sa.Column("from_status", sa.String(16)),
    sa.Column("to_status", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("version", sa.BigInteger),  # of the session after the move; null in rows of the first schema
    sa.Index(None, "session_id", "id"),
)

# Every number up to ``head`` has been accepted, so that an event in order needs no row of its own in ``events``;
# ``last`` is the highest accepted one.
producers: Final = sa.Table(
    "producers",
    metadata,
    _session_id(primary_key=True),
    sa.Column("producer", sa.String(64), primary_key=True),
    sa.Column("head", sa.BigInteger, nullable=False),
    sa.Column("last", sa.BigInteger, nullable=False),
)

# Events whose type has no table of its own, with their data; of the others those that came out of order.
events: Final = sa.Table(
    "events",
    metadata,
    _row_id(),
    _session_id(),
    sa.Column("producer", sa.String(64), nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("type", sa.String(32), nullable=False),
    sa.Column("ts_us", sa.BigInteger, nullable=False),
    sa.Column("data", sa.JSON(none_as_null=True)),
    sa.UniqueConstraint("session_id", "producer", "seq"),
    sa.Index(None, "session_id", "type", "id"),
)

metrics: Final = sa.Table(
    "metrics",
    metadata,
    _row_id(),
    _session_id(),
    sa.Column("ts_us", sa.BigInteger, nullable=False),
    sa.Column("episode", sa.BigInteger, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sa.Index(None, "session_id", "ts_us", "id"),
    sa.Index(None, "session_id", "episode"),
)

# One row per session, bucket width and bucket. A level's rows are made from raw readings.
metric_rollups: Final = sa.Table(
    "metric_rollups",
    metadata,
    _session_id(primary_key=True),
    sa.Column("width_s", sa.Integer, primary_key=True),
    sa.Column("bucket", sa.BigInteger, primary_key=True),  # start of the bucket / width
    sa.Column("rows", sa.BigInteger, nullable=False),  # raw readings in the bucket
    # Metrics, and count, min, max, sum of each (see .sums).
    sa.Column("names", sa.Text, nullable=False),
    sa.Column("sums", sa.LargeBinary, nullable=False),
)

graphs: Final = sa.Table(
    "graphs",
    metadata,
    _session_id(primary_key=True),
    sa.Column("graph_id", sa.String(128), primary_key=True),
    sa.Column("title", sa.String(256), nullable=False),
    sa.Column("y_label", sa.String(256), nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("max_points", sa.Integer, nullable=False),
)

graph_points: Final = sa.Table(
    "graph_points",
    metadata,
    _session_id(primary_key=True),
    sa.Column("graph_id", sa.String(128), primary_key=True),
    sa.Column("metric", sa.String(128), primary_key=True),
    sa.Column("ts_us", sa.BigInteger, primary_key=True),
    sa.Column("value", sa.Float),
)

decisions: Final = sa.Table(
    "decisions",
    metadata,
    _row_id(),
    _session_id(),
    sa.Column("ts_us", sa.BigInteger, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sa.Index(None, "session_id", "id"),
)

# Finished episodes that someone asked for one by one; what a training plays by the thousand is in its run's log.
episodes: Final = sa.Table(
    "episodes",
    metadata,
    _row_id(),
    _session_id(),
    sa.Column("episode_id", sa.String(128), nullable=False),
    sa.Column("ts_us", sa.BigInteger, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),  # completed | failed | cancelled
    sa.Column("total_reward", sa.Float),
    sa.Column("length", sa.BigInteger),  # decisions
    sa.Column("outcome", sa.String(16)),  # win | loss | draw; null in games without a winner
    sa.Column("duration_seconds", sa.Float),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("data", sa.JSON(none_as_null=True)),
    sa.UniqueConstraint("session_id", "episode_id"),
    sa.Index(None, "session_id", "id"),
)

checkpoints: Final = sa.Table(
    "checkpoints",
    metadata,
    _row_id(),
    _session_id(),
    sa.Column("ts_us", sa.BigInteger, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("timesteps", sa.BigInteger, nullable=False),
    sa.Column("episodes", sa.BigInteger, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("reason", sa.String(128), nullable=False),
    sa.Index(None, "session_id", "id"),
)

evaluations: Final = sa.Table(
    "evaluations",
    metadata,
    _row_id(),
    _session_id(),
    sa.Column("ts_us", sa.BigInteger, nullable=False),
    sa.Column("opponent", sa.String(128), nullable=False),
    sa.Column("games", sa.BigInteger, nullable=False),
    sa.Column("wins", sa.BigInteger, nullable=False),
    sa.Column("losses", sa.BigInteger, nullable=False),
    sa.Column("draws", sa.BigInteger, nullable=False),
    sa.Column("win_rate", sa.Float),  # percent
    sa.Column("ci_low", sa.Float),
    sa.Column("ci_high", sa.Float),
    sa.Column("mean_return", sa.Float, nullable=False),
    sa.Column("mean_length", sa.Float, nullable=False),
    sa.Index(None, "session_id", "id"),
)

replays: Final = sa.Table(
    "replays",
    metadata,
    _row_id(),
    sa.Column("replay_id", sa.String(64), nullable=False, unique=True),
    _session_id(),
    sa.Column("ts_us", sa.BigInteger, nullable=False),
    sa.Column("env_id", sa.String(128), nullable=False),
    sa.Column("episode", sa.BigInteger, nullable=False),
    sa.Column("timesteps", sa.BigInteger, nullable=False),
    sa.Column("summary", sa.JSON, nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
    # zlib-compressed JSON list of what the bot considered, step by step
    sa.Column("decisions", sa.LargeBinary),
    sa.Index(None, "session_id", "id"),
)

# Under whose codes guests watch sessions (see .rooms).
rooms: Final = sa.Table(
    "rooms",
    metadata,
    sa.Column("code", sa.String(16), primary_key=True),
    _session_id(),
    sa.Column("kind", sa.String(16), nullable=False),  # spectator
    sa.Column("password_hash", sa.String(256)),  # argon2id; null: the code is enough
    sa.Column("max_spectators", sa.Integer),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("expires_us", sa.BigInteger),
    sa.Index(None, "session_id"),
    sa.Index(None, "created_us", "code"),
    sa.Index(None, "expires_us"),
)

# Answers to requests that may be repeated (session creation), kept for a day.
idempotency: Final = sa.Table(
    "idempotency",
    metadata,
    sa.Column("key", sa.String(256), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("session_id", sa.String(64)),  # null while the first request is still at work
    sa.Index(None, "created_us"),
)

# What a database was given once, when it was first asked for.
marks: Final = sa.Table(
    "marks",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),  # secret | incarnation
    sa.Column("value", sa.Text, nullable=False),
)

# What has to be added to this machine's steady clock to get the database's time, per boot; on SQLite (see .clock).
clock: Final = sa.Table(
    "clock",
    metadata,
    sa.Column("boot_id", sa.String(64), primary_key=True),
    sa.Column("offset_us", sa.BigInteger, nullable=False),
)
