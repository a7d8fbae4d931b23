"""Sources of events: where they come from, and who may send them."""
