"""What tests share: a clock, strategies, the product as processes."""
