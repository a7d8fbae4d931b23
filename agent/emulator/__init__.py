"""A local server that behaves like Polar's events API, for development and tests.

An optional extra of the package, on the libraries that Polar itself uses for this, so that
its answers come out the same: statuses, error types and locations, duplicates, limits,
scopes, paging, filters. It bills nobody and talks to nobody.

    options   what it is started with
    auth      tokens and scopes
    gateway   what happens to a request before any route: version, size, rate, faults
    events    the routes below /v1/events
    ingest    a batch: parsed, checked in two stages, stored
    query     filters of a list, as SQL
    store     the events, in SQLite
    answers   how events and errors are written
    control   the routes below /_emulator, for tests and scripts
    server    the socket, and breaking connections on purpose
"""
