"""The event log: append, durable before it is acknowledged, each event id once; read; roll.

It is the only truth of what happened after a bundle was trained: live state is a cache, rebuilt
from the bundle's and the log's tail. `local` is the log of one node, shared by its processes;
`redis_log` that of many nodes. `rolled` writes what either holds as Parquet that ingest reads.
"""
