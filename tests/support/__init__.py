"""What tests share: a clock, strategies, the product as processes."""

from hypothesis import settings

# A machine that is busy with something else must not fail a property.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
