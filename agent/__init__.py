"""A background agent that takes usage events and delivers each one to Polar exactly once."""

__version__ = "0.1.0"
