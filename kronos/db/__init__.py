"""The database: tables, connections, migrations. What rows mean is said in `kronos.repository`."""
