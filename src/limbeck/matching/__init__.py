"""Trajectory matching: the inner loop, its exact gradient in constant memory, and the matching loss."""
