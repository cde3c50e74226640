"""Since which revision a holder of a lease has been there."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column; the holders that there are count as having been there always."""
    op.add_column("leases", sa.Column("since_revision", sa.BigInteger, nullable=False, server_default="0"))
