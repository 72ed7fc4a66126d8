"""The schema's history, for Alembic; installed as `kronos._migrations`."""
