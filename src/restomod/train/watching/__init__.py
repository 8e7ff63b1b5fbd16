"""What shows a run while it trains: each listens to the lines of metrics.jsonl, in a thread of its
own, and none of them stops or slows training."""
