"""Projects, their keys, and the log of changes with its counter."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the four tables, with the counter at 0."""
    timestamp = sa.DateTime(timezone=True)
    counter = op.create_table(
        "revision_counter",
        sa.Column("id", sa.SmallInteger, sa.CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(counter, [{"id": 1, "revision": 0}])
    op.create_table(
        "projects",
        sa.Column("project_id", sa.String(63), primary_key=True),
        sa.Column("origins", sa.JSON, nullable=False),
        sa.Column("create_time", timestamp, nullable=False),
    )
    op.create_table(
        "keys",
        sa.Column("key_id", sa.String(20), primary_key=True),
        sa.Column("project_id", sa.String(63), sa.ForeignKey("projects.project_id"), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("create_revision", sa.BigInteger, nullable=False),
        sa.Column("create_time", timestamp, nullable=False),
        sa.Column("revoke_time", timestamp),
    )
    active = sa.text("revoke_time IS NULL")
    op.create_index(
        "keys_one_active", "keys", ["project_id"], unique=True, sqlite_where=active, postgresql_where=active
    )
    op.create_index("keys_newest", "keys", ["project_id", "create_revision"], unique=True)
    op.create_table(
        "changes",
        sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("project_id", sa.String(63), sa.ForeignKey("projects.project_id"), nullable=False),
        sa.Column("voided_digests", sa.JSON, nullable=False),
        sa.Column("caller", sa.String(128), nullable=False),
        sa.Column("create_time", timestamp, nullable=False),
    )
