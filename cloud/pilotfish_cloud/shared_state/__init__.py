"""What the replicas of one deployment share: limits, usage, revoked keys, who is there. Never a step's business."""
