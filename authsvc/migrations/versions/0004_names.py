"""Columns get the names that the code has for what they hold."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Rename them, in the way that both databases know."""
    op.execute("ALTER TABLE leases RENAME COLUMN is_gone TO is_released")
    op.execute("ALTER TABLE changes RENAME COLUMN voided_digests TO invalidated_digests")
