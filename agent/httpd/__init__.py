"""A small HTTP/1.1 server: bounded in everything, and without any knowledge of the agent.

`message` is what travels; `connection` speaks HTTP with one client (h11 does the
grammar); `server` waits for all of them in one thread; `lanes` are the threads that do
the work. h11 is there already, as the grammar of httpx, and weighs 0.2 MB where the
standard library's server weighs 4.6; it has no I/O, so that bounds and deadlines are ours.
"""
