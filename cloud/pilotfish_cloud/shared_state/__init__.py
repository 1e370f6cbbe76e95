"""What the replicas of one deployment share: limits, usage, revoked keys, who is there. Small, and never a step's business."""
