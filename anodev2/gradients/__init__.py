"""The pass backward: what is kept of a solve, and how its gradient is found from that."""
