"""Sums of readings as bytes: a long history is read without taking thousands of JSON texts apart."""

from __future__ import annotations

import json
import struct
from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"

_BATCH = 5_000


def upgrade() -> None:
    connection = op.get_bind()
    postgres = connection.dialect.name == "postgresql"
    op.rename_table("metric_rollups", "metric_rollups_json")
    if postgres:  # names of keys are the schema's there
        op.execute("ALTER INDEX pk_metric_rollups RENAME TO pk_metric_rollups_json")
    new = op.create_table(
        "metric_rollups",
        sa.Column("session_id", sa.String(length=64), nullable=False),
        sa.Column("width_s", sa.Integer(), nullable=False),
        sa.Column("bucket", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("names", sa.Text(), nullable=False),
        sa.Column("sums", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["sessions.session_id"],
            name=op.f("fk_metric_rollups_session_id_sessions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("session_id", "width_s", "bucket", name=op.f("pk_metric_rollups")),
    )
    if postgres:
        op.execute("ALTER TABLE metric_rollups SET (fillfactor = 50)")
    _convert(connection, new)
    op.drop_table("metric_rollups_json")


def _convert(connection: sa.Connection, new: sa.Table) -> None:
    key: tuple[sa.ColumnClause[Any], ...] = (
        sa.column("session_id", sa.String),
        sa.column("width_s", sa.Integer),
        sa.column("bucket", sa.BigInteger),
    )
    old = sa.table("metric_rollups_json", *key, sa.column("rows", sa.BigInteger), sa.column("data", sa.JSON))
    query = sa.select(old).order_by(*key).limit(_BATCH)
    rows = connection.execute(query).all()
    while rows:
        connection.execute(sa.insert(new), [_converted(*row) for row in rows])
        last = [sa.literal(value, column.type) for value, column in zip(rows[-1][:3], key, strict=True)]
        rows = connection.execute(query.where(sa.tuple_(*key) > sa.tuple_(*last))).all()


def _converted(session_id: str, width_s: int, bucket: int, rows: int, data: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "session_id": session_id,
        "width_s": width_s,
        "bucket": bucket,
        "rows": rows,
        "names": json.dumps(list(data), separators=(",", ":"), ensure_ascii=False),
        "sums": b"".join(struct.pack("<4d", *entry) for entry in data.values()),
    }
