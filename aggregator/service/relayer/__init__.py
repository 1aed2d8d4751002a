"""Certificates on their way to their destinations."""

from aggregator.service.relayer.policy import Movement, PostingPolicy, measure_movement, should_post
from aggregator.service.relayer.relayer import Records, Relayer

__all__ = ["Movement", "PostingPolicy", "Records", "Relayer", "measure_movement", "should_post"]
