"""`agent flush`: deliver what is queued, now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.cli._common import add_config, add_json, load_settings, print_json, seconds

if TYPE_CHECKING:
    import argparse

    from agent.settings import Settings

DESCRIPTION = (
    "Delivers everything that is queued, now: through the running daemon, or by itself when none runs. "
    "It stops early when only a person can help (a wrong token, say)."
)
EPILOG = """\
examples:
  agent flush
  agent flush --timeout 5 || echo "some events are still queued"

exit codes: 0 the queue is empty; 1 events remain, and why; 2 wrong usage or settings
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=60.0,
        metavar="S",
        help="how long to go on at most, in seconds or as 500ms, 2s, 1m (default: 60)",
    )
    add_config(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Flush; say what remains."""
    settings = load_settings(args)

    from agent.daemon import call
    from agent.lock import holder

    answer = call(
        settings.api_socket_path, "POST", f"/flush?timeout={args.timeout}", timeout=args.timeout + 15
    )
    if answer is None and holder(settings.queue_dir) is None:
        answer = _alone(settings, args.timeout)
    elif answer is None:
        from agent.errors import DaemonError

        raise DaemonError(
            "flush the queue",
            str(settings.queue_dir),
            f"process {holder(settings.queue_dir)} holds it, but does not answer",
            f"is its api_socket_path {settings.api_socket_path}?",
        )
    remaining, reason = answer["remaining"], answer["reason"]
    if args.json:
        print_json({"empty": remaining == 0, "remaining": remaining, "reason": reason})
    elif remaining:
        from agent.units import counted

        verb = "remains" if remaining == 1 else "remain"
        print(f"{counted(remaining, 'event')} {verb} in the queue: {reason}")
    else:
        print("the queue is empty: Polar has every event")
    return 1 if remaining else 0


def _alone(settings: Settings, timeout: float) -> dict[str, Any]:
    """Flush without a daemon: this process is it, for the moment."""
    from agent import logs
    from agent.clock import SystemClock
    from agent.pipeline import Pipeline
    from agent.queue.look import is_there

    if not is_there(settings.queue_dir):
        return {"remaining": 0, "reason": None}
    logs.configure("error", settings.log_format)
    pipeline = Pipeline(settings, SystemClock())
    pipeline.start()
    try:
        drained = pipeline.drain(timeout)
    finally:
        pipeline.stop()
    return {"remaining": pipeline.queue.books().pending, "reason": drained.reason}
