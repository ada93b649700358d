"""How many live messages of each type a session has had."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"


def upgrade() -> None:
    # Counting begins here: no viewer knows a number from before.
    op.add_column("sessions", sa.Column("heads", sa.JSON(none_as_null=True), nullable=False, server_default="{}"))
