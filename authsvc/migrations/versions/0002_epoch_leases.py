"""The epoch of the revisions, and the leases of those who cache verdicts."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the epoch, the table `leases`, and an index for one project's changes."""
    op.add_column("revision_counter", sa.Column("epoch", sa.String(32), nullable=False, server_default=""))
    counter = sa.table("revision_counter", sa.column("epoch", sa.String))
    op.execute(counter.update().values(epoch=secrets.token_hex(16)))
    timestamp = sa.DateTime(timezone=True)
    op.create_table(
        "leases",
        sa.Column("holder_id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("epoch", sa.String(32), nullable=False),
        sa.Column("acknowledged_revision", sa.BigInteger, nullable=False),
        sa.Column("expire_time", timestamp, nullable=False),
        sa.Column("renew_time", timestamp, nullable=False),
        sa.Column("is_gone", sa.Boolean, nullable=False),
    )
    op.create_index("changes_of_project", "changes", ["project_id", "revision"])
