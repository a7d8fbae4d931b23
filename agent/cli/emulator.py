"""`agent emulator`: serve a local server that behaves like Polar's events API."""

from __future__ import annotations

import argparse
from pathlib import Path

from agent.errors import UsageError

DESCRIPTION = """\
Serves a local server that behaves like Polar's events API: same statuses, error types and
locations, duplicates, limits, auth, scopes, paging, filters and read delay. It bills nobody.
Prints one line with its address when it is ready; SIGTERM and SIGINT end it.
"""

EPILOG = """\
tokens:
  without --token      every token is valid and has all scopes
  TOKEN                all scopes
  TOKEN=events:read    can read, cannot ingest (403)
  TOKEN=events:write   can ingest and read
  TOKEN=               no scope of the events API (403 for everything); so does any other
                       scope, as in TOKEN=products:read
  polar_pat_…          a token that begins with polar_pat_ is a person's: its events must
                       have organization_id. Every other token is an organization's: its
                       events must not have it
  A token that was not given is answered with 401.

The organization is 92ddcaf5-fd7c-41a5-85a1-a31b062516b6; of customers it knows those that
were given with --customer. Any external_customer_id is taken, as by Polar.

for tests and scripts, without a token:
  GET    /_emulator/events   all stored events as NDJSON, in order of storing
  PUT    /_emulator/faults   {"status": 503, "share": 0.3, "retry_after": "5",
                             "latency_ms": 100, "reset_share": 0.1, "lose_answer_share": 0.1,
                             "requests_per_minute": 100, "clock_offset_seconds": -30,
                             "poison_external_ids": ["x"], "poison_status": 500,
                             "max_events": 4681}, any of them, in place of those before
  DELETE /_emulator/faults   no faults
  GET    /_emulator/stats    requests, by status, events stored, duplicates

example:
  agent emulator --customer 0b9a4e6c-3d3e-4a36-9e4c-1d1f5f6a7b8c=cus_1 &
  POLAR_ACCESS_TOKEN=any POLAR_AGENT_BASE_URL=http://127.0.0.1:8787 agent run
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default="127.0.0.1:8787",
        help="where to serve (default: %(default)s); port 0 is any free one",
    )
    parser.add_argument(
        "--token",
        metavar="TOKEN[=SCOPE,SCOPE]",
        action="append",
        default=[],
        help="a valid token; may be repeated; see below",
    )
    parser.add_argument(
        "--customer",
        metavar="UUID[=EXTERNAL_ID]",
        action="append",
        default=[],
        help="a customer that the organization knows; may be repeated",
    )
    parser.add_argument(
        "--data", metavar="FILE", type=Path, help="SQLite file of the events (default: in memory)"
    )
    parser.add_argument(
        "--requests-per-minute",
        metavar="N",
        type=_positive,
        help="rate limit; over it, 429 (default: none; Polar: 500, sandbox 100)",
    )
    parser.add_argument(
        "--read-delay",
        metavar="S",
        type=_seconds,
        default=0.0,
        help="seconds until a stored event can be read (default: 0; Polar: 0.5 to 3.5)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    try:
        from agent.emulator.options import Options, parse_customer, parse_listen, parse_token
        from agent.emulator.server import run as serve
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in {"fastapi", "starlette", "uvicorn", "h11"}:
            raise
        raise UsageError(
            "start the emulator",
            missing,
            "it is not installed; the emulator is an optional extra",
            "pip install 'polar-agent[emulator]'",
        ) from error
    host, port = parse_listen(args.listen)
    options = Options(
        tokens=tuple(parse_token(word) for word in args.token),
        customers=tuple(parse_customer(word) for word in args.customer),
        data=args.data,
        requests_per_minute=args.requests_per_minute,
        read_delay=args.read_delay,
    )
    serve(options, host, port, lambda url: print(f"emulator ready on {url}", flush=True))
    return 0


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _seconds(word: str) -> float:
    seconds = float(word)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError("must be 0 or more")
    return seconds
