"""Shall we ask? Utility, query strategy, budget and coin as four objects, never fused."""
