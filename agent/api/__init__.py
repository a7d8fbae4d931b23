"""The local HTTP API of a running daemon.

On a Unix socket of its own, and on TCP where `api_listen` says so:

- what Polar has: `POST /v1/events/ingest`, `GET /v1/events/`, `/v1/events/names`,
  `/v1/events/{id}`, with the same parameters, answers and errors (`ingest`, `readback`);
- for operators: `GET /healthz`, `/readyz`, `/status`, `/dead`; `POST /flush?timeout=SECONDS`,
  `/dead/retry`, `/dead/purge` with `{"ids": [...]}` (null: all) and, for a retry,
  `{"edits": {"ID": "line"}}` (`operate`).

Who may do what is decided in `access`; which path is whose in `routes`; `server` puts it on sockets.
"""
