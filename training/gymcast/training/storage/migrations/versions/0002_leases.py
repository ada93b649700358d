"""Leases and waiting of sessions, tails of rollups, versions of transitions, producers, episodes, the steady clock."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"


def upgrade() -> None:
    for column in (
        sa.Column("lease_owner", sa.String(length=128), nullable=True),
        sa.Column("lease_expires_us", sa.BigInteger(), nullable=True),
        sa.Column("heartbeat_us", sa.BigInteger(), nullable=True),
        sa.Column("not_before_us", sa.BigInteger(), nullable=True),
        sa.Column("wait_reason", sa.Text(), nullable=True),
        sa.Column("rolled_id", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("unrolled", sa.BigInteger(), nullable=False, server_default="0"),
    ):
        op.add_column("sessions", column)
    op.add_column("transitions", sa.Column("version", sa.BigInteger(), nullable=True))
    op.create_table(
        "clock",
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("offset_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("boot_id", name=op.f("pk_clock")),
    )
    op.create_table(
        "episodes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("session_id", sa.String(length=64), nullable=False),
        sa.Column("episode_id", sa.String(length=128), nullable=False),
        sa.Column("ts_us", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("total_reward", sa.Float(), nullable=True),
        sa.Column("length", sa.BigInteger(), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("duration_seconds", sa.Float(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("data", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.session_id"], name=op.f("fk_episodes_session_id_sessions"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_episodes")),
        sa.UniqueConstraint("session_id", "episode_id", name=op.f("uq_episodes_session_id_episode_id")),
    )
    op.create_index(op.f("ix_episodes_session_id_id"), "episodes", ["session_id", "id"], unique=False)
    op.create_table(
        "producers",
        sa.Column("session_id", sa.String(length=64), nullable=False),
        sa.Column("producer", sa.String(length=64), nullable=False),
        sa.Column("head", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.session_id"], name=op.f("fk_producers_session_id_sessions"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("session_id", "producer", name=op.f("pk_producers")),
    )
    _room_for_updates()
    _heads_from_events()
    # Until now every reading was summed up as it was stored.
    op.execute(
        "UPDATE sessions SET rolled_id ="
        " COALESCE((SELECT max(id) FROM metrics WHERE metrics.session_id = sessions.session_id), 0)"
    )


def _room_for_updates() -> None:
    """PostgreSQL keeps old versions of rows for a while: those that every report rewrites get room beside them."""
    if op.get_bind().dialect.name == "postgresql":
        for table in ("sessions", "producers", "metric_rollups"):
            op.execute(f"ALTER TABLE {table} SET (fillfactor = 50)")


def _heads_from_events() -> None:
    """Numbers that are there without a gap from 1 on become a head; rows that held nothing but the number go."""
    events = sa.table("events", sa.column("session_id"), sa.column("producer"), sa.column("seq"))
    place = sa.func.row_number().over(partition_by=(events.c.session_id, events.c.producer), order_by=events.c.seq)
    numbered = sa.select(events.c.session_id, events.c.producer, events.c.seq, place.label("place")).subquery()
    in_order = sa.case((numbered.c.seq == numbered.c.place, numbered.c.seq), else_=0)
    heads = sa.select(
        numbered.c.session_id, numbered.c.producer, sa.func.max(in_order), sa.func.max(numbered.c.seq)
    ).group_by(numbered.c.session_id, numbered.c.producer)
    names = ["session_id", "producer", "head", "last"]
    producers = sa.table("producers", *(sa.column(name) for name in names))
    op.execute(sa.insert(producers).from_select(names, heads))
    op.execute(
        """
        DELETE FROM events WHERE data IS NULL AND seq <= (
            SELECT head FROM producers
            WHERE producers.session_id = events.session_id AND producers.producer = events.producer
        )
        """
    )
